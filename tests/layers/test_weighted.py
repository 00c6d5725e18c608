"""Convolution, Deconvolution and InnerProduct against direct sums, and their checks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.layers.nets import gradcheck, layer_error, layer_net, noise, run

Sizes = tuple[int, ...]


def listed(name: str, values: Sizes) -> str:
    return " ".join(f"{name}: {v}" for v in values)


def direct_convolution(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: Sizes, pad: Sizes, dilation: Sizes, group: int
) -> np.ndarray:
    """Cross-correlation by its definition, one output position and group at a time."""
    kernel = weight.shape[2:]
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in pad)])
    size = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)]
    inputs, outputs = x.shape[1] // group, weight.shape[0] // group
    y = np.zeros((x.shape[0], weight.shape[0], *size))
    for g, position in itertools.product(range(group), np.ndindex(*size)):
        window = tuple(
            slice(i * s, i * s + d * (k - 1) + 1, d)
            for i, s, d, k in zip(position, stride, dilation, kernel, strict=True)
        )
        patch = x[:, g * inputs : (g + 1) * inputs][(slice(None), slice(None), *window)]
        rows = slice(g * outputs, (g + 1) * outputs)
        axes = list(range(1, patch.ndim))
        y[:, rows][(slice(None), slice(None), *position)] = np.tensordot(patch, weight[rows], (axes, axes))
    return y + bias.reshape(-1, *(1 for _ in size))


@st.composite
def geometries(draw: Any) -> dict[str, Any]:
    spatial = draw(st.integers(1, 3))
    sizes = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(spatial))  # noqa: E731
    kernel, dilation, pad = sizes(1, 3), sizes(1, 2), sizes(0, 3)
    extra = sizes(0, 3)
    size = tuple(max(1, d * (k - 1) + 1 - 2 * p + e) for k, d, p, e in zip(kernel, dilation, pad, extra, strict=True))
    return {
        "kernel": kernel,
        "dilation": dilation,
        "pad": pad,
        "stride": sizes(1, 3),
        "size": size,
        "group": draw(st.integers(1, 3)),
        "per_group": draw(st.integers(1, 2)),
        "out_per_group": draw(st.integers(1, 2)),
    }


@settings(max_examples=60, deadline=None, derandomize=True)
@given(geometries())
def test_convolution_is_the_direct_sum(g: dict[str, Any]) -> None:
    param = (
        f"convolution_param {{ num_output: {g['group'] * g['out_per_group']} group: {g['group']} "
        f"{listed('kernel_size', g['kernel'])} {listed('stride', g['stride'])} {listed('pad', g['pad'])} "
        f"{listed('dilation', g['dilation'])} }}"
    )
    shape = (2, g["group"] * g["per_group"], *g["size"])
    net = layer_net("Convolution", param, shape).double()
    weight, bias = net.params["l"]
    with torch.no_grad():
        weight.copy_(noise(*weight.shape, seed=1))
        bias.copy_(noise(*bias.shape, seed=2))
    x = noise(*shape)
    (y,) = run(net, x)
    assert tuple(y.shape) == net.shapes["y0"]
    expected = direct_convolution(
        x.numpy(),
        weight.detach().numpy(),
        bias.detach().numpy(),
        g["stride"],
        g["pad"],
        g["dilation"],
        g["group"],
    )
    np.testing.assert_allclose(y.detach().numpy(), expected, atol=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(geometries())
def test_deconvolution_is_the_convolutions_transpose(g: dict[str, Any]) -> None:
    """<conv(x), y> = <x, deconv(y)> where both have the same weights and conv loses no input at the end."""
    settings_text = (
        f"group: {g['group']} bias_term: false {listed('kernel_size', g['kernel'])} "
        f"{listed('stride', g['stride'])} {listed('pad', g['pad'])} {listed('dilation', g['dilation'])}"
    )
    inner, outer = g["group"] * g["out_per_group"], g["group"] * g["per_group"]
    small = (1, inner, *(3 for _ in g["size"]))
    extent = [d * (k - 1) + 1 for k, d in zip(g["kernel"], g["dilation"], strict=True)]
    size = [2 * s + e - 2 * p for s, e, p in zip(g["stride"], extent, g["pad"], strict=True)]
    if min(size) < 1:
        assert "output would have size" in layer_error(
            "Deconvolution", f"convolution_param {{ num_output: {outer} {settings_text} }}", small
        )
        return
    up = layer_net("Deconvolution", f"convolution_param {{ num_output: {outer} {settings_text} }}", small).double()
    assert up.shapes["y0"] == (1, outer, *size)
    down = layer_net("Convolution", f"convolution_param {{ num_output: {inner} {settings_text} }}", up.shapes["y0"])
    down = down.double()
    assert up.params["l"][0].shape == down.params["l"][0].shape
    with torch.no_grad():
        for net in (up, down):
            net.params["l"][0].copy_(noise(*net.params["l"][0].shape, seed=1))
    x, y = noise(*up.shapes["y0"], seed=2), noise(*small, seed=3)
    left, right = (run(down, x)[0] * y).sum(), (x * run(up, y)[0]).sum()
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize(
    ("param", "kernel", "out"),
    [
        ("kernel_size: 3", (3, 3), (6, 7)),
        ("kernel_size: 3 kernel_size: 2", (3, 2), (6, 8)),
        ("kernel_h: 3 kernel_w: 2", (3, 2), (6, 8)),
        ("kernel_h: 1 kernel_w: 2 stride_h: 2 stride_w: 1 pad_w: 3", (1, 2), (4, 14)),
        ("kernel_size: 3 stride: 2 stride: 3", (3, 3), (3, 3)),
        ("kernel_size: 3 pad: 1 pad: 0", (3, 3), (8, 7)),
        ("kernel_size: 2 dilation: 3 dilation: 2", (2, 2), (5, 7)),
        ("kernel_size: 3 pad: 7", (3, 3), (20, 21)),
    ],
)
def test_two_axis_forms(param: str, kernel: Sizes, out: Sizes) -> None:
    net = layer_net("Convolution", f"convolution_param {{ num_output: 2 {param} }}", (1, 3, 8, 9))
    assert tuple(net.params["l"][0].shape) == (2, 3, *kernel)
    assert net.shapes["y0"] == (1, 2, *out)


@pytest.mark.parametrize("axis", [0, 1, 2, -3])
def test_convolution_axis(axis: int) -> None:
    """Axes before the channel axis are so many images."""
    shape = (4, 4, 4, 5, 6)[-3 - (axis if axis >= 0 else 2) :]
    param = f"convolution_param {{ num_output: 3 kernel_size: 2 axis: {axis} weight_filler {{ type: 'xavier' }} }}"
    net = layer_net("Convolution", param, shape).double()
    x = noise(*shape)
    (y,) = run(net, x)
    assert tuple(y.shape) == net.shapes["y0"] == (*shape[:-3], 3, 4, 5)
    weight, bias = net.params["l"]
    images = x.reshape(-1, 4, 5, 6)
    expected = torch.nn.functional.conv2d(images, weight, bias).reshape(y.shape)
    torch.testing.assert_close(y, expected)


def test_several_bottoms_share_the_weights() -> None:
    param = "convolution_param { num_output: 2 kernel_size: 2 weight_filler { type: 'xavier' } }"
    net = layer_net("Convolution", param, (1, 1, 3, 3), (1, 1, 3, 3), tops=2).double()
    x = noise(1, 1, 3, 3)
    first, second = run(net, x, 2 * x)
    torch.testing.assert_close(second, 2 * first)
    assert len(net.params["l"]) == 2


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
@pytest.mark.parametrize("more", ["", "group: 2 dilation: 2 pad: 1 stride: 2", "bias_term: false"])
def test_convolution_gradients(kind: str, more: str) -> None:
    param = f"convolution_param {{ num_output: 2 kernel_size: 2 weight_filler {{ type: 'xavier' }} {more} }}"
    assert gradcheck(layer_net(kind, param, (2, 2, 3, 4)), noise(2, 2, 3, 4).requires_grad_())


ERRORS = [
    ("kernel_size: 3", (1, 2, 8, 8), "num_output is missing"),
    ("", (1, 2, 8, 8), "num_output is missing"),
    ("num_output: 0 kernel_size: 3", (1, 2, 8, 8), "num_output is missing"),
    ("num_output: 2", (1, 2, 8, 8), "kernel_size is missing"),
    ("num_output: 2 kernel_size: 0", (1, 2, 8, 8), "kernel_size is missing"),
    ("num_output: 2 kernel_h: 3", (1, 2, 8, 8), "kernel_size is missing"),
    ("num_output: 2 kernel_size: 3 kernel_h: 3 kernel_w: 3", (1, 2, 8, 8), "both kernel_size and kernel_h/kernel_w"),
    ("num_output: 2 kernel_size: 3 stride: 1 stride_h: 1", (1, 2, 8, 8), "both stride and stride_h/stride_w"),
    ("num_output: 2 kernel_size: 3 pad: 1 pad_w: 1", (1, 2, 8, 8), "both pad and pad_h/pad_w"),
    ("num_output: 2 kernel_h: 3 kernel_w: 3", (1, 2, 8), "kernel_h/kernel_w need 2 spatial axes"),
    ("num_output: 2 kernel_size: [3, 3, 3]", (1, 2, 8, 8), "3 kernel_size entries"),
    ("num_output: 2 kernel_size: 3 stride: 0", (1, 2, 8, 8), "stride [0, 0] must be >= 1"),
    ("num_output: 2 kernel_size: 3 stride_h: 2", (1, 2, 8, 8), "stride [2, 0] must be >= 1"),
    ("num_output: 2 kernel_size: 3 dilation: 0", (1, 2, 8, 8), "dilation [0, 0] must be >= 1"),
    ("num_output: 2 kernel_size: 3 group: 0", (1, 2, 8, 8), "group 0 must divide"),
    ("num_output: 2 kernel_size: 3 group: 2", (1, 3, 8, 8), "group 2 must divide its 3 input channels"),
    ("num_output: 3 kernel_size: 3 group: 2", (1, 2, 8, 8), "num_output 3"),
    ("num_output: 2 kernel_size: 3 axis: 4", (1, 2, 8, 8), "axis 4 is outside its 4-axis bottom"),
    ("num_output: 2 kernel_size: 3", (1, 2), "0 spatial axes after axis 1"),
]


@pytest.mark.parametrize(("param", "shape", "message"), ERRORS, ids=[message for *_, message in ERRORS])
@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
def test_bad_convolutions(kind: str, param: str, shape: Sizes, message: str) -> None:
    assert message in layer_error(kind, f"convolution_param {{ {param} }}", shape)


@pytest.mark.parametrize(
    ("param", "size"),
    [("kernel_size: 3 stride: 2", 2), ("kernel_size: 5 pad: 1", 2), ("kernel_size: 2 dilation: 3", 3)],
)
def test_kernel_larger_than_its_padded_input(param: str, size: int) -> None:
    """Caffe truncates towards zero here and makes a 1x1 output out of nothing."""
    text = layer_error("Convolution", f"convolution_param {{ num_output: 2 {param} }}", (1, 2, size, size))
    assert "is larger than its padded input" in text


def test_convolution_bottoms_of_different_shape() -> None:
    param = "convolution_param { num_output: 2 kernel_size: 2 }"
    assert "bottoms differ in shape" in layer_error("Convolution", param, (1, 2, 8, 8), (1, 2, 8, 9), tops=2)
    assert "2 bottoms and 1 tops" in layer_error("Convolution", param, (1, 2, 8, 8), (1, 2, 8, 8))


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_inner_product(axis: int, transpose: bool) -> None:
    shape, first = (2, 3, 4), axis % 3
    inputs = int(np.prod(shape[first:]))
    flag = "transpose: true" if transpose else ""
    filler = "weight_filler { type: 'gaussian' } bias_filler { type: 'constant' value: 3 }"
    net = layer_net("InnerProduct", f"inner_product_param {{ num_output: 5 axis: {axis} {flag} {filler} }}", shape)
    weight, bias = net.double().params["l"]
    assert tuple(weight.shape) == ((inputs, 5) if transpose else (5, inputs))
    x = noise(*shape).requires_grad_()
    (y,) = run(net, x)
    assert tuple(y.shape) == net.shapes["y0"] == (*shape[:first], 5)
    expected = x.reshape(*shape[:first], inputs) @ (weight if transpose else weight.t()) + bias
    torch.testing.assert_close(y, expected)
    assert gradcheck(net, x)


def test_inner_product_without_bias() -> None:
    net = layer_net("InnerProduct", "inner_product_param { num_output: 5 bias_term: false }", (2, 3))
    assert [tuple(blob.shape) for blob in net.params["l"]] == [(5, 3)]


@pytest.mark.parametrize(
    ("param", "message"),
    [("", "num_output is missing"), ("num_output: 2 axis: 2", "axis 2 is outside its 2-axis bottom")],
)
def test_bad_inner_products(param: str, message: str) -> None:
    assert message in layer_error("InnerProduct", f"inner_product_param {{ {param} }}", (2, 3))


def test_missing_bottom_and_surplus_top() -> None:
    param = "inner_product_param { num_output: 2 }"
    assert layer_error("InnerProduct", param) == "has 0 bottom blobs; type InnerProduct takes 1"
    assert layer_error("InnerProduct", param, (2, 3), tops=2) == "has 2 top blobs; type InnerProduct takes 1"
