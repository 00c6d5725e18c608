"""Pooling with Caffe's output size, window and tie rules."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from forcereg.layers.base import Layer, Shape
from forcereg.layers.recording import sizes
from forcereg.registry import layer
from forcereg.schema import PoolingParameter
from forcereg.schema.spec import MAX_COUNT, LayerSpec
from forcereg.schema.synonyms import left_over


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


@layer("Pooling", "pooling_param", limits="a NaN propagates, where Caffe's maximum passes over it")
class Pooling(Layer):
    """MAX (first maximum in raster order), AVE (divisor: the window's area within the padded extent) or STOCHASTIC.

    A second top of MAX gives each maximum's index within its input plane, as float. A window beyond the
    input (stride > kernel) gives 0, index -1. NaN propagates (Caffe's maximum never picks it).
    """

    tops = (1, 2)
    overwritable = True
    per_item = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.pooling_param
        if len(shapes[0]) != 4:
            raise spec.fail(f"bottom {list(shapes[0])} must have 4 axes (N, C, H, W)")
        if wrong := left_over(message):
            raise spec.fail(wrong)
        self.method = PoolingParameter.PoolMethod.Name(message.pool)
        if len(spec.tops) > 1 and self.method != "MAX":
            raise spec.fail(f"a second top (the mask) goes with MAX only; found {self.method}")
        self.mask = len(spec.tops) > 1
        size = (shapes[0][2], shapes[0][3])
        self.is_global = message.global_pooling
        self.windows = _global(spec, size) if self.is_global else _windows(spec, size)
        if self.method == "STOCHASTIC" and any(self.windows.pad):
            raise spec.fail(f"pool STOCHASTIC takes no padding; found pad {list(self.windows.pad)}, use MAX or AVE")
        out = (*shapes[0][:2], *self.windows.out(size))
        # a bottom without items, as behind a Filter, has a top without any
        if min(out) < 1 and min(shapes[0]) >= 1:
            raise spec.fail(
                f"kernel {list(self.windows.kernel)} with pad {list(self.windows.pad)} leaves nothing of its "
                f"input {list(size)}; use a smaller kernel"
            )
        self.out_shapes = (out,) * len(spec.tops)

    def forward(self, x: Tensor) -> Any:
        if self.is_global and self.method == "AVE":
            # one window over all there is, whatever its size now
            return x.mean((2, 3), keepdim=True)
        height, width = sizes(x)[2:]
        windows = Windows((height, width), (1, 1), (0, 0), True) if self.is_global else self.windows
        tops = pool(x, windows, self.method, self.training, self.mask)
        return tops if self.mask else tops[0]


def pool(x: Tensor, windows: Windows, method: str, training: bool, mask: bool = False) -> tuple[Tensor, ...]:
    """x (N, C, H, W) pooled by MAX, AVE or STOCHASTIC; with `mask` also the maxima's indices in their planes."""
    kernel, stride, pad, ceil = windows.kernel, windows.stride, windows.pad, windows.ceil
    height, width = sizes(x)[2:]
    size, origin = (height, width), (0, 0)
    if not windows.torch_pads:
        origin, pad = pad, (0, 0)
        # -inf never is the maximum; zeros count in an average, as in Caffe
        x = F.pad(x, (origin[1],) * 2 + (origin[0],) * 2, value=-math.inf if method == "MAX" else 0.0)
    # torch leaves out a last window beyond the input, and gives more windows where the padding is done here
    out = windows.out(size)
    if method == "MAX":
        values, index = _maxima(x, kernel, stride, pad, ceil, mask)
        if mask:
            place = _index_in_plane(index, x.shape[3], origin, size).to(x.dtype)
            return _resized(values, out, 0), _resized(place, out, -1)
    elif method == "AVE":
        values = F.avg_pool2d(x, kernel, stride, pad, ceil)
    else:
        values = (_draw if training else _expectation)(x, kernel, stride, ceil)
    return (_resized(values, out, 0),)


def _maxima(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int], ceil: bool, mask: bool
) -> tuple[Tensor, Any]:
    """The windows' maxima, and if asked for (`mask`) their indices in the planes, else None."""
    repeats = _must_repeat(x)
    if not mask and not repeats:
        return F.max_pool2d(x, kernel, stride, pad, 1, ceil), None
    values, index = F.max_pool2d(x, kernel, stride, pad, 1, ceil, return_indices=True)
    if repeats:  # of pooling's own gradient on a GPU not every version of torch promises it
        values = x.flatten(2).gather(2, index.flatten(2)).reshape(index.shape)
    return values, index


def _must_repeat(x: Tensor) -> bool:
    """Whether operations on x must add up in an order that is the same each time, where a GPU has none of its own."""
    return x.is_cuda and torch.are_deterministic_algorithms_enabled()


def _draw(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], ceil: bool) -> Tensor:
    """One element of each window, drawn with probability proportional to its value; the first if all are 0."""
    size = (x.shape[2], x.shape[3])
    # unfold takes no window that is larger than its input
    kernel = (min(kernel[0], size[0]), min(kernel[1], size[1]))
    if ceil:  # zeros complete the last windows: they are never drawn
        height, width = (-(n - k) % s for n, k, s in zip(size, kernel, stride, strict=True))
        x = F.pad(x, (0, width if width < kernel[1] else 0, 0, height if height < kernel[0] else 0))
    values = x.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1]).flatten(-2)
    with torch.no_grad():
        if _must_repeat(values):
            # cumsum on a GPU promises no order
            sums = torch.stack(list(itertools.accumulate(values.unbind(-1))), -1)
        else:
            sums = values.cumsum(-1)
        # in (0, 1]: a goal of 0 would be met by a zero in front of all else
        goal = (1 - torch.rand_like(sums[..., :1])) * sums[..., -1:]
        # the first that reaches it: argmax gives that one of equal maxima, but takes no bools
        place = (sums >= goal).byte().argmax(-1, keepdim=True)
    return values.gather(-1, place)[..., 0]


def _expectation(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], ceil: bool) -> Tensor:
    """What `_draw` gives on average: sum(x^2) / sum(x) of each window, 0 where the sum is 0."""
    total = F.avg_pool2d(x, kernel, stride, 0, ceil, divisor_override=1)
    squares = F.avg_pool2d(x * x, kernel, stride, 0, ceil, divisor_override=1)
    positive = total > 0
    return torch.where(positive, squares / torch.where(positive, total, 1), 0)


def _resized(top: Tensor, size: tuple[int, int], value: float) -> Tensor:
    found = sizes(top)
    height, width = size[0] - found[2], size[1] - found[3]
    return F.pad(top, (0, width, 0, height), value=value) if height or width else top


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
    if min(*kernel, *stride) < 1 or max(*kernel, *stride) > MAX_COUNT:
        raise spec.fail(f"kernel {list(kernel)} and stride {list(stride)} must be >= 1 and at most {MAX_COUNT:,}")
    if any(p >= k for p, k in zip(pad, kernel, strict=True)):
        raise spec.fail(f"pad {list(pad)} must be smaller than the kernel {list(kernel)}")
    spec.check_size("its padded input", [n + 2 * p for n, p in zip(size, pad, strict=True)])
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
