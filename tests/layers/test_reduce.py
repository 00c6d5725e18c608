"""ArgMax and Reduction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.layers.nets import apply, gradcheck, layer_error, layer_net, noise, run

# -- ArgMax


def ranked(row: np.ndarray, k: int) -> list[int]:
    """The places of the k largest values; among equals the later place first."""
    return sorted(range(len(row)), key=lambda i: (row[i], i), reverse=True)[:k]


def argmax(x: Tensor, param: str) -> Tensor:
    return apply("ArgMax", f"argmax_param {{ {param} }}", x)[0]


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=5),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
    st.data(),
)
def test_argmax_of_items(shape: list[int], dtype: torch.dtype, values: bool, data: st.DataObject) -> None:
    length = math.prod(shape[1:])
    k = data.draw(st.integers(1, length))
    x = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 3, shape).astype(np.float64)
    y = argmax(torch.from_numpy(x).to(dtype), f"top_k: {k} out_max_val: {str(values).lower()}")
    rows = x.reshape(shape[0], length)
    places = np.array([ranked(row, k) for row in rows])
    expected = [places, np.take_along_axis(rows, places, 1)] if values else [places]
    assert y.dtype == dtype and y.shape == (shape[0], len(expected), k, *[1] * (len(shape) - 3))
    np.testing.assert_array_equal(y.reshape(shape[0], -1, k), np.stack(expected, 1))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.booleans(), st.data())
def test_argmax_along_an_axis(shape: list[int], values: bool, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    k = data.draw(st.integers(1, shape[axis]))
    x = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 3, shape).astype(np.float32)
    y = argmax(torch.from_numpy(x), f"top_k: {k} axis: {axis} out_max_val: {str(values).lower()}")
    places = np.apply_along_axis(lambda row: np.array(ranked(row, k)), axis, x)
    np.testing.assert_array_equal(y, np.take_along_axis(x, places, axis) if values else places)


def test_argmax_takes_no_sign_of_zero_for_a_difference() -> None:
    assert argmax(torch.tensor([[0.0, -0.0, -1.0]]), "").item() == 1


@pytest.mark.parametrize("param", ["", "top_k: 2 out_max_val: true", "axis: 1"])
def test_argmax_of_no_items(param: str) -> None:
    y = argmax(torch.zeros(0, 3, 2), param)
    assert y.shape[0] == 0 and y.shape[1:] == argmax(torch.zeros(1, 3, 2), param).shape[1:]


def test_argmax_has_no_gradient() -> None:
    x = noise(2, 3).requires_grad_()
    assert not argmax(x, "out_max_val: true axis: 1").requires_grad


@pytest.mark.parametrize(
    ("param", "shape", "message"),
    [
        ("top_k: 0", (2, 3, 2), "top_k is 0; expected 1 to 6, the number of values it picks from"),
        ("top_k: 7", (2, 3, 2), "top_k is 7; expected 1 to 6"),
        ("top_k: 2", (4,), "top_k is 2; expected 1 to 1"),
        ("top_k: 4 axis: 1", (2, 3, 9), "top_k is 4; expected 1 to 3"),
        ("axis: 3", (2, 3, 9), "axis 3 is outside its 3-axis bottom"),
        ("", (), "bottom has no axes; expected items along axis 0"),
    ],
)
def test_bad_argmax(param: str, shape: tuple[int, ...], message: str) -> None:
    assert message in layer_error("ArgMax", f"argmax_param {{ {param} }}", shape)


# -- Reduction

FORMULAS = {"SUM": np.sum, "ASUM": lambda x, a: np.abs(x).sum(a), "SUMSQ": lambda x, a: (x * x).sum(a), "MEAN": np.mean}


@pytest.mark.parametrize("operation", [None, *FORMULAS])
@pytest.mark.parametrize(("axis", "coeff"), [(None, None), (1, 0.5), (-1, -2), (2, 0), (-3, 1)])
def test_reduction(operation: str | None, axis: int | None, coeff: float | None) -> None:
    given_fields = {"operation": operation, "axis": axis, "coeff": coeff}
    param = " ".join(f"{name}: {value}" for name, value in given_fields.items() if value is not None)
    net = layer_net("Reduction", f"reduction_param {{ {param} }}", (2, 3, 4)).double()
    x = noise(2, 3, 4)
    (y,) = run(net, x)
    first = (axis or 0) % 3
    expected = FORMULAS[operation or "SUM"](x.numpy(), tuple(range(first, 3))) * (1 if coeff is None else coeff)
    assert y.shape == x.shape[:first] == net.shapes["y0"]
    np.testing.assert_allclose(y, expected, atol=1e-14)
    assert x.abs().min() > 1e-3
    assert gradcheck(net, x.requires_grad_())


def test_asum_has_gradient_zero_at_zero() -> None:
    x = torch.tensor([[-1.0, 0.0, 2.0]], requires_grad=True)
    apply("Reduction", "reduction_param { operation: ASUM coeff: 3 }", x)[0].backward()
    assert x.grad.tolist() == [[-3, 0, 3]]


@pytest.mark.parametrize(("shape", "axis"), [((2, 3), 2), ((2, 3), -3), ((), 0)])
def test_reduction_axis_out_of_range(shape: tuple[int, ...], axis: int) -> None:
    assert f"axis {axis} is outside" in layer_error("Reduction", f"reduction_param {{ axis: {axis} }}", shape)
