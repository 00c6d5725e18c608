"""Convolution over any number of spatial axes: its geometry, torch's kernels, and what torch lacks.

2-D convolution on the CPU is channels_last, with long sums in two halves so that rounding stays near Caffe's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from forcereg.layers.base import Shape
from forcereg.layers.recording import recording
from forcereg.schema.spec import MAX_COUNT, LayerSpec
from forcereg.schema.synonyms import left_over

LONG_SUM = 256
"""Products per output value above which a forward sum is worth splitting."""

BLOCK = 16
"""Channels of one of oneDNN's blocks. Two halves cost nothing where the channels don't fill whole blocks (LeNet's
20); where they do, the forward pass would take 15 to 75 % longer (cifar10_full, ResNet-20), so there they don't split.
"""


class TwoHalves(torch.autograd.Function):
    """conv2d that adds the two halves of its channels separately; the backward pass is the usual one.

    oneDNN's channels_last kernel adds all channels*kh*kw products in one float32 chain, whose rounding error
    (4.0e-7 rms for LeNet's conv2) is well above that of Caffe's matrix products (2.4e-7): enough to decide
    near-ties of MAX pooling differently. Two halves bring it to 2.8e-7 at next to no cost.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, pad: Any, dilation: Any
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.has_bias = (stride, pad, dilation), bias is not None
        # as two groups of one convolution: no copies of x, and oneDNN is as fast as with one
        count, half = weight.shape[0], x.shape[1] // 2
        halves = torch.cat((weight[:, :half], weight[:, half:]))
        biases = None if bias is None else F.pad(bias, (0, count))
        y = F.conv2d(x, halves, biases, stride, pad, dilation, 2)
        return y[:, :count] + y[:, count:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, pad, dilation = ctx.geometry
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias and ctx.needs_input_grad[2]]
        # aten's own, of the undivided weight: only what is wanted is computed
        grads = torch.ops.aten.convolution_backward(
            grad, x, weight, [weight.shape[0]], stride, pad, dilation, False, [0, 0], 1, wanted
        )
        return *(value if want else None for value, want in zip(grads, wanted, strict=True)), None, None, None


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, pad: Any, dilation: Any, group: int) -> Tensor:
    """torch's conv2d; on the CPU in float32 with long sums in two halves where that costs nothing.

    One operation while torch records it (see `recording`).
    """
    if x.device.type == "cpu" and x.dtype == torch.float32 and not recording():
        if _past_the_edge(weight.shape, pad, dilation):
            x, weight = x.contiguous(), weight.contiguous()
        elif not weight.is_contiguous():  # torch would bring x into its layout both forward and backward
            x = x.contiguous(memory_format=torch.channels_last)
        if group == 1 and _is_split(weight.shape) and not torch.is_autocast_enabled("cpu"):
            return TwoHalves.apply(x, weight, bias, stride, pad, dilation)
    return F.conv2d(x, weight, bias, stride, pad, dilation, group)


def _past_the_edge(shape: Shape, pad: Any, dilation: Any) -> bool:
    """Whether a kernel can lie in the padding alone: torch's channels_last kernel (2.14) reads past its input there."""
    return any(edge >= step * (size - 1) + 1 for size, edge, step in zip(shape[2:], pad, dilation, strict=True))


def _is_split(shape: Shape) -> bool:
    """Whether two halves of the channels are worth adding separately, for a weight (out, C, kh, kw)."""
    # an odd number of channels has no two halves of one size, as groups must be
    _, channels, height, width = shape
    return channels % 2 == 0 and channels % BLOCK != 0 and channels * height * width > LONG_SUM


@dataclass(frozen=True)
class Geometry:
    """A convolution's kernel, stride, pad and dilation: one value per spatial axis each."""

    kernel: Shape
    stride: Shape
    pad: Shape
    dilation: Shape

    @classmethod
    def read(cls, spec: LayerSpec, spatial: int) -> Geometry:
        """The layer's convolution_param for that many spatial axes; raises ForceregError."""
        if wrong := left_over(spec.message.convolution_param):
            raise spec.fail(wrong)
        kernel = _per_axis(spec, "kernel_size", spatial, 0)
        if not all(kernel):
            raise spec.fail("kernel_size is missing; set kernel_size, or kernel_h and kernel_w")
        stride, pad = _per_axis(spec, "stride", spatial, 1), _per_axis(spec, "pad", spatial, 0)
        dilation = _per_axis(spec, "dilation", spatial, 1)
        named = {"kernel_size": kernel, "stride": stride, "pad": pad, "dilation": dilation}
        for name, values in named.items():
            least = 0 if name == "pad" else 1
            if any(not least <= value <= MAX_COUNT for value in values):
                raise spec.fail(f"{name} {list(values)} must be >= {least} and at most {MAX_COUNT:,}")
        return cls(kernel, stride, pad, dilation)

    @property
    def extent(self) -> Shape:
        """Per axis how far a dilated kernel reaches."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def tail(self) -> Geometry:
        """The same without the first axis."""
        return Geometry(self.kernel[1:], self.stride[1:], self.pad[1:], self.dilation[1:])

    def out(self, spec: LayerSpec, size: Shape) -> Shape:
        """A convolution's output size; raises ForceregError where the kernel doesn't fit (Caffe makes up a value)."""
        padded = tuple(n + 2 * p for n, p in zip(size, self.pad, strict=True))
        for n, pad, extent in zip(size, self.pad, self.extent, strict=True):
            if extent > n + 2 * pad:
                raise spec.fail(
                    f"kernel extent {extent} is larger than its padded input {n + 2 * pad} "
                    f"(input {n}, pad {pad}); use a smaller kernel or more padding"
                )
        spec.check_size("its padded input", padded)
        return tuple((n - e) // s + 1 for n, e, s in zip(padded, self.extent, self.stride, strict=True))

    def transposed_out(self, spec: LayerSpec, size: Shape) -> Shape:
        """A deconvolution's output size; raises ForceregError if nothing is left."""
        axes = list(zip(size, self.kernel, self.stride, self.pad, self.extent, strict=True))
        for n, kernel, stride, pad, extent in axes:
            out = stride * (n - 1) + extent - 2 * pad
            if out < 1:
                raise spec.fail(
                    f"output would have size {out} (input {n}, kernel {kernel}, pad {pad}); "
                    f"use {'less padding' if pad else 'a larger input or kernel'}"
                )
        return tuple(stride * (n - 1) + extent - 2 * pad for n, _, stride, pad, extent in axes)


