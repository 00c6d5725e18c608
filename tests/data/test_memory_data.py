"""MemoryData: Caffe's recorded batches from set_input_arrays, what it accepts, resume, and every refusal."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from forcereg.data.feed import FeedContext
from forcereg.data.memory_data import MemoryFeed
from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from tests.data.lmdbs import batches, data_spec
from tests.golden_cases import Case, golden_cases

SIZES = "batch_size: 2 channels: 1 height: 2 width: 2"
LAYER = 'layer {{ name: "{}" type: "MemoryData" top: "{}" top: "{}" {} memory_data_param {{ {} }} }}'
NET = (
    LAYER.format("d", "data", "label", "", SIZES)
    + """
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
)


def make_feed(param: str = SIZES, tops: str = 'top: "data" top: "label"', extra: str = "") -> MemoryFeed:
    text = f'layer {{ name: "d" type: "MemoryData" {tops} {extra} memory_data_param {{ {param} }} }}'
    return MemoryFeed(data_spec(text), FeedContext(Path(), torch.device("cpu")))


def arrays(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Data whose values say the item, and labels 0, 1, 2, 0, ..."""
    return np.arange(count * 4, dtype=np.float32).reshape(count, 1, 2, 2), np.arange(count, dtype=np.float32) % 3


@pytest.mark.parametrize("case", golden_cases("data", lambda case: case.id.startswith("memory")))
def test_batches_are_caffes(case: Case) -> None:
    net = load_net(case.attrs["prototxt"], phase=case.attrs["phase"])
    net.set_input_arrays(case.load("arrays/data"), case.load("arrays/label"))
    for number in (1, 2, 3):
        out = net()
        for top in ("data", "label"):
            expected = case.load(f"pass_{number}/{top}")
            assert net.shapes[top] == expected.shape
            np.testing.assert_array_equal(out[top].numpy(), expected)


def test_batches_come_in_order_and_wrap() -> None:
    feed = make_feed()
    data, labels = arrays(6)
    feed.set_arrays(data, labels)
    for number, (images, marks) in enumerate(batches(feed, 7)):
        rows = slice(2 * (number % 3), 2 * (number % 3) + 2)
        np.testing.assert_array_equal(images.numpy(), data[rows])
        np.testing.assert_array_equal(marks.numpy().ravel(), labels[rows])


def readonly(values: np.ndarray) -> np.ndarray:
    values.flags.writeable = False
    return values


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda x: x.tolist(), id="lists"),
        pytest.param(lambda x: x.astype(np.float64), id="float64"),
        pytest.param(lambda x: x.astype(np.uint8), id="uint8"),
        pytest.param(lambda x: x.astype(">f4"), id="big-endian"),
        pytest.param(lambda x: x[::-1][::-1], id="strided"),
        pytest.param(readonly, id="read-only"),
        pytest.param(torch.from_numpy, id="tensor"),
        pytest.param(lambda x: torch.from_numpy(x).double().requires_grad_(), id="tensor-with-gradient"),
    ],
)
def test_arrays_of_any_numbers(form) -> None:
    feed = make_feed()
    data, labels = arrays(4)
    feed.set_arrays(form(data.copy()), form(labels.copy()))
    images, marks = feed.next()
    assert images.dtype == marks.dtype == torch.float32 and not images.requires_grad
    np.testing.assert_array_equal(images.numpy(), data[:2])
    np.testing.assert_array_equal(marks.numpy().ravel(), labels[:2])


def test_float32_is_not_copied_but_batches_are() -> None:
    feed = make_feed()
    data, labels = arrays(2)
    feed.set_arrays(data, labels)
    feed.next()[0].zero_()
    data[0] = 7
    assert feed.next()[0][0].unique().tolist() == [7] and data[1].any()


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 1, 1, 1)], ids=str)
def test_labels_of_any_shape(shape: tuple[int, ...]) -> None:
    feed = make_feed()
    data, labels = arrays(4)
    feed.set_arrays(data, labels.reshape(shape))
    assert feed.next()[1].shape == (2, 1, 1, 1)


def test_new_arrays_start_from_their_first_item() -> None:
    feed = make_feed()
    feed.set_arrays(*arrays(6))
    batches(feed, 2)
    feed.set_arrays(*arrays(4))
    assert feed.next()[0][0, 0, 0, 0] == 0


def test_resume_is_exact() -> None:
    feed = make_feed()
    feed.set_arrays(*arrays(6))
    batches(feed, 4)
    state = {key: np.asarray(value) for key, value in feed.state_dict().items()}
    before, after = make_feed(), make_feed()
    before.set_arrays(*arrays(6))
    before.load_state_dict(state)
    after.load_state_dict(state)
    after.set_arrays(*arrays(6))
    others = [before, after, copy.deepcopy(feed), pickle.loads(pickle.dumps(feed))]
    for images, labels in batches(feed, 4):
        for other in others:
            found = other.next()
            assert torch.equal(found[0], images) and torch.equal(found[1], labels)


def test_transform_param_is_said_to_have_no_effect() -> None:
    with pytest.warns(UserWarning, match="layer 'd': transform_param has no effect on MemoryData's arrays"):
        feed = make_feed(extra="transform_param { scale: 2 crop_size: 1 }")
    feed.set_arrays(*arrays(2))
    np.testing.assert_array_equal(feed.next()[0].numpy(), arrays(2)[0])


def fails(*expected: str, call) -> None:
    with pytest.raises(ForceregError) as caught:
        call()
    line = str(caught.value)
    assert line.startswith("net.prototxt:1: layer 'd': ") and "\n" not in line
    for text in expected:
        assert text in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"tops": 'top: "data"'}, "has 1 tops; expected data and label"),
        ({"param": SIZES.replace("batch_size: 2", "")}, "memory_data_param.batch_size is missing or 0"),
        ({"param": SIZES.replace("width: 2", "width: 0")}, "memory_data_param.width is missing or 0"),
    ],
)
def test_bad_parameters_are_refused(options: dict, expected: str) -> None:
    fails(expected, call=lambda: make_feed(**options))


@pytest.mark.parametrize(
    ("data", "labels", "expected"),
    [
        (np.zeros((3, 1, 2, 2)), np.zeros(3), "data has 3 items; expected a multiple of batch_size 2"),
        (np.zeros((0, 1, 2, 2)), np.zeros(0), "data has 0 items"),
        (np.zeros((2, 2, 2)), np.zeros(2), "data has shape [2, 2, 2]; expected [n, 1, 2, 2]"),
        (np.zeros((2, 1, 2, 3)), np.zeros(2), "data has shape [2, 1, 2, 3]; expected [n, 1, 2, 2]"),
        (np.zeros((2, 1, 2, 2, 1)), np.zeros(2), "data has shape [2, 1, 2, 2, 1]"),
        (np.zeros(()), np.zeros(2), "data has shape []"),
        (np.zeros((2, 1, 2, 2)), np.zeros((2, 2)), "4 labels [2, 2] for 2 items; expected one each"),
        (np.zeros((2, 1, 2, 2)), np.zeros(4), "4 labels [4] for 2 items"),
        ("cat.png", np.zeros(2), "data is a str of <U7; expected an array of numbers"),
        (np.zeros((2, 1, 2, 2)), None, "labels is a NoneType of object; expected an array of numbers"),
        ([[1], [2, 3]], np.zeros(2), "data is a list; expected an array of numbers"),
    ],
)
def test_bad_arrays_are_refused_and_the_old_ones_stay(data, labels, expected: str) -> None:
    feed = make_feed()
    feed.set_arrays(*arrays(4))
    feed.next()
    fails(expected, call=lambda: feed.set_arrays(data, labels))
    assert feed.next()[0][0, 0, 0, 0] == 8


def test_without_arrays_it_says_how_to_give_them() -> None:
    fails("has no data yet; give it in Python by net.set_input_arrays(data, labels) or ", call=make_feed().next)


# -- in a net


def test_a_net_trains_on_arrays_and_checks_labels() -> None:
    net = load_net(NET, phase="TRAIN", seed=0)
    data, labels = arrays(4)
    net.set_input_arrays(data / 16, labels)
    net.forward_loss()[0].backward()
    assert net(data=torch.zeros(5, 1, 2, 2), label=torch.zeros(5, 1, 1, 1))["loss"].item() == pytest.approx(np.log(3))
    with pytest.raises(ForceregError, match="label 3 of item 1 found, expected 0 to 2 for <text>:3: layer 'loss'"):
        net.set_input_arrays(data, labels + 2)


def test_the_layer_must_be_named_if_there_are_several() -> None:
    net = load_net(LAYER.format("a", "x", "y", "", SIZES) + LAYER.format("b", "z", "w", "", SIZES))
    for layer, expected in ((None, "several MemoryData layers; name one: layer='a' or 'b'"), ("c", "layer 'c'")):
        with pytest.raises(ForceregError, match=expected):
            net.set_input_arrays(*arrays(2), layer=layer)
    net.set_input_arrays(*arrays(2), layer="b")
    net.set_input_arrays(*(2 * x for x in arrays(2)), layer="a")
    out = net()
    assert torch.equal(out["x"], 2 * out["z"])


def test_a_net_without_such_a_layer_says_so() -> None:
    net = load_net('layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 } } }')
    with pytest.raises(ForceregError, match="no MemoryData layer; give its inputs by name"):
        net.set_input_arrays(*arrays(2))
