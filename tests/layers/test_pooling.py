"""Pooling against a window-by-window reference with Caffe's rules."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forcereg.layers import pooling
from tests.layers.nets import apply, gradcheck, layer_error, layer_net, noise, run

Pair = tuple[int, int]


def pooled(size: int, kernel: int, stride: int, pad: int, any_pad: bool, floor: bool) -> int:
    out = (math.floor if floor else math.ceil)((size + 2 * pad - kernel) / stride) + 1
    return out - 1 if any_pad and (out - 1) * stride >= size + pad else out


def reference(
    x: np.ndarray, kernel: Pair, stride: Pair, pad: Pair, method: str, floor: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(values, indices of the first maximum within the plane); a window beyond the input is 0 and -1."""
    planes, (height, width) = x.shape[:2], x.shape[2:]
    out = [pooled(n, k, s, p, any(pad), floor) for n, k, s, p in zip(x.shape[2:], kernel, stride, pad, strict=True)]
    y, index = np.zeros((*planes, *out)), np.full((*planes, *out), -1.0)
    for n, c, i, j in np.ndindex(*y.shape):
        top, left = i * stride[0] - pad[0], j * stride[1] - pad[1]
        area = (min(top + kernel[0], height + pad[0]) - top) * (min(left + kernel[1], width + pad[1]) - left)
        rows = range(max(top, 0), min(top + kernel[0], height))
        columns = range(max(left, 0), min(left + kernel[1], width))
        cells = [(x[n, c, r, q], r * width + q) for r in rows for q in columns]
        if not cells:
            continue
        if method == "AVE":
            y[n, c, i, j] = sum(value for value, _ in cells) / area
        else:
            y[n, c, i, j] = max(value for value, _ in cells)
            index[n, c, i, j] = next(place for value, place in cells if value == y[n, c, i, j])
    return y, index


@st.composite
def windows(draw: Any) -> dict[str, Any]:
    pair = lambda low, high: (draw(st.integers(low, high)), draw(st.integers(low, high)))  # noqa: E731
    kernel = pair(1, 5)
    return {
        "size": pair(1, 9),
        "kernel": kernel,
        "stride": pair(1, 6),
        "pad": (draw(st.integers(0, kernel[0] - 1)), draw(st.integers(0, kernel[1] - 1))),
        "floor": draw(st.booleans()),
    }


def out_sizes(w: dict[str, Any]) -> list[int]:
    axes = zip(w["size"], w["kernel"], w["stride"], w["pad"], strict=True)
    return [pooled(n, k, s, p, any(w["pad"]), w["floor"]) for n, k, s, p in axes]


def text(w: dict[str, Any], method: str) -> str:
    sides = " ".join(
        f"{name}_{side}: {value}"
        for name in ("kernel", "stride", "pad")
        for side, value in zip("hw", w[name], strict=True)
    )
    return f"pooling_param {{ pool: {method} {sides} round_mode: {'FLOOR' if w['floor'] else 'CEIL'} }}"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(windows(), st.sampled_from(["MAX", "AVE"]), st.integers(0, 1000))
def test_pooling_is_the_reference(w: dict[str, Any], method: str, seed: int) -> None:
    shape = (1, 2, *w["size"])
    tops = 2 if method == "MAX" else 1
    if min(out_sizes(w)) < 1:
        assert "leaves nothing of its input" in layer_error("Pooling", text(w, method), shape, tops=tops)
        return
    # few distinct values, so that maxima tie
    x = np.random.default_rng(seed).integers(-3, 3, shape).astype(np.float64)
    net = layer_net("Pooling", text(w, method), shape, tops=tops).double()
    found = run(net, torch.from_numpy(x))
    expected = reference(x, w["kernel"], w["stride"], w["pad"], method, w["floor"])
    for top, name, values in zip(found, ("y0", "y1"), expected, strict=False):
        assert tuple(top.shape) == net.shapes[name] == values.shape
        np.testing.assert_allclose(top.numpy(), values, atol=1e-12, err_msg=name)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(windows(), st.integers(0, 1000))
