"""Concat, Eltwise, Flatten, Split and Input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forcereg.errors import ForceregError
from forcereg.load import load_net
from tests.layers.nets import apply, gradcheck, layer_error, layer_net, noise, run


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(-3, 2))
def test_concat(sizes: list[int], axis: int) -> None:
    inputs = []
    for i, size in enumerate(sizes):
        shape = [2, 3, 4]
        shape[axis] = size
        inputs.append(noise(*shape, seed=i))
    (y,) = apply("Concat", f"concat_param {{ axis: {axis} }}", *inputs)
    start = 0
    for x in inputs:
        torch.testing.assert_close(y.narrow(axis, start, x.shape[axis]), x, rtol=0, atol=0)
        start += x.shape[axis]
    assert y.shape[axis] == start


def test_concat_legacy_axis_and_gradient() -> None:
    net = layer_net("Concat", "concat_param { concat_dim: 0 }", (2, 3), (1, 3))
    assert net.shapes["y0"] == (3, 3)
    assert gradcheck(net, noise(2, 3).requires_grad_(), noise(1, 3).requires_grad_())


@pytest.mark.parametrize(
    ("param", "shapes", "message"),
    [
        ("", ((2, 3), (3, 3)), "bottoms [2, 3], [3, 3] differ outside axis 1"),
        ("", ((2, 3), (2, 3, 1)), "differ outside axis 1"),
        ("axis: 2", ((2, 3),), "axis 2 is outside its 2-axis bottom"),
        ("axis: 1 concat_dim: 1", ((2, 3),), "both axis and concat_dim"),
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
        ("", ((2, 3), (3, 2)), "bottoms [2, 3], [3, 2] must have one shape"),
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


@pytest.mark.parametrize(
    ("param", "message"),
    [("axis: 2", "axis 2 is outside"), ("axis: 1 end_axis: 0", "end_axis 0 comes before axis 1")],
)
def test_bad_flatten(param: str, message: str) -> None:
    assert message in layer_error("Flatten", f"flatten_param {{ {param} }}", (2, 3))


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
