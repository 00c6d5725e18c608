"""Slice, Crop, Filter and BatchReindex."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.net.scoring import score
from tests.layers.nets import apply, gradcheck, layer_error, layer_net, noise, run

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@settings(max_examples=50)
@given(st.data())
def test_slice_at_points(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    points = sorted(data.draw(st.sets(st.integers(1, max(1, shape[axis] - 1)), max_size=shape[axis] - 1)))
    x = noise(*shape)
    tops = apply("Slice", f"slice_param {{ axis: {axis} slice_point: {points} }}", x, tops=len(points) + 1)
    for found, expected in zip(tops, np.split(x.numpy(), points, axis), strict=True):
        np.testing.assert_array_equal(found, expected)


@settings(max_examples=30)
@given(st.data())
def test_slice_into_equal_parts(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    parts = data.draw(st.integers(1, 4))
    shape[axis] *= parts
    x = noise(*shape)
    tops = apply("Slice", f"slice_param {{ axis: {axis} }}", x, tops=parts)
    for found, expected in zip(tops, np.split(x.numpy(), parts, axis), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("param", ["", "slice_dim: 1", "axis: -2"])
def test_slice_of_axis_1(param: str) -> None:
    net = layer_net("Slice", f"slice_param {{ {param} slice_point: 1 }}", (2, 3, 2), tops=2)
    assert (net.shapes["y0"], net.shapes["y1"]) == ((2, 1, 2), (2, 2, 2))


def test_slice_gradient() -> None:
    net = layer_net("Slice", "slice_param { slice_point: 1 slice_point: 2 }", (2, 5), tops=3)
    for top in range(3):
        assert gradcheck(net, noise(2, 5).requires_grad_(), top=top)


@pytest.mark.parametrize(
    ("param", "tops", "message"),
    [
        ("", 4, "axis 1 of bottom [2, 6] doesn't divide into 4 equal tops; give slice_point entries or another number"),
        ("", 7, "axis 1 of bottom [2, 6] doesn't divide into 7 equal tops; use fewer tops"),
        (
            "axis: 0 slice_point: [1, 2]",
            3,
            "leaves a top without values; there are only 2 inside axis 0 of bottom [2, 6], use fewer tops",
        ),
        ("slice_point: 1", 3, "has 1 slice_point entries for 3 tops; give 2, or none for equal parts"),
        ("slice_point: 1", 1, "has 1 slice_point entries for 1 tops; give 0"),
        (
            "slice_point: [4, 2]",
            3,
            "slice_point [4, 2] leaves a top without values; expected increasing positions from",
        ),
        ("slice_point: [2, 2]", 3, "slice_point [2, 2] leaves a top without values"),
        ("slice_point: 0", 2, "slice_point [0] leaves a top without values; expected increasing positions from 1 to 5"),
        ("slice_point: 6", 2, "slice_point [6] leaves a top without values"),
        ("slice_point: 7", 2, "from 1 to 5, inside axis 1 of bottom [2, 6]"),
        ("axis: 2", 2, "axis 2 is outside its 2-axis bottom; expected -2 to 1"),
        ("axis: -3", 2, "axis -3 is outside"),
        ("slice_dim: 2", 2, "axis 2 is outside"),
        ("axis: 1 slice_dim: 1", 2, "gives both axis and slice_dim (its old name); use axis"),
    ],
)
def test_bad_slice(param: str, tops: int, message: str) -> None:
    assert message in layer_error("Slice", f"slice_param {{ {param} }}", (2, 6), tops=tops)


def test_slice_cuts_what_is_fed() -> None:
    net = layer_net("Slice", "slice_param { axis: 0 }", (4, 3), tops=2)
    assert [y.shape for y in run(net, torch.ones(2, 5))] == [(1, 5), (1, 5)]
    with pytest.raises(ForceregError, match=r"layer 'l': axis 0 of bottom \[3, 5\] doesn't divide into 2"):
        run(net, torch.ones(3, 5))


# -- Crop


@settings(max_examples=60)
@given(st.data())
def test_crop(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    first = axis % len(shape)
    sizes = [data.draw(st.integers(1, n)) for n in shape[first:]]
    room = [n - size for n, size in zip(shape[first:], sizes, strict=True)]
    kind = data.draw(st.sampled_from(["none", "one", "each"]))
    one = data.draw(st.integers(0, min(room)))
    offsets = {"none": [0] * len(room), "one": [one] * len(room), "each": [data.draw(st.integers(0, n)) for n in room]}
    offset = offsets[kind]
    text = "" if kind == "none" else f"offset: {one}" if kind == "one" else f"offset: {offset}"
    ahead = data.draw(st.lists(st.integers(1, 3), min_size=first, max_size=first))
    x, reference = noise(*shape), noise(*ahead, *sizes)
    (y,) = apply("Crop", f"crop_param {{ axis: {axis} {text} }}", x, reference)
    window = tuple(slice(o, o + n) for o, n in zip(offset, sizes, strict=True))
    np.testing.assert_array_equal(y, x.numpy()[(..., *window)])


def test_crop_gradient() -> None:
    net = layer_net("Crop", "crop_param { axis: 1 offset: [1, 0] }", (2, 3, 3), (1, 2, 2))
    x, reference = noise(2, 3, 3).requires_grad_(), noise(1, 2, 2).requires_grad_()
    (y,) = run(net.double(), x, reference)
    y.sum().backward()
    assert reference.grad is None
    assert x.grad[0].tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 0]]
    assert gradcheck(net, x, reference.detach())


def test_crop_default_axis_is_2() -> None:
    assert layer_net("Crop", "", (2, 3, 4, 5), (7, 8, 2, 3)).shapes["y0"] == (2, 3, 2, 3)


def test_crop_to_the_sizes_fed() -> None:
    net = layer_net("Crop", "crop_param { axis: 1 offset: 1 }", (2, 5), (2, 3))
    assert run(net, torch.ones(3, 9), torch.ones(1, 6))[0].shape == (3, 6)
    with pytest.raises(ForceregError, match="layer 'l': offset 1 and size 5 reach beyond axis 1"):
        run(net, torch.ones(2, 5), torch.ones(2, 5))


@pytest.mark.parametrize(
    ("param", "reference", "message"),
    [
        ("offset: 3", (2, 3, 4, 3), "offset 3 and size 4 reach beyond axis 2 of bottom 0 [2, 3, 6, 5]"),
        (
            "offset: [0, 3]",
            (2, 3, 4, 3),
            "beyond axis 3 of bottom 0 [2, 3, 6, 5]; bottom 1 is [2, 3, 4, 3], so the offset",
        ),
        ("offset: 4294967295", (2, 3, 4, 3), "so the offset can be 0 to 2"),
        ("", (2, 3, 7, 3), "bottom 1 [2, 3, 7, 3] is larger than bottom 0 [2, 3, 6, 5] in axis 2; crop from axis 3 on"),
        ("axis: 1", (2, 4, 4, 3), "is larger than bottom 0 [2, 3, 6, 5] in axis 1; crop from axis 2 on"),
        ("", (2, 3, 6, 7), "in axis 3; swap the bottoms"),
        ("", (2, 3, 4, 7), "in axis 3; make bottom 1 smaller"),
        (
            "offset: [1, 1, 1]",
            (2, 3, 4, 3),
            "has 3 offset entries for the 2 axes from axis 2 on of bottom [2, 3, 6, 5]",
        ),
        ("axis: 1 offset: [1, 1]", (2, 3, 4, 3), "has 2 offset entries for the 3 axes from axis 1 on"),
        ("axis: 4", (2, 3, 4, 3), "axis 4 is outside its 4-axis bottom"),
        ("", (2, 3, 4), "bottom 1 [2, 3, 4] has 3 axes; it gives the sizes for bottom 0 [2, 3, 6, 5], so it needs 4"),
    ],
)
def test_bad_crop(param: str, reference: tuple[int, ...], message: str) -> None:
    assert message in layer_error("Crop", f"crop_param {{ {param} }}", (2, 3, 6, 5), reference)


# -- Filter


@settings(max_examples=40)
@given(st.data())
def test_filter(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 5))
    rests = data.draw(st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=1, max_size=3))
    # any value but zero selects, not-a-number included
    selector = data.draw(
        st.lists(st.sampled_from([0.0, -0.0, 1.0, -2.0, 0.5, float("nan")]), min_size=rows, max_size=rows)
    )
    trailing = data.draw(st.integers(0, 3))
    blobs = [noise(rows, *rest, seed=index) for index, rest in enumerate(rests)]
    net = layer_net("Filter", "", *(x.shape for x in blobs), (rows, *[1] * trailing), tops=len(blobs))
    assert [net.shapes[f"y{i}"] for i in range(len(blobs))] == [x.shape for x in blobs]
    tops = run(net, *blobs, torch.tensor(selector).reshape(rows, *[1] * trailing))
    for x, y in zip(blobs, tops, strict=True):
        np.testing.assert_array_equal(y, x.numpy()[np.array(selector) != 0])


def test_filter_gradient() -> None:
    net = layer_net("Filter", "", (4, 2), (4, 3), (4,), tops=2)
    selector = torch.tensor([0.0, 1, 1, 0]).double().requires_grad_()
    a, b = noise(4, 2).requires_grad_(), noise(4, 3).requires_grad_()
    tops = run(net.double(), a, b, selector)
    (tops[0].sum() + 2 * tops[1].sum()).backward()
    assert a.grad.tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]
    assert b.grad[:, 0].tolist() == [0, 2, 2, 0]
    assert selector.grad is None
    for top in range(2):
        assert gradcheck(net, a, b, selector.detach(), top=top)


FILTERED = """
layer { name: "in" type: "Input" top: "x" top: "label" top: "keep"
  input_param { shape { dim: 4 dim: 3 dim: 5 dim: 5 } shape { dim: 4 } shape { dim: 4 } } }