def test_the_first_maximum_takes_the_gradient(w: dict[str, Any], seed: int) -> None:
    shape = (1, 1, *w["size"])
    if min(out_sizes(w)) < 1:
        return
    x = np.random.default_rng(seed).integers(0, 2, shape).astype(np.float64)
    tensor = torch.from_numpy(x).requires_grad_()
    (y,) = apply("Pooling", text(w, "MAX"), tensor)
    grad = noise(*y.shape)
    y.backward(grad)
    _, index = reference(x, w["kernel"], w["stride"], w["pad"], "MAX", w["floor"])
    expected = np.zeros(x.size)
    for place, g in zip(index.ravel(), grad.numpy().ravel(), strict=True):
        if place >= 0:
            expected[int(place)] += g
    np.testing.assert_allclose(tensor.grad.numpy().ravel(), expected, atol=1e-12)


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize(
    "more", ["kernel_size: 2 stride: 2", "kernel_size: 3 pad: 2 stride: 2", "global_pooling: true"]
)
def test_gradients(method: str, more: str) -> None:
    net = layer_net("Pooling", f"pooling_param {{ pool: {method} {more} }}", (2, 2, 5, 4))
    x = torch.randperm(80, generator=torch.Generator().manual_seed(0)).double().reshape(2, 2, 5, 4)
    assert gradcheck(net, x.requires_grad_())


@pytest.mark.parametrize(
    ("param", "size", "out"),
    [
        ("kernel_size: 2 stride: 2", (5, 5), (3, 3)),
        ("kernel_size: 2 stride: 2 round_mode: FLOOR", (5, 5), (2, 2)),
        ("kernel_size: 3 stride: 2", (2, 2), (1, 1)),
        ("kernel_size: 3 stride: 2 pad: 1", (4, 4), (3, 3)),
        ("kernel_size: 2 stride: 2 pad: 1", (3, 3), (2, 2)),
        ("kernel_h: 3 kernel_w: 1", (4, 4), (2, 4)),
        ("kernel_size: 1 stride: 3", (5, 5), (3, 3)),
    ],
)
def test_output_size(param: str, size: Pair, out: Pair) -> None:
    net = layer_net("Pooling", f"pooling_param {{ {param} }}", (1, 1, *size))
    assert net.shapes["y0"] == (1, 1, *out)
    assert tuple(run(net, torch.ones(1, 1, *size))[0].shape) == (1, 1, *out)


def test_a_window_beyond_the_input_is_zero_and_has_no_gradient() -> None:
    """Stride > kernel without padding: Caffe fills it with -FLT_MAX and writes out of bounds in backward."""
    x = torch.full((1, 1, 5, 5), -7.0).requires_grad_()
    y, index = apply("Pooling", "pooling_param { kernel_size: 1 stride: 3 }", x, tops=2)
    assert y[0, 0].tolist() == [[-7, -7, 0], [-7, -7, 0], [0, 0, 0]]
    assert index[0, 0].tolist() == [[0, 3, -1], [15, 18, -1], [-1, -1, -1]]
    y.sum().backward()
    assert x.grad.sum() == 4
    (average,) = apply("Pooling", "pooling_param { pool: AVE kernel_size: 1 stride: 3 }", x)
    assert average[0, 0].tolist() == [[-7, -7, 0], [-7, -7, 0], [0, 0, 0]]


def test_average_divides_by_the_window_within_the_padded_extent() -> None:
    (y,) = apply("Pooling", "pooling_param { pool: AVE kernel_size: 3 pad: 1 stride: 2 }", torch.ones(1, 1, 4, 4))
    assert y[0, 0].tolist() == pytest.approx(np.outer([2 / 3, 1, 0.5], [2 / 3, 1, 0.5]))


@pytest.mark.parametrize("method", ["MAX", "AVE"])
def test_global_pooling_takes_any_size(method: str) -> None:
    net = layer_net("Pooling", f"pooling_param {{ pool: {method} global_pooling: true }}", (1, 2, 4, 5))
    for size in ((4, 5), (3, 2)):
        x = noise(3, 2, *size).float()
        (y,) = run(net, x)
        expected = x.amax((2, 3)) if method == "MAX" else x.mean((2, 3))
        torch.testing.assert_close(y[:, :, 0, 0], expected)


