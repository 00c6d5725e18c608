"""Concat, Eltwise, Flatten, Reshape, Tile, Split, Input and Parameter."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from tests.layers.nets import apply, gradcheck, layer_error, layer_net, noise, run

SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@settings(max_examples=40)
@given(st.data())
def test_concat(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    blobs = [noise(*shape[: axis % len(shape)], n, *shape[axis % len(shape) + 1 :], seed=n) for n in sizes]
    (y,) = apply("Concat", f"concat_param {{ axis: {axis} }}", *blobs)
    np.testing.assert_array_equal(y, np.concatenate([x.numpy() for x in blobs], axis))


def test_concat_legacy_axis_and_gradient() -> None:
    net = layer_net("Concat", "concat_param { concat_dim: 0 }", (2, 3), (1, 3))
    assert net.shapes["y0"] == (3, 3)
    assert gradcheck(net, noise(2, 3).requires_grad_(), noise(1, 3).requires_grad_())


@pytest.mark.parametrize(
    ("param", "shapes", "message"),
    [
        ("", ((2, 3), (3, 3)), "bottoms [2, 3], [3, 3] differ outside axis 1"),
        (
            "",
            ((2, 3), (2, 3, 1)),
            "differ outside axis 1; give all the same number of axes, by a Flatten or Reshape in",
        ),
        ("", ((2, 3), (3, 3)), "outside axis 1; make axis 0, the batch, equal, or join them along axis 0"),
        (
            "axis: 0",
            ((2, 3, 4), (2, 5, 4)),
            "give the layers that make them the same num_output, or join them along axis 1",
        ),
        (
            "",
            ((2, 3, 4, 4), (2, 5, 5, 4)),
            "make axis 2 of what the layers that make them give equal, by their kernel_size",
        ),
        ("", ((2, 3, 4, 4), (2, 5, 5, 4)), "stride and pad, or join them along axis 2"),
        ("", ((2, 3, 4, 4), (3, 5, 5, 4)), "; make axes 0, 2 of what the layers that make them give equal"),
        ("axis: 2", ((2, 3),), "axis 2 is outside its 2-axis bottom"),
        ("axis: 1 concat_dim: 1", ((2, 3),), "both axis and concat_dim"),
        ("concat_dim: 2", ((2, 3),), "axis 2 is outside its 2-axis bottom"),
        ("concat_dim: 4294967295", ((2, 3),), "axis 4294967295 is outside"),
    ],
)
def test_bad_concat(param: str, shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    assert message in layer_error("Concat", f"concat_param {{ {param} }}", *shapes)


# -- Eltwise


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("param", "function"),
    [
        ("", lambda *x: sum(x)),
        ("coeff: [2, -0.5, 1]", lambda *x: sum(c * t for c, t in zip((2, -0.5, 1), x, strict=False))),
        ("operation: PROD", lambda *x: torch.stack(x).prod(0)),
        ("operation: MAX", lambda *x: torch.stack(x).amax(0)),
    ],
    ids=["SUM", "coeff", "PROD", "MAX"],
)
def test_eltwise(param: str, function, count: int) -> None:
    if param.startswith("coeff") and count == 2:
        param = "coeff: [2, -0.5]"
    inputs = [noise(2, 3, seed=i).requires_grad_() for i in range(count)]
    net = layer_net("Eltwise", f"eltwise_param {{ {param} }}", *[(2, 3)] * count)
    torch.testing.assert_close(run(net.double(), *inputs)[0], function(*inputs))
    assert gradcheck(net, *inputs)


@settings(max_examples=40)
@given(st.data())
def test_eltwise_of_any_shape(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), max_size=4))
    blobs = [noise(*shape, seed=seed) for seed in range(data.draw(st.integers(2, 4)))]
    arrays = [x.numpy() for x in blobs]
    kind = data.draw(st.sampled_from(["SUM", "PROD", "MAX"]))
    coeff = data.draw(st.lists(st.sampled_from([-2.0, 0.5, 1.0]), min_size=len(blobs), max_size=len(blobs)))
    coeff = coeff if kind == "SUM" and data.draw(st.booleans()) else []
    (y,) = apply("Eltwise", f"eltwise_param {{ operation: {kind} coeff: {coeff} }}", *blobs)
    expected = {
        "SUM": lambda: sum(c * x for c, x in zip(coeff or [1.0] * len(arrays), arrays, strict=True)),
        "PROD": lambda: np.prod(arrays, axis=0),
        "MAX": lambda: np.max(arrays, axis=0),
    }
    np.testing.assert_allclose(y, expected[kind](), rtol=1e-12, atol=1e-12)


def test_eltwise_does_not_broadcast_what_is_fed() -> None:
    net = layer_net("Eltwise", "", (2, 3), (2, 3))
    with pytest.raises(
        ForceregError, match=r"layer 'l': bottoms \[2, 3\], \[1, 3\] must have one shape; make axis 0, the batch, equal"
    ):
        run(net, torch.ones(2, 3), torch.ones(1, 3))


@pytest.mark.parametrize("stable", ["true", "false"])
def test_product_gradient_is_right_at_zero(stable: str) -> None:
    a, b = torch.tensor([0.0, 0.0, 2.0]).requires_grad_(), torch.tensor([3.0, 0.0, 0.0]).requires_grad_()
    (y,) = apply("Eltwise", f"eltwise_param {{ operation: PROD stable_prod_grad: {stable} }}", a, b)
    y.sum().backward()
    assert (a.grad.tolist(), b.grad.tolist()) == ([3, 0, 0], [0, 0, 2])


def test_max_ties() -> None:
    """The second bottom beats the first; a later one must be strictly greater."""
    bottoms = [torch.ones(2).requires_grad_() for _ in range(3)]
    (y,) = apply("Eltwise", "eltwise_param { operation: MAX }", *bottoms)
    y.sum().backward()
    assert [b.grad.tolist() for b in bottoms] == [[0, 0], [1, 1], [0, 0]]


def test_eltwise_max_ignores_coeff() -> None:
    net = layer_net("Eltwise", "eltwise_param { operation: MAX coeff: [-3, 5] }", (3,), (3,))
    (y,) = run(net, torch.tensor([1.0, 2, 3]), torch.tensor([3.0, 2, 1]))
    assert y.tolist() == [3, 2, 3]


@pytest.mark.parametrize(
    ("param", "shapes", "message"),
    [
        ("", ((2, 3), (3, 2)), "bottoms [2, 3], [3, 2] must have one shape; make axes 0, 1 of what"),
        ("", ((2, 3), (2, 4)), "must have one shape; give the layers that make them the same num_output"),
        (
            "",
            ((2, 3, 4, 4), (2, 3, 5, 5)),
            "one shape; make axes 2, 3 of what the layers that make them give equal, by their",
        ),
        ("", ((2, 3, 4, 4), (2, 3)), "by a Flatten or Reshape in front, or use Scale or Bias to spread a smaller blob"),
        ("", ((2, 3),), "has 1 bottom blobs; type Eltwise takes at least 2"),
        ("operation: PROD coeff: 1 coeff: 1", ((2, 3), (2, 3)), "coeff does not go with operation PROD"),
        ("coeff: 1", ((2, 3), (2, 3)), "has 1 coeff entries for 2 bottoms"),
        ("operation: MAX coeff: 1", ((2, 3), (2, 3)), "has 1 coeff entries for 2 bottoms"),
    ],
)
def test_bad_eltwise(param: str, shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    assert message in layer_error("Eltwise", f"eltwise_param {{ {param} }}", *shapes)


# -- Flatten


@pytest.mark.parametrize(
    ("param", "out"),
    [
        ("", (2, 60)),
        ("axis: 0", (120,)),
        ("axis: 2", (2, 3, 20)),
        ("axis: 1 end_axis: 2", (2, 12, 5)),
        ("axis: -2 end_axis: -1", (2, 3, 20)),
        ("axis: 3", (2, 3, 4, 5)),
    ],
)
def test_flatten(param: str, out: tuple[int, ...]) -> None:
    net = layer_net("Flatten", f"flatten_param {{ {param} }}", (2, 3, 4, 5))
    x = noise(2, 3, 4, 5)
    (y,) = run(net, x)
    assert net.shapes["y0"] == tuple(y.shape) == out
    assert torch.equal(y.reshape(-1), x.reshape(-1))


@settings(max_examples=40)
@given(st.data())
def test_flatten_of_any_shape(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    start = data.draw(st.integers(0, len(shape) - 1))
    end = data.draw(st.integers(start, len(shape) - 1))
    axis, end_axis = (data.draw(st.sampled_from([i, i - len(shape)])) for i in (start, end))
    x = noise(*shape)
    (y,) = apply("Flatten", f"flatten_param {{ axis: {axis} end_axis: {end_axis} }}", x)
    expected = x.numpy().reshape(*shape[:start], prod(shape[start : end + 1]), *shape[end + 1 :])
    np.testing.assert_array_equal(y, expected)


def test_flatten_gradient() -> None:
    net = layer_net("Flatten", "", (2, 3, 2))
    assert gradcheck(net, noise(2, 3, 2).requires_grad_())


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ("axis: 2", "axis 2 is outside"),
        ("end_axis: 2", "end_axis 2 is outside its 2-axis bottom; expected -2 to 1"),
        ("axis: 1 end_axis: 0", "end_axis 0 comes before axis 1 of bottom [2, 3]; name the first axis and the last"),
    ],
)
def test_bad_flatten(param: str, message: str) -> None:
    assert message in layer_error("Flatten", f"flatten_param {{ {param} }}", (2, 3))


# -- Reshape


@pytest.mark.parametrize(
    ("param", "bottom", "top"),
    [
        ("shape { dim: 0 dim: 0 dim: 8 }", (2, 3, 2, 4), (2, 3, 8)),
        ("shape { dim: -1 }", (2, 3), (6,)),
        ("shape { dim: 2 dim: 2 } axis: 1 num_axes: 1", (3, 4, 5), (3, 2, 2, 5)),
        ("shape { dim: 2 dim: 2 } axis: -2 num_axes: 1", (3, 5, 4), (3, 5, 2, 2)),
        ("shape { dim: 1 } axis: 0 num_axes: 0", (3, 4), (1, 3, 4)),
        ("shape { dim: 1 } axis: 2 num_axes: 0", (3, 4), (3, 4, 1)),
        ("shape { dim: 1 dim: 1 } axis: -1 num_axes: 0", (3, 4), (3, 4, 1, 1)),
        ("shape { dim: 1 } axis: -2 num_axes: 0", (3, 4), (3, 1, 4)),
        ("shape { } axis: 1 num_axes: 1", (3, 1, 4), (3, 4)),
        ("shape { }", (1, 1), ()),
        ("shape { dim: 1 dim: -1 }", (), (1, 1)),
        ("shape { dim: -1 dim: 0 } axis: 1", (2, 6, 3), (2, 6, 3)),
        ("shape { dim: 0 dim: 0 } num_axes: 1", (2, 1, 3), (2, 1, 1, 3)),  # the second 0 copies axis 1, which stays
        ("shape { dim: 1 dim: 0 dim: 2 } num_axes: 1", (4, 2, 3), (1, 2, 2, 2, 3)),
    ],
)
def test_reshape(param: str, bottom: tuple[int, ...], top: tuple[int, ...]) -> None:
    net = layer_net("Reshape", f"reshape_param {{ {param} }}", bottom)
    x = noise(*bottom)
    (y,) = run(net, x)
    assert net.shapes["y0"] == tuple(y.shape) == top
    assert torch.equal(y.reshape(-1), x.reshape(-1))


@settings(max_examples=60)
@given(st.data())
def test_reshape_of_any_shape(data: st.DataObject) -> None:
    """Any factorisation of any span of axes, some dims written as 0 where they are the bottom's, one as -1."""
    shape = data.draw(SHAPES)
    start = data.draw(st.integers(0, len(shape)))
    end = data.draw(st.integers(start, len(shape)))
    left, dims = prod(shape[start:end]), []
    while left > 1 or data.draw(st.booleans()):
        dims.append(data.draw(st.sampled_from([n for n in range(1, left + 1) if left % n == 0])))
        left //= dims[-1]
    top = (*shape[:start], *dims, *shape[end:])
    written = list(dims)
    for index, dim in enumerate(dims):
        if start + index < len(shape) and dim == shape[start + index] and data.draw(st.booleans()):
            written[index] = 0
    if dims and data.draw(st.booleans()):
        written[data.draw(st.integers(0, len(dims) - 1))] = -1
    axis = data.draw(st.sampled_from([start, start - len(shape) - 1]))
    num_axes = -1 if end == len(shape) and data.draw(st.booleans()) else end - start
    x = noise(*shape)
    text = " ".join(f"dim: {dim}" for dim in written)
    (y,) = apply("Reshape", f"reshape_param {{ shape {{ {text} }} axis: {axis} num_axes: {num_axes} }}", x)
    np.testing.assert_array_equal(y, x.numpy().reshape(top))


