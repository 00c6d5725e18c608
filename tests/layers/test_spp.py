"""SPP against a bin-by-bin reference with the recorded rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.layers.nets import apply, gradcheck, layer_error, layer_net, run

Pair = tuple[int, int]


def bounds(size: int, bins: int) -> tuple[int, int]:
    """Kernel (and stride) and pad of one axis."""
    kernel = math.ceil(size / bins)
    return kernel, (kernel * bins - size + 1) // 2


def reference(x: np.ndarray, levels: int, method: str) -> np.ndarray:
    images, channels, height, width = x.shape
    parts = []
    for level in range(levels):
        bins = 2**level
        (kh, ph), (kw, pw) = bounds(height, bins), bounds(width, bins)
        part = np.zeros((images, channels, bins, bins))
        for i, j in np.ndindex(bins, bins):
            top, left = i * kh - ph, j * kw - pw
            below, right = min(top + kh, height + ph), min(left + kw, width + pw)
            cells = x[:, :, max(top, 0) : min(below, height), max(left, 0) : min(right, width)]
            area = (below - top) * (right - left)
            part[:, :, i, j] = cells.max((2, 3)) if method == "MAX" else cells.sum((2, 3)) / area
        parts.append(part)
    return parts[0] if levels == 1 else np.concatenate([part.reshape(images, -1) for part in parts], 1)


@settings(max_examples=50, deadline=None)
@given(
    st.tuples(st.integers(1, 17), st.integers(1, 17)),
    st.integers(1, 4),
    st.sampled_from(["MAX", "AVE"]),
    st.integers(0, 1000),
)
def test_spp_is_the_reference(size: Pair, levels: int, method: str, seed: int) -> None:
    param = f"spp_param {{ pyramid_height: {levels} pool: {method} }}"
    geometry = [bounds(n, 2**level) for n in size for level in range(levels)]
    if any(pad >= kernel for kernel, pad in geometry):
        assert "smaller than its kernel" in layer_error("SPP", param, (2, 2, *size))
        return
    x = np.random.default_rng(seed).integers(-9, 9, (2, 2, *size)).astype(np.float64)
    net = layer_net("SPP", param, (2, 2, *size))
    (y,) = run(net, torch.from_numpy(x))
    assert tuple(y.shape) == net.shapes["y0"] == ((2, 2, 1, 1) if levels == 1 else (2, 2 * (4**levels - 1) // 3))
    np.testing.assert_allclose(y.numpy(), reference(x, levels, method), atol=1e-12)


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize("levels", [1, 3])
def test_gradient(method: str, levels: int) -> None:
    net = layer_net("SPP", f"spp_param {{ pyramid_height: {levels} pool: {method} }}", (2, 2, 6, 7))
    x = torch.randperm(168, generator=torch.Generator().manual_seed(0)).double().reshape(2, 2, 6, 7)
    assert gradcheck(net, x.requires_grad_())


def test_takes_any_size() -> None:
    net = layer_net("SPP", "spp_param { pyramid_height: 2 }", (1, 2, 8, 8))
    x = torch.rand(3, 2, 6, 10, generator=torch.Generator().manual_seed(0))
    (y,) = run(net, x)
    np.testing.assert_array_equal(y.numpy(), reference(x.numpy(), 2, "MAX").astype(np.float32))


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_stochastic(phase: str) -> None:
    """Equal values in each quarter: whatever is drawn, both phases give them."""
    x = torch.arange(1.0, 5.0).reshape(1, 1, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    (y,) = apply("SPP", "spp_param { pyramid_height: 2 pool: STOCHASTIC }", x, phase=phase)
    assert y[0, 1:].tolist() == [1, 2, 3, 4]
    assert y[0, 0] in (1, 2, 3, 4) if phase == "TRAIN" else y[0, 0] == 3


@pytest.mark.parametrize(
    ("param", "shape", "message"),
    [
        ("", (1, 2, 8, 8), "pyramid_height is missing; set spp_param { pyramid_height: N } with N >= 1"),
        ("pyramid_height: 0", (1, 2, 8, 8), "pyramid_height is missing"),
        ("pyramid_height: 2", (1, 2, 8), "bottom [1, 2, 8] must have 4 axes (N, C, H, W)"),
        (
            "pyramid_height: 3",
            (1, 2, 5, 8),
            "level 2 (4x4 bins) of input [5, 8] would have pad [2, 0], which must be smaller than its kernel [2, 2]; "
            "use a smaller pyramid_height or a larger input",
        ),
        ("pyramid_height: 4000000000", (1, 2, 8, 8), "level 4 (16x16 bins) of input [8, 8]"),
        ("pyramid_height: 2 pool: STOCHASTIC", (1, 2, 8, 7), "pool STOCHASTIC takes no padding, but level 1"),
    ],
    ids=["missing", "zero", "3-axes", "dim-5", "huge", "stochastic-pad"],
)
def test_bad_settings(param: str, shape: tuple[int, ...], message: str) -> None:
    assert message in layer_error("SPP", f"spp_param {{ {param} }}", shape)