def test_global_max_with_mask() -> None:
    x = torch.zeros(1, 1, 3, 4)
    x[0, 0, 1, 2] = 5
    y, index = apply("Pooling", "pooling_param { global_pooling: true }", x, tops=2)
    assert (y.item(), index.item()) == (5, 6)


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ("", "kernel_size is missing"),
        ("kernel_h: 3", "only one of kernel_h and kernel_w"),
        ("kernel_size: 3 kernel_h: 3 kernel_w: 3", "kernel for both axes and kernel_h/kernel_w"),
        ("kernel_size: 3 stride: 2 stride_h: 1 stride_w: 1", "stride for both axes"),
        ("kernel_size: 3 pad_h: 1", "only one of pad_h and pad_w"),
        ("kernel_size: 0", "must be >= 1"),
        ("kernel_size: 2 stride: 0", "must be >= 1"),
        ("kernel_size: 2 pad: 2", "pad [2, 2] must be smaller than the kernel [2, 2]"),
        ("kernel_size: 7", "kernel [7, 7] with pad [0, 0] leaves nothing of its input [4, 5]"),
        ("global_pooling: true kernel_size: 2", "kernel_size with global_pooling"),
        ("global_pooling: true pad: 1", "global_pooling needs pad 0 and stride 1"),
        ("global_pooling: true stride_h: 2 stride_w: 2", "global_pooling needs pad 0 and stride 1"),
        ("pool: STOCHASTIC kernel_size: 2 pad: 1", "pool STOCHASTIC takes no padding; found pad [1, 1]"),
        ("kernel_size: 2 stride: 4294967295", "must be >= 1 and at most 2,147,483,647"),
        ("kernel_size: 2000000000 pad: 1999999999 stride: 2000000000", "its padded input would have shape"),
    ],
)
def test_bad_settings(param: str, message: str) -> None:
    assert message in layer_error("Pooling", f"pooling_param {{ {param} }}", (1, 1, 4, 5))


def test_a_huge_stride_costs_nothing() -> None:
    """The windows beyond the input are neither read nor padded for."""
    x = noise(1, 1, 4, 5)
    for method, phase in (("MAX", "TEST"), ("AVE", "TEST"), ("STOCHASTIC", "TEST"), ("STOCHASTIC", "TRAIN")):
        param = f"pooling_param {{ pool: {method} kernel_size: 1 stride: 2000000000 }}"
        (y,) = apply("Pooling", param, x.abs(), phase=phase)
        assert y[0, 0].tolist() == [[x.abs()[0, 0, 0, 0], 0], [0, 0]]


# -- STOCHASTIC


@settings(max_examples=40, deadline=None)
@given(windows(), st.integers(0, 1000))
def test_stochastic_tests_with_the_expectation(w: dict[str, Any], seed: int) -> None:
    w = {**w, "pad": (0, 0)}
    if min(out_sizes(w)) < 1:
        return
    x = np.random.default_rng(seed).integers(0, 3, (1, 2, *w["size"])).astype(np.float64)
    (y,) = apply("Pooling", text(w, "STOCHASTIC"), torch.from_numpy(x))
    for n, c, i, j in np.ndindex(*y.shape):
        top, left = i * w["stride"][0], j * w["stride"][1]
        cells = x[n, c, top : top + w["kernel"][0], left : left + w["kernel"][1]]
        assert y[n, c, i, j] == pytest.approx((cells**2).sum() / cells.sum() if cells.sum() else 0)