def test_reshape_takes_the_dims_of_what_is_fed() -> None:
    net = layer_net("Reshape", "reshape_param { shape { dim: 0 dim: -1 dim: 2 } }", (4, 6, 2))
    for rows in (4, 1, 0):  # no rows: the -1 is still known
        assert run(net, torch.ones(rows, 3, 4))[0].shape == (rows, 6, 2)
    with pytest.raises(ForceregError, match=r"layer 'l': cannot infer the -1 in shape \[0, -1, 2\]: the 9 values"):
        run(net, torch.ones(1, 3, 3))


def test_reshape_of_channels_last_and_its_gradient() -> None:
    net = layer_net("Reshape", "reshape_param { shape { dim: 0 dim: -1 } }", (2, 3, 2, 2))
    x = noise(2, 3, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert torch.equal(run(net.double(), x)[0], x.detach().contiguous().reshape(2, 12))
    assert gradcheck(net, x)


@pytest.mark.parametrize(
    ("param", "message"),
    [
        (
            "shape { dim: 7 }",
            "shape [7] makes [7], 7 values, of bottom [2, 3], 6 values; make the counts equal, or let",
        ),
        ("", "shape [] makes [], 1 values, of bottom [2, 3], 6 values"),
        ("shape { dim: 4 dim: 4 }", "16 values, of bottom [2, 3], 6 values; make the counts equal"),
        ("shape { dim: -1 dim: -1 }", "shape [-1, -1] has 2 dims of -1; only one can be inferred"),
        ("shape { dim: -2 }", "shape [-2] has a negative dim; use sizes, 0 to copy or one -1 to infer"),
        ("shape { dim: -1 dim: 4 }", "cannot infer the -1 in shape [-1, 4]: the 6 values in axes [2, 3] of bottom"),
        (
            "shape { dim: 2 dim: 3 dim: 0 }",
            "dim 2 of shape [2, 3, 0] is 0, to be copied from axis 2, which bottom [2, 3] lacks; give its size",
        ),
        ("shape { dim: 0 dim: 0 } axis: 1", "dim 1 of shape [0, 0] is 0, to be copied from axis 2"),
        ("shape { dim: 6 } axis: 3", "axis 3 is outside bottom [2, 3]; expected -3 to 2"),
        ("shape { dim: 6 } axis: -4", "axis -4 is outside bottom [2, 3]; expected -3 to 2"),
        ("shape { dim: 6 } num_axes: -2", "num_axes is -2; expected the number of axes to replace, or -1 for all"),
        (
            "shape { dim: 6 } axis: 1 num_axes: 2",
            "num_axes 2 from axis 1 on is more than bottom [2, 3] has; expected at",
        ),
        ("shape { dim: 4611686018427387904 dim: 4 }", "18446744073709551616 values, of bottom [2, 3]"),
    ],
)
def test_bad_reshape(param: str, message: str) -> None:
    assert message in layer_error("Reshape", f"reshape_param {{ {param} }}", (2, 3))


# -- Tile


@settings(max_examples=40)
@given(st.data())
def test_tile(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    tiles = data.draw(st.integers(1, 4))
    x = noise(*shape)
    (y,) = apply("Tile", f"tile_param {{ axis: {axis} tiles: {tiles} }}", x)
    np.testing.assert_array_equal(y, np.concatenate([x.numpy()] * tiles, axis))


def test_tile_gradient() -> None:
    net = layer_net("Tile", "tile_param { tiles: 3 }", (2, 3, 2))
    assert net.shapes["y0"] == (2, 9, 2)
    assert gradcheck(net, noise(2, 3, 2).requires_grad_())


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ("", "tiles is 0; expected 1 or more, give tile_param { tiles: 2 }"),
        ("tiles: -1", "tiles is -1; expected 1 or more"),
        ("tiles: 2 axis: 2", "axis 2 is outside its 2-axis bottom"),
        ("tiles: 2147483647", "top 'y0' would have shape [2, 6442450941]"),
    ],
)
def test_bad_tile(param: str, message: str) -> None:
    assert message in layer_error("Tile", f"tile_param {{ {param} }}", (2, 3))