layer { name: "filter" type: "Filter" bottom: "x" bottom: "label" bottom: "keep" top: "fx" top: "fl" }
layer { name: "conv" type: "Convolution" bottom: "fx" top: "c"
  convolution_param { num_output: 2 kernel_size: 2 weight_filler { type: "xavier" } } }
layer { name: "pool" type: "Pooling" bottom: "c" top: "p" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "flat" type: "Reshape" bottom: "p" top: "r" reshape_param { shape { dim: 0 dim: -1 } } }
layer { name: "ip" type: "InnerProduct" bottom: "r" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "fl" top: "loss" }
"""


@pytest.mark.parametrize("keep", [(1, 0, 1, 1), (0, 0, 0, 0), (1, 1, 1, 1)], ids=["some", "none", "all"])
def test_a_net_runs_on_the_rows_that_a_filter_leaves(keep: tuple[int, ...]) -> None:
    net = load_net(FILTERED, phase="TRAIN", seed=0)
    rows = [index for index, flag in enumerate(keep) if flag]
    x, label = noise(4, 3, 5, 5).float().requires_grad_(), torch.tensor([0.0, 1, 2, 0])
    loss, _ = net.forward_loss({"x": x, "label": label, "keep": torch.tensor(keep).float()})
    loss.backward()
    gradient = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    by_hand = net(x=x.detach()[rows], label=label[rows], keep=torch.ones(len(rows)))["loss"]
    by_hand.backward()
    torch.testing.assert_close(loss, by_hand)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad)
    assert (x.grad.flatten(1).abs().sum(1) > 0).tolist() == [bool(flag) for flag in keep]


@pytest.mark.parametrize(
    ("shapes", "tops", "message"),
    [
        (
            ((4, 3), (4, 2)),
            1,
            "selector (the last bottom) has shape [4, 2]; expected one value per row, as [N] or [N, 1]",
        ),
        (((4, 3), ()), 1, "selector (the last bottom) has shape []"),
        (((4, 3), (5,)), 1, "bottom 0 has shape [4, 3], but the selector (the last bottom) has 5 rows; make axis 0"),
        (((4,), (3,), (4,)), 2, "bottom 1 has shape [3]"),
        (((), (4,)), 1, "bottom 0 has shape []"),
        (((4, 3), (4,)), 2, "has 2 tops for 2 bottoms; give one per bottom but the last, the selector"),
        (((4, 3), (4, 3), (4,)), 1, "has 1 tops for 3 bottoms"),
        (((4,),), 1, "has 1 bottom blobs; type Filter takes at least 2"),
    ],
)
def test_bad_filter(shapes: tuple[tuple[int, ...], ...], tops: int, message: str) -> None:
    assert message in layer_error("Filter", "", *shapes, tops=tops)


def test_filter_checks_the_rows_fed() -> None:
    net = layer_net("Filter", "", (4, 3), (4,))
    with pytest.raises(ForceregError, match=r"layer 'l': bottom 0 has shape \[3, 3\], but the selector .* has 2 rows"):
        run(net, torch.ones(3, 3), torch.ones(2))


def test_an_output_of_changing_shape_has_no_mean() -> None:
    net = layer_net("Filter", "", (4, 3), (4,))
    batches = [{"x0": torch.ones(4, 3), "x1": torch.tensor(keep)} for keep in ([1.0, 1, 0, 0], [1.0, 0, 0, 0])]
    message = r"output 'y0' has shape \[2, 3\], then \[1, 3\] in batch 2, so its elements have no mean; .* Silence"
    with pytest.raises(ForceregError, match=message):
        score(net, 2, inputs=batches.__getitem__)


# -- BatchReindex


@settings(max_examples=40)
@given(st.data())
def test_batchreindex(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    rows = data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=6))
    x = noise(*shape)
    (y,) = apply("BatchReindex", "", x, torch.tensor(rows).double())
    np.testing.assert_array_equal(y, x.numpy()[np.array(rows, dtype=int)])


def test_batchreindex_gradient_adds_up() -> None:
    net = layer_net("BatchReindex", "", (3, 2), (4,))
    x, rows = noise(3, 2).requires_grad_(), torch.tensor([2.0, 0, 2, 2]).double().requires_grad_()
    (y,) = run(net.double(), x, rows)
    y.sum().backward()
    assert x.grad.tolist() == [[1, 1], [0, 0], [3, 3]]
    assert rows.grad is None
    assert gradcheck(net, x, rows.detach())


@pytest.mark.parametrize("row", [3.0, -1.0, -0.5, float("nan"), float("inf")])
def test_row_numbers_are_checked(row: float) -> None:
    net = layer_net("BatchReindex", "", (3, 2), (2,))
    with pytest.raises(
        ForceregError, match=f"layer 'l': bottom 1 lists row {row:g}; bottom 0 has 3 rows, expected 0 to 2"
    ):
        run(net, torch.ones(3, 2), torch.tensor([0.0, row]))


def test_there_may_be_no_row_to_pick_from() -> None:
    net = layer_net("BatchReindex", "", (3, 2), (2,))
    assert run(net, torch.ones(0, 2), torch.ones(0))[0].shape == (0, 2)
    with pytest.raises(ForceregError, match="bottom 0 has 0 rows, so the list must be empty"):
        run(net, torch.ones(0, 2), torch.zeros(1))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            ((3, 2), (2, 1)),
            "bottom 1 has shape [2, 1]; expected one axis of row numbers, put a Flatten with axis: 0 in",
        ),
        (((3, 2), ()), "bottom 1 has shape []"),
        (((), (2,)), "bottom 0 has no axes; expected rows along axis 0"),
    ],
)
def test_bad_batchreindex(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    assert message in layer_error("BatchReindex", "", *shapes)
