"""Convolution, Deconvolution, Im2col and InnerProduct against direct sums, and their checks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.layers.nets import apply, gradcheck, layer_error, layer_net, noise, run

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


def direct_deconvolution(
    x: np.ndarray, weight: np.ndarray, stride: Sizes, pad: Sizes, dilation: Sizes, group: int
) -> np.ndarray:
    """Each input value times the kernel, added up where the kernel lies; the padding is cut off at the end."""
    kernel, size = weight.shape[2:], x.shape[2:]
    extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    full = [s * (n - 1) + e for n, s, e in zip(size, stride, extent, strict=True)]
    inputs, outputs = x.shape[1] // group, weight.shape[1]
    y = np.zeros((x.shape[0], group * outputs, *full))
    for g, position in itertools.product(range(group), np.ndindex(*size)):
        window = tuple(
            slice(i * s, i * s + e, d) for i, s, e, d in zip(position, stride, extent, dilation, strict=True)
        )
        rows = slice(g * inputs, (g + 1) * inputs)
        values = x[:, rows][(slice(None), slice(None), *position)]
        y[(slice(None), slice(g * outputs, (g + 1) * outputs), *window)] += np.tensordot(values, weight[rows], 1)
    return y[(slice(None), slice(None), *(slice(p, n - p) for p, n in zip(pad, full, strict=True)))]


@st.composite
def geometries(draw: Any) -> dict[str, Any]:
    spatial = draw(st.integers(0, 5))
    sizes = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(spatial))  # noqa: E731
    most = 3 if spatial <= 3 else 1
    kernel, dilation, pad = sizes(1, min(most + 1, 3)), sizes(1, 2), sizes(0, most)
    extra = sizes(0, most)
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


@settings(max_examples=50, deadline=None, derandomize=True)
@given(geometries())
def test_deconvolution_is_the_direct_sum(g: dict[str, Any]) -> None:
    param = (
        f"convolution_param {{ num_output: {g['group'] * g['out_per_group']} group: {g['group']} bias_term: false "
        f"{listed('kernel_size', g['kernel'])} {listed('stride', g['stride'])} {listed('pad', g['pad'])} "
        f"{listed('dilation', g['dilation'])} }}"
    )
    size = tuple(min(n, 3) for n in g["size"])
    shape = (2, g["group"] * g["per_group"], *size)
    axes = zip(size, g["kernel"], g["stride"], g["pad"], g["dilation"], strict=True)
    out = [s * (n - 1) + d * (k - 1) + 1 - 2 * p for n, k, s, p, d in axes]
    if min(out, default=1) < 1:
        assert "output would have size" in layer_error("Deconvolution", param, shape)
        return
    net = layer_net("Deconvolution", param, shape).double()
    (weight,) = net.params["l"]
    with torch.no_grad():
        weight.copy_(noise(*weight.shape, seed=1))
    x = noise(*shape)
    (y,) = run(net, x)
    assert tuple(y.shape) == net.shapes["y0"] == (2, g["group"] * g["out_per_group"], *out)
    expected = direct_deconvolution(
        x.numpy(), weight.detach().numpy(), g["stride"], g["pad"], g["dilation"], g["group"]
    )
    np.testing.assert_allclose(y.detach().numpy(), expected, atol=1e-12)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(geometries())
def test_im2col_times_the_weights_is_the_convolution(g: dict[str, Any]) -> None:
    if not g["kernel"]:
        return
    window = (
        f"{listed('kernel_size', g['kernel'])} {listed('stride', g['stride'])} {listed('pad', g['pad'])} "
        f"{listed('dilation', g['dilation'])}"
    )
    shape = (2, g["per_group"], *g["size"])
    net = layer_net("Im2col", f"convolution_param {{ {window} }}", shape)
    x, weight = noise(*shape), noise(3, g["per_group"], *g["kernel"], seed=1)
    (columns,) = run(net.double(), x)
    assert tuple(columns.shape) == net.shapes["y0"]
    found = np.tensordot(weight.reshape(3, -1).numpy(), columns.numpy(), (1, 1)).swapaxes(0, 1)
    expected = direct_convolution(x.numpy(), weight.numpy(), np.zeros(3), g["stride"], g["pad"], g["dilation"], 1)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_im2col_order() -> None:
    """Channels, then kernel rows, then kernel columns; axes before the channels stay."""
    x = torch.arange(2 * 2 * 3 * 4).double().reshape(2, 2, 3, 4)
    (y,) = apply("Im2col", "convolution_param { kernel_h: 2 kernel_w: 3 }", x)
    assert tuple(y.shape) == (2, 12, 2, 2)
    assert y[0, :, 0, 1].tolist() == [1, 2, 3, 5, 6, 7, 13, 14, 15, 17, 18, 19]
    (nested,) = apply("Im2col", "convolution_param { kernel_h: 2 kernel_w: 3 axis: -3 }", x[None])
    assert torch.equal(nested[0], y)
    (first,) = apply("Im2col", "convolution_param { kernel_h: 2 kernel_w: 3 axis: 0 }", x[0])
    assert torch.equal(first, y[0])


@pytest.mark.parametrize(
    ("shape", "more"),
    [((2, 2, 4), ""), ((1, 2, 3, 4), "pad: 1 stride: 2 dilation: 2"), ((1, 1, 3, 2, 2, 2), "axis: 1 pad: 1")],
    ids=str,
)
def test_im2col_gradient(shape: Sizes, more: str) -> None:
    net = layer_net("Im2col", f"convolution_param {{ kernel_size: 2 {more} }}", shape)
    assert gradcheck(net, noise(*shape).requires_grad_())


@pytest.mark.parametrize(
    ("param", "shape", "message"),
    [
        ("", (1, 2, 8, 8), "kernel_size is missing"),
        ("kernel_size: 3 stride: 0", (1, 2, 8, 8), "stride [0, 0] must be >= 1"),
        ("kernel_size: 9", (1, 2, 8, 8), "kernel extent 9 is larger than its padded input 8"),
        ("kernel_size: 3", (1, 2), "bottom [1, 2] has no spatial axis behind axis 1; expected 1 or more"),
        ("kernel_size: 3 axis: 5", (1, 2, 8, 8), "axis 5 is outside its 4-axis bottom"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_im2col(param: str, shape: Sizes, message: str) -> None:
    assert message in layer_error("Im2col", f"convolution_param {{ {param} }}", shape)


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


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
@pytest.mark.parametrize("shape", [(3, 2), (2, 2, 4), (1, 2, 3, 2, 2), (1, 2, 2, 3, 2, 2)], ids=str)
def test_gradients_over_any_number_of_axes(kind: str, shape: Sizes) -> None:
    window = "kernel_size: 2 pad: 1 stride: 2" if len(shape) > 2 else ""
    param = f"convolution_param {{ num_output: 2 group: 2 weight_filler {{ type: 'xavier' }} {window} }}"
    assert gradcheck(layer_net(kind, param, shape), noise(*shape).requires_grad_())


@pytest.mark.parametrize(
    ("kind", "shape", "param", "macs"),
    [
        ("Convolution", (2, 4, 5, 6), "num_output: 6 kernel_size: 3 group: 2", 2 * 6 * 3 * 4 * 2 * 9),
        ("Convolution", (2, 4), "num_output: 6", 2 * 6 * 4),
        ("Convolution", (1, 2, 3, 3, 3, 3), "num_output: 3 kernel_size: 2", 3 * 2**4 * 2 * 2**4),
        ("Deconvolution", (2, 4, 5, 6), "num_output: 6 kernel_size: 3 group: 2", 2 * 4 * 5 * 6 * 3 * 9),
    ],
)
def test_multiplications(kind: str, shape: Sizes, param: str, macs: int) -> None:
    net = layer_net(kind, f"convolution_param {{ {param} }}", shape)
    assert net.module("l").macs == macs


@pytest.mark.parametrize("more", ["engine: CAFFE", "engine: CUDNN", "force_nd_im2col: true"])
@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
def test_engine_settings_have_no_effect(kind: str, more: str) -> None:
    x = noise(1, 2, 4, 4)
    text = "num_output: 2 kernel_size: 2 weight_filler { type: 'constant' value: 2 }"
    (plain,), (y,) = (apply(kind, f"convolution_param {{ {t} }}", x) for t in (text, f"{text} {more}"))
    assert torch.equal(plain, y)


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
    ("num_output: 2 kernel_h: 3 kernel_w: 3", (1, 2), "kernel_h/kernel_w need 2 spatial axes; this bottom has 0"),
    ("num_output: 2 kernel_size: [3, 3]", (1, 2), "2 kernel_size entries"),
    ("num_output: 2 kernel_size: 3 stride: 4294967295", (1, 2, 8, 8), "must be >= 1 and at most 2,147,483,647"),
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


def test_huge_padding() -> None:
    param = "convolution_param { num_output: 2 kernel_size: 3 pad: 1000000000 stride: 1000000000 }"
    assert "its padded input would have shape" in layer_error("Convolution", param, (1, 2, 8, 8))


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