# -- Parameter


def test_parameter_is_a_learnable_blob_of_zeros() -> None:
    net = layer_net("Parameter", "param { lr_mult: 2 } parameter_param { shape { dim: 2 dim: 3 } }")
    (learnable,) = net.learnable
    assert (learnable.layer, learnable.index, learnable.lr_mult) == ("l", 0, 2)
    (y,) = run(net)
    assert torch.equal(y, torch.zeros(2, 3))
    (y * torch.arange(6.0).reshape(2, 3)).sum().backward()
    assert learnable.blob.grad.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert gradcheck(net)


def test_a_parameter_may_be_a_scalar() -> None:
    assert layer_net("Parameter", "parameter_param { shape { } }").params["l"][0].shape == ()


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ("", "has no shape; give parameter_param { shape { dim: ... } }"),
        ("parameter_param { shape { dim: -2 } }", "blob 'weight' would have shape [-2]"),
        ("parameter_param { shape { dim: 65536 dim: 65536 } }", "4,294,967,296 values"),
    ],
)
def test_bad_parameter(param: str, message: str) -> None:
    assert message in layer_error("Parameter", param)


# -- Split


def test_split_adds_the_gradients() -> None:
    x = noise(2, 3).requires_grad_()
    tops = run(layer_net("Split", "", (2, 3), tops=3), x)
    sum((i + 1) * top.sum() for i, top in enumerate(tops)).backward()
    torch.testing.assert_close(x.grad, torch.full((2, 3), 6.0).double())


