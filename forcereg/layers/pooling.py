"""Pooling with Caffe's output size, window and tie rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from forcereg.layers.base import Layer, Shape
from forcereg.registry import layer
from forcereg.schema import PoolingParameter
from forcereg.spec import LayerSpec


def out_size(size: int, kernel: int, stride: int, pad: int, any_pad: bool, ceil: bool) -> int:
    """Caffe's pooled size; with padding on either axis a last window starting in the far pad is dropped."""
    steps = (size + 2 * pad - kernel) / stride
    out = (math.ceil(steps) if ceil else math.floor(steps)) + 1
    if any_pad and (out - 1) * stride >= size + pad:
        out -= 1
    return out


@dataclass(frozen=True)
class Windows:
    """Pooling geometry, (height, width) each."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    ceil: bool

    def out(self, size: tuple[int, int]) -> tuple[int, int]:
        """Output (height, width) for an input of `size`."""
        any_pad = any(self.pad)
        height, width = (
            out_size(n, k, s, p, any_pad, self.ceil)
            for n, k, s, p in zip(size, self.kernel, self.stride, self.pad, strict=True)
        )
        return height, width

    @property
    def torch_pads(self) -> bool:
        """Whether torch's own padding does: it takes at most half a kernel."""
        return all(2 * p <= k for p, k in zip(self.pad, self.kernel, strict=True))

    def empty(self, size: tuple[int, int]) -> tuple[int, int]:
        """Per axis how many zeros to append so that a last window beyond the input reads zeros only.

        Without padding and with stride > kernel Caffe keeps such a window (and fills it with -FLT_MAX).
        """
        if any(self.pad):
            return 0, 0
        last = [(n - 1) * s for n, s in zip(self.out(size), self.stride, strict=True)]
        height, width = (
            start + k - n if start >= n else 0 for start, k, n in zip(last, self.kernel, size, strict=True)
        )
        return height, width


@layer("Pooling", "pooling_param")
class Pooling(Layer):
    """MAX (first maximum in raster order) or AVE (divisor: the window's area within the padded extent).

    A second top of MAX gives each maximum's index within its input plane, as float. A window beyond the
    input (stride > kernel) gives 0, index -1. NaN propagates (Caffe's maximum never picks it).
    """

    tops = (1, 2)

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.pooling_param
        if len(shapes[0]) != 4:
            raise spec.fail(f"bottom {list(shapes[0])} must have 4 axes (N, C, H, W)")
        self.method = PoolingParameter.PoolMethod.Name(message.pool)
        if self.method == "STOCHASTIC":
            raise spec.fail("pool STOCHASTIC is not supported; expected MAX or AVE")
        if len(spec.tops) > 1 and self.method != "MAX":
            raise spec.fail(f"a second top (the mask) goes with MAX only; found {self.method}")
        self.mask = len(spec.tops) > 1
        size = (shapes[0][2], shapes[0][3])
        self.is_global = message.global_pooling
        self.windows = _global(spec, size) if self.is_global else _windows(spec, size)
        out = (*shapes[0][:2], *self.windows.out(size))
        if min(out) < 1 and min(shapes[0]) >= 1:
            raise spec.fail(
                f"kernel {list(self.windows.kernel)} with pad {list(self.windows.pad)} leaves nothing of its "
                f"input {list(size)}; use a smaller kernel"
            )
        self.out_shapes = (out,) * len(spec.tops)

    def forward(self, x: Tensor) -> Any:
        if self.is_global and self.method == "AVE":
            return x.mean((2, 3), keepdim=True)
        size = (x.shape[2], x.shape[3])
        windows = Windows(size, (1, 1), (0, 0), True) if self.is_global else self.windows
        pad, (below, right) = windows.pad, windows.empty(size)
        if below or right:
            x = F.pad(x, (0, right, 0, below))
        if not windows.torch_pads:
            (top, left), pad = pad, (0, 0)
            x = F.pad(x, (left, left, top, top), value=0.0 if self.method == "AVE" else -math.inf)
        tops = self._pool(x, windows, pad)
        if self.mask:
            origin = (0, 0) if windows.torch_pads else windows.pad
            tops = (tops[0], _index_in_plane(tops[1], x.shape[3], origin, size).to(x.dtype))
        if not windows.torch_pads:
            height, width = windows.out(size)
            tops = tuple(top[..., :height, :width] for top in tops)
        return tops if self.mask else tops[0]

    def _pool(self, x: Tensor, windows: Windows, pad: tuple[int, int]) -> tuple[Tensor, ...]:
        kernel, stride, ceil = windows.kernel, windows.stride, windows.ceil
        if self.method == "AVE":
            return (F.avg_pool2d(x, kernel, stride, pad, ceil),)
        if self.mask:
            return F.max_pool2d(x, kernel, stride, pad, 1, ceil, return_indices=True)
        return (F.max_pool2d(x, kernel, stride, pad, 1, ceil),)


def _index_in_plane(index: Tensor, width: int, origin: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """An index into a padded plane of `width` as one into the plane of `size` at `origin`; -1 outside."""
    row, column = index // width - origin[0], index % width - origin[1]
    return torch.where((row < size[0]) & (column < size[1]), row * size[1] + column, -1)


def _global(spec: LayerSpec, size: tuple[int, int]) -> Windows:
    message = spec.message.pooling_param
    for name in ("kernel_size", "kernel_h", "kernel_w"):
        if message.HasField(name):
            raise spec.fail(f"gives {name} with global_pooling; use one of them")
    strides = {getattr(message, name) for name in ("stride_h", "stride_w") if message.HasField(name)}
    if message.pad or message.pad_h or message.pad_w or {message.stride, *strides} != {1}:
        raise spec.fail("global_pooling needs pad 0 and stride 1")
    return Windows(size, (1, 1), (0, 0), True)


def _windows(spec: LayerSpec, size: tuple[int, int]) -> Windows:
    message = spec.message.pooling_param
    kernel = _pair(spec, "kernel", message.kernel_size if message.HasField("kernel_size") else None)
    if kernel is None:
        raise spec.fail("kernel_size is missing; set kernel_size, or kernel_h and kernel_w, or global_pooling")
    stride = _pair(spec, "stride", message.stride if message.HasField("stride") else None) or (1, 1)
    pad = _pair(spec, "pad", message.pad if message.HasField("pad") else None) or (0, 0)
    if min(kernel) < 1 or min(stride) < 1:
        raise spec.fail(f"kernel {list(kernel)} and stride {list(stride)} must be >= 1")
    if any(p >= k for p, k in zip(pad, kernel, strict=True)):
        raise spec.fail(f"pad {list(pad)} must be smaller than the kernel {list(kernel)}")
    ceil = PoolingParameter.RoundMode.Name(message.round_mode) == "CEIL"
    return Windows(kernel, stride, pad, ceil)


def _pair(spec: LayerSpec, name: str, square: int | None) -> tuple[int, int] | None:
    message = spec.message.pooling_param
    height, width = f"{name}_h", f"{name}_w"
    if not message.HasField(height) and not message.HasField(width):
        return None if square is None else (square, square)
    if square is not None:
        raise spec.fail(f"gives {name} for both axes and {height}/{width}; use one form")
    if not (message.HasField(height) and message.HasField(width)):
        raise spec.fail(f"gives only one of {height} and {width}; give both")
    return getattr(message, height), getattr(message, width)