@settings(max_examples=40, deadline=None)
@given(windows(), st.integers(0, 1000))
def test_stochastic_trains_with_an_element_of_the_window(w: dict[str, Any], seed: int) -> None:
    """It is positive if any is, and takes the gradient."""
    w = {**w, "pad": (0, 0)}
    if min(out_sizes(w)) < 1:
        return
    # distinct values, and zeros
    rng = np.random.default_rng(seed)
    values = rng.permutation(np.prod(w["size"])).astype(np.float64) * rng.integers(0, 2, np.prod(w["size"]))
    x = torch.from_numpy(values.reshape(1, 1, *w["size"])).requires_grad_()
    torch.manual_seed(seed)
    (y,) = apply("Pooling", text(w, "STOCHASTIC"), x, phase="TRAIN")
    grad = noise(*y.shape)
    y.backward(grad)
    expected = torch.zeros_like(x)
    zeros = 0.0
    for i, j in np.ndindex(*y.shape[2:]):
        top, left = i * w["stride"][0], j * w["stride"][1]
        cells = x.detach()[0, 0, top : top + w["kernel"][0], left : left + w["kernel"][1]]
        assert y[0, 0, i, j] in cells if cells.any() else y[0, 0, i, j] == 0
        if cells.any():
            assert y[0, 0, i, j] > 0
            expected[x.detach() == y[0, 0, i, j]] += grad[0, 0, i, j]
        elif cells.numel():
            zeros += float(grad[0, 0, i, j])  # goes to some zero
    positive = x.detach() > 0
    torch.testing.assert_close(x.grad[positive], expected[positive])
    assert x.grad[~positive].sum().item() == pytest.approx(zeros, abs=1e-9)


def test_stochastic_draws_in_proportion_to_the_values() -> None:
    x = torch.tensor([[1.0, 0.0, 5.0], [0.0, 4.0, 0.0]]).expand(4000, 1, 2, 3)
    net = layer_net("Pooling", "pooling_param { pool: STOCHASTIC global_pooling: true }", (1, 1, 2, 3), phase="TRAIN")
    torch.manual_seed(0)
    (y,) = run(net, x)
    shares = [(y == value).float().mean().item() for value in (1, 4, 5)]
    assert shares == pytest.approx([0.1, 0.4, 0.5], abs=0.03)
    torch.manual_seed(0)
    assert torch.equal(run(net, x)[0], y)
    assert not torch.equal(run(net, x)[0], y)


@pytest.mark.parametrize("more", ["kernel_size: 2 stride: 2", "kernel_size: 3 stride: 2", "global_pooling: true"])
def test_stochastic_gradient_in_testing(more: str) -> None:
    net = layer_net("Pooling", f"pooling_param {{ pool: STOCHASTIC {more} }}", (2, 2, 5, 4))
    assert gradcheck(net, (noise(2, 2, 5, 4).abs() + 0.1).requires_grad_())


def test_stochastic_of_zeros_is_zero_with_a_finite_gradient() -> None:
    for phase in ("TRAIN", "TEST"):
        x = torch.zeros(1, 1, 4, 4).requires_grad_()
        (y,) = apply("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 2 stride: 2 }", x, phase=phase)
        y.sum().backward()
        assert not y.any()
        assert x.grad.isfinite().all()


def test_bad_bottoms_and_tops() -> None:
    assert "must have 4 axes" in layer_error("Pooling", "pooling_param { kernel_size: 2 }", (1, 4, 5))
    param = "pooling_param { pool: AVE kernel_size: 2 }"
    assert "goes with MAX only" in layer_error("Pooling", param, (1, 1, 4, 5), tops=2)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(windows(), st.integers(0, 1000), st.booleans())
def test_what_repeats_on_a_gpu_gives_the_same(w: dict[str, Any], seed: int, mask: bool) -> None:
    """Values, places and gradients: what `--deterministic` takes there, with the CPU in its place."""
    shape = (2, 3, *w["size"])
    if min(out_sizes(w)) < 1:
        return
    x = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, shape).astype(np.float64))
    found = []
    for repeats in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pooling, "_must_repeat", lambda x, repeats=repeats: repeats)
            own = x.clone().requires_grad_()
            tops = apply("Pooling", text(w, "MAX"), own, tops=1 + mask)
        tops[0].backward(noise(*tops[0].shape))
        found.append([*tops, own.grad])
    for plain, repeated in zip(*found, strict=True):
        assert torch.equal(plain, repeated)


def test_what_repeats_on_a_gpu_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, found = noise(2, 3, 7, 6).abs(), []
    for repeats in (False, True):
        monkeypatch.setattr(pooling, "_must_repeat", lambda x, repeats=repeats: repeats)
        torch.manual_seed(3)
        found.append(apply("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 3 stride: 2 }", x, phase="TRAIN"))
    assert torch.equal(found[0][0], found[1][0])