# -- Input


def inputs(shapes: str, tops: str = 'top: "a" top: "b"') -> str:
    return f'layer {{ name: "in" type: "Input" {tops} input_param {{ {shapes} }} }}'


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ("shape { dim: 2 dim: 3 }", {"a": (2, 3), "b": (2, 3)}),
        ("shape { dim: 2 dim: 3 } shape { dim: 4 }", {"a": (2, 3), "b": (4,)}),
        ("shape { }", {"a": (), "b": ()}),
    ],
)
def test_input_shapes(shapes: str, expected: dict[str, tuple[int, ...]]) -> None:
    net = load_net(inputs(shapes))
    assert net.shapes == expected and net.inputs == ("a", "b")


@pytest.mark.parametrize("shapes", ["", "shape { dim: 1 } shape { dim: 1 } shape { dim: 1 }"])
def test_wrong_number_of_input_shapes(shapes: str) -> None:
    with pytest.raises(ForceregError, match=r"<text>:1: layer 'in': has \d shapes for 2 tops"):
        load_net(inputs(shapes))


@pytest.mark.parametrize("shapes", ["", "shape { dim: 1 }"])
def test_given_shapes_replace_those_of_the_file(shapes: str) -> None:
    net = load_net(inputs(shapes), input_shapes={"a": (2, 3), "b": (4,)})
    assert net.shapes == {"a": (2, 3), "b": (4,)}
    assert net(a=torch.ones(2, 3), b=torch.ones(4)).keys() == {"a", "b"}