def _per_axis(spec: LayerSpec, name: str, spatial: int, default: int) -> Shape:
    """One of kernel_size, stride, pad or dilation as a value per spatial axis."""
    message = spec.message.convolution_param
    values = list(getattr(message, name))
    short = name.removesuffix("_size")
    if name != "dilation":
        height, width = f"{short}_h", f"{short}_w"
        if message.HasField(height) or message.HasField(width):
            if values:
                raise spec.fail(f"gives both {name} and {height}/{width}; use one form")
            if spatial != 2:
                raise spec.fail(f"{height}/{width} need 2 spatial axes; this bottom has {spatial}")
            return getattr(message, height), getattr(message, width)
    if not values:
        return (default,) * spatial
    if len(values) == 1:
        return tuple(values) * spatial
    if len(values) != spatial:
        raise spec.fail(f"has {len(values)} {name} entries; give 1 or one per spatial axis ({spatial})")
    return tuple(values)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, group: int) -> Tensor:
    """Cross-correlation of x (N, C, ...) with weight (out, C/group, kernel...), any number of spatial axes."""
    spatial, g = len(geometry.kernel), geometry
    if spatial == 0:
        # one axis of length 1 in place of none, for the groups' sake
        return F.conv1d(x[..., None], weight[..., None], bias, groups=group)[..., 0]
    if spatial <= 3:
        run = (F.conv1d, conv2d, F.conv3d)[spatial - 1]
        return run(x, weight, bias, g.stride, g.pad, g.dilation, group)
    # torch ends at 3 axes: positions along the first become images, values under the kernel there channels
    x = _pad_axis(x, 2, g.pad[0], g.pad[0])
    steps = taps(x, 2, g.extent[0], g.stride[0], g.dilation[0])
    return _over_first_axis(convolve, steps, weight.flatten(1, 2), bias, g, group)


def deconvolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, group: int) -> Tensor:
    """`convolve`'s transpose: x (N, C, ...), weight (C, out/group, kernel...), any number of spatial axes."""
    spatial, g = len(geometry.kernel), geometry
    if spatial == 0:
        # as in convolve: one axis of size 1 in place of none
        return F.conv_transpose1d(x[..., None], weight[..., None], bias, groups=group)[..., 0]
    if spatial <= 3:
        run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
        return run(x, weight, bias, g.stride, g.pad, 0, group, g.dilation)
    # along the first axis: the flipped kernel slides over x with stride - 1 zeros between its values
    stuffed = x.new_zeros((*x.shape[:2], g.stride[0] * (x.shape[2] - 1) + 1, *x.shape[3:]))
    stuffed[:, :, :: g.stride[0]] = x
    # negative where more is cut off than the kernel reaches: then F.pad cuts, too
    edge = g.extent[0] - 1 - g.pad[0]
    steps = taps(_pad_axis(stuffed, 2, edge, edge), 2, g.extent[0], 1, g.dilation[0])
    return _over_first_axis(deconvolve, steps, weight.flip(2).movedim(2, 1).flatten(0, 1), bias, g, group)


def taps(x: Tensor, axis: int, extent: int, stride: int, dilation: int) -> Tensor:
    """A view of x whose `axis` counts kernel positions, and whose new last axis the values under the kernel there."""
    return x.unfold(axis, extent, stride)[..., ::dilation]


def _pad_axis(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    return F.pad(x, (0, 0) * (x.dim() - axis - 1) + (before, after)) if before or after else x


def _over_first_axis(run: Any, steps: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry, group: int) -> Tensor:
    """`run` over all spatial axes but the first, whose positions are so many images and kernel values channels."""
    images = steps.movedim(2, 1).movedim(-1, 3)
    y = run(images.flatten(2, 3).flatten(0, 1), weight, bias, g.tail, group)
    return y.unflatten(0, images.shape[:2]).movedim(1, 2)


def columns(x: Tensor, axis: int, geometry: Geometry) -> Tensor:
    """im2col: channel axis `axis` times all kernel positions, then the output positions."""
    spatial = len(geometry.kernel)
    # F.pad counts axes from the last
    x = F.pad(x, [p for pad in reversed(geometry.pad) for p in (pad, pad)])
    for i in range(spatial):
        x = taps(x, axis + 1 + i, geometry.extent[i], geometry.stride[i], geometry.dilation[i])
    kernel_first = tuple(range(axis + 1, axis + 1 + spatial))
    return x.movedim(tuple(range(-spatial, 0)), kernel_first).flatten(axis, axis + spatial)
