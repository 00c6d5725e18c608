"""DummyData: Caffe's recorded tops, shapes of both kinds, seeded fresh values, and every refusal."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import forcereg.registry as registry
from forcereg.data.dummy_data import DummyFeed
from forcereg.data.feed import FeedContext
from forcereg.errors import ForceregError
from forcereg.net.load import load_net, meta_net
from forcereg.schema import TEST
from forcereg.schema.text import parse_net
from tests.data.lmdbs import data_spec
from tests.golden_cases import Case, golden_cases

NOISE = 'data_filler { type: "gaussian" }'


def dummy(param: str, tops: int = 1, seed: int | None = 1, name: str = "d", phase: str = "TEST") -> DummyFeed:
    named = " ".join(f'top: "t{i}"' for i in range(tops))
    text = f'layer {{ name: "{name}" type: "DummyData" {named} dummy_data_param {{ {param} }} }}'
    return DummyFeed(data_spec(text, phase), FeedContext(Path(), torch.device("cpu"), seed))


@pytest.mark.parametrize("case", golden_cases("data", lambda case: case.id.startswith("dummy")))
def test_tops_are_caffes(case: Case) -> None:
    feed = DummyFeed(data_spec(case.attrs["prototxt"]), FeedContext(Path(), torch.device("cpu")))
    for number in (1, 2):
        for top, tensor in zip(feed.tops, feed.next(), strict=True):
            np.testing.assert_array_equal(tensor.numpy(), case.load(f"pass_{number}/{top}"))


@pytest.mark.parametrize(
    ("param", "tops", "shapes"),
    [
        pytest.param("shape { dim: 2 dim: 3 }", 1, [(2, 3)], id="shape"),
        pytest.param("shape { dim: 2 dim: 3 }", 3, [(2, 3)] * 3, id="one-for-all"),
        pytest.param("shape { dim: 2 } shape { dim: 4 dim: 1 }", 2, [(2,), (4, 1)], id="one-each"),
        pytest.param("shape { }", 1, [()], id="scalar"),
        pytest.param("num: 2 channels: 3 height: 4 width: 5", 2, [(2, 3, 4, 5)] * 2, id="legacy-one-for-all"),
        pytest.param(
            "num: 2 num: 6 channels: 3 height: 4 width: 5 width: 7",
            2,
            [(2, 3, 4, 5), (6, 3, 4, 7)],
            id="legacy-some-each",
        ),
    ],
)
def test_shapes(param: str, tops: int, shapes: list[tuple[int, ...]]) -> None:
    feed = dummy(param, tops)
    batch = feed.next()
    assert feed.shapes == tuple(shapes) and [tuple(t.shape) for t in batch] == shapes
    assert all(t.dtype == torch.float32 and not t.any() for t in batch)  # without a filler: zeros


@pytest.mark.parametrize("kind", list(registry.filler))
def test_every_filler(kind: str) -> None:
    feed = dummy(f'shape {{ dim: 2 dim: 3 dim: 4 dim: 4 }} data_filler {{ type: "{kind}" value: 2 }}')
    first, second = feed.next()[0], feed.next()[0]
    assert first.shape == (2, 3, 4, 4) and first.isfinite().all() and first.any()
    assert torch.equal(first, second) == (kind in ("constant", "bilinear"))


def test_only_random_tops_change_and_each_top_has_its_filler() -> None:
    feed = dummy(f'shape {{ dim: 5 }} {NOISE} data_filler {{ value: 3 }} data_filler {{ type: "uniform" max: 9 }}', 3)
    one, two = feed.next(), feed.next()
    assert one[1].tolist() == two[1].tolist() == [3] * 5
    assert not torch.equal(one[0], two[0]) and not torch.equal(one[2], two[2])
    assert one[2].min() >= 0 and 1 < one[2].max() < 9


def test_a_batch_belongs_to_the_caller() -> None:
    feed = dummy("shape { dim: 5 } data_filler { value: 3 }")
    feed.next()[0].zero_()
    assert feed.next()[0].tolist() == [3] * 5


def test_values_follow_seed_layer_and_phase() -> None:
    def values(**options) -> list[float]:
        return dummy(f"shape {{ dim: 4 }} {NOISE}", **options).next()[0].tolist()

    assert values() == values()
    variants = [values(), values(seed=2), values(name="other"), values(phase="TRAIN"), values(seed=None)]
    assert len({tuple(v) for v in variants}) == len(variants)


@pytest.mark.parametrize("as_arrays", [False, True], ids=["numbers", "arrays"])
def test_resume_is_exact(as_arrays: bool) -> None:
    feed = dummy(f"shape {{ dim: 4 }} {NOISE}", seed=None)
    feed.next(), feed.next()
    state = {key: np.asarray(value) if as_arrays else value for key, value in feed.state_dict().items()}
    resumed = dummy(f"shape {{ dim: 4 }} {NOISE}", seed=5)
    resumed.load_state_dict(state)
    copies = [resumed, copy.deepcopy(feed), pickle.loads(pickle.dumps(feed))]
    for _ in range(3):
        expected = feed.next()[0]
        assert all(torch.equal(expected, other.next()[0]) for other in copies)


@pytest.mark.parametrize(
    ("param", "tops", "expected"),
    [
        ("shape { dim: 2 }", 0, "has no tops"),
        ("", 1, "has 0 dummy_data_param.shape entries for 1 tops; give one, or one for each top"),
        ("shape { dim: 2 } shape { dim: 3 }", 3, "has 2 dummy_data_param.shape entries for 3 tops"),
        ("num: 1 channels: 2 height: 3", 1, "has 0 dummy_data_param.width entries"),
        ("num: 1 num: 2 channels: 1 height: 1 width: 1", 3, "has 2 dummy_data_param.num entries"),
        ("shape { dim: 2 } num: 1", 1, "has shape and num/channels/height/width"),
        (f"shape {{ dim: 2 }} {NOISE} {NOISE}", 3, "has 2 dummy_data_param.data_filler entries"),
        ("shape { dim: 2 dim: 0 }", 1, "top 't0' would have shape [2, 0]; expected sizes of at least 1"),
        ("shape { dim: -3 }", 1, "top 't0' would have shape [-3]"),
        ("shape { dim: 65536 dim: 65536 }", 1, "top 't0' would have shape [65536, 65536], 4,294,967,296 values"),
        ("shape { dim: 9223372036854775807 dim: 9223372036854775807 }", 1, "top 't0' would have shape"),
        ('shape { dim: 2 } data_filler { type: "gausian" }', 1, "unknown filler type 'gausian'; did you mean \"gaus"),
        ('shape { dim: 2 } data_filler { type: "gaussian" std: 0 }', 1, "std 0; expected > 0"),
        ('shape { dim: 2 } data_filler { type: "bilinear" }', 1, "bilinear filler needs a 4-axis blob"),
        ('shape { dim: 2 } data_filler { type: "uniform" min: 2 }', 1, "min 2 > max 1"),
        ('shape { dim: 2 } data_filler { type: "xavier" sparse: 2 }', 1, "takes no `sparse`"),
    ],
)
def test_bad_parameters_are_refused(param: str, tops: int, expected: str) -> None:
    with pytest.raises(ForceregError) as caught:
        dummy(param, tops)
    line = str(caught.value)
    assert line.startswith("net.prototxt:1: layer 'd': ") and expected in line and "\n" not in line


NET = """
layer { name: "d" type: "DummyData" top: "data" top: "label"
  dummy_data_param { shape { dim: 6 dim: 4 } shape { dim: 6 } data_filler { type: "gaussian" } data_filler { %s } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


@pytest.mark.parametrize("labels", ["value: 2", 'type: "uniform" max: 3', 'type: "uniform" min: 1 max: 1'])
def test_a_net_trains_on_it(labels: str) -> None:
    net = load_net(NET % labels, phase="TRAIN", seed=0)
    loss, _ = net.forward_loss()
    loss.backward()
    assert 0.9 < loss.item() < 1.3


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("value: 3", "top 'label' may be filled with label 3, expected 0 to 2 for <text>:5: layer 'loss'"),
        ("value: -1", "label -1"),
        ('type: "uniform" max: 3.1', "label 3.1, expected 0 to 2"),
        ('type: "uniform" min: -1 max: 3', "label -1"),
        ('type: "gaussian"', "top 'label' holds labels, but its filler is gaussian; use constant or uniform"),
    ],
)
def test_labels_out_of_range_are_refused(labels: str, expected: str) -> None:
    with pytest.raises(ForceregError) as caught:
        load_net(NET % labels)
    assert str(caught.value).startswith("<text>:2: layer 'd': ") and expected in str(caught.value)


def test_shapes_are_inferred_without_values() -> None:
    text = NET.replace("dim: 6 dim: 4", "dim: 6 dim: 300000000") % "value: 0"
    text = text.replace('type: "InnerProduct"', 'type: "ReLU"').replace("inner_product_param { num_output: 3 }", "")
    assert meta_net(parse_net(text), TEST).shapes["data"] == (6, 300_000_000)
