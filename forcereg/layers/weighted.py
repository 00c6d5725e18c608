"""Layers that multiply by learned weights: Convolution, Deconvolution, InnerProduct."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from forcereg.layers.base import Layer, Shape, canonical_axis, count
from forcereg.layers.convolve import conv2d
from forcereg.registry import layer
from forcereg.spec import LayerSpec


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


class _ConvolutionBase(Layer):
    """What convolution and its transpose share: geometry, blobs, bottoms with extra leading axes."""

    bottoms = (1, None)
    tops = (1, None)
    overwritable = True
    transposed: ClassVar[bool] = False

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.convolution_param
        if len(spec.tops) != len(spec.bottoms):
            raise spec.fail(f"has {len(spec.bottoms)} bottoms and {len(spec.tops)} tops; give one top per bottom")
        if any(shape != shapes[0] for shape in shapes):
            raise spec.fail(f"bottoms differ in shape ({', '.join(map(str, shapes))}); they must be equal")
        if message.num_output < 1:
            raise spec.fail("num_output is missing; set convolution_param { num_output: N } with N >= 1")
        self.axis = canonical_axis(spec, message.axis, len(shapes[0]))
        spatial = len(shapes[0]) - self.axis - 1
        if spatial not in (1, 2, 3):
            raise spec.fail(
                f"bottom {list(shapes[0])} has {spatial} spatial axes after axis {self.axis}; expected 1 to 3"
            )
        self._geometry(spec, spatial)
        self.group = message.group
        self.channels, self.num_output = shapes[0][self.axis], message.num_output
        if self.group < 1 or self.channels % self.group or self.num_output % self.group:
            raise spec.fail(
                f"group {self.group} must divide its {self.channels} input channels and num_output {self.num_output}"
            )
        self.add_blob("weight", self._weight_shape(), message.weight_filler)
        if message.bias_term:
            self.add_blob("bias", (self.num_output,), message.bias_filler)
        size = tuple(
            self._out_size(spec, *axis)
            for axis in zip(shapes[0][self.axis + 1 :], self.kernel, self.stride, self.pad, self.dilation, strict=True)
        )
        self.out_shapes = ((*shapes[0][: self.axis], self.num_output, *size),) * len(shapes)
        dense = count(shapes[0] if self.transposed else self.out_shapes[0])
        self.macs = len(shapes) * dense * count(self.weight_blob().shape[1:])

    def _geometry(self, spec: LayerSpec, spatial: int) -> None:
        self.kernel = _per_axis(spec, "kernel_size", spatial, 0)
        self.stride = _per_axis(spec, "stride", spatial, 1)
        self.pad = _per_axis(spec, "pad", spatial, 0)
        self.dilation = _per_axis(spec, "dilation", spatial, 1)
        for name, values, least in (
            ("kernel_size", self.kernel, 1),
            ("stride", self.stride, 1),
            ("dilation", self.dilation, 1),
        ):
            if min(values) < least:
                hint = "kernel_size is missing; set kernel_size, or kernel_h and kernel_w"
                raise spec.fail(hint if name == "kernel_size" else f"{name} {list(values)} must be >= {least}")

    def _weight_shape(self) -> Shape:
        return (self.num_output, self.channels // self.group, *self.kernel)

    def _out_size(self, spec: LayerSpec, size: int, kernel: int, stride: int, pad: int, dilation: int) -> int:
        extent = dilation * (kernel - 1) + 1
        if extent > size + 2 * pad:
            raise spec.fail(
                f"kernel extent {extent} is larger than its padded input {size + 2 * pad} "
                f"(input {size}, pad {pad}); use a smaller kernel or more padding"
            )
        return (size + 2 * pad - extent) // stride + 1

    def forward(self, *bottoms: Tensor) -> Any:
        if len(bottoms) == 1 and self.axis == 1:
            return self._run(bottoms[0])
        tops = tuple(self._run_at_axis(x) for x in bottoms)
        return tops if len(tops) > 1 else tops[0]

    def _run_at_axis(self, x: Tensor) -> Tensor:
        if self.axis == 0:
            return self._run(x[None])[0]
        return self._run(x.flatten(0, self.axis - 1)).unflatten(0, x.shape[: self.axis])

    def _run(self, x: Tensor) -> Tensor:
        raise AssertionError("each convolution defines its own")


@layer("Convolution", "convolution_param")
class Convolution(_ConvolutionBase):
    """Cross-correlation, 1 to 3 spatial axes, weight (num_output, C/group, k...), bias (num_output)."""

    def lay_out(self, device: torch.device) -> None:
        """On the CPU 2-D weights go channels_last: pooling and convolution are faster there, and follow."""
        weight = self.weight_blob()
        if device.type == "cpu" and weight.dim() == 4:
            # not .contiguous(): with one input channel it keeps strides that torch doesn't take for channels_last
            weight.data = torch.empty_like(weight, memory_format=torch.channels_last).copy_(weight.detach())

    def _run(self, x: Tensor) -> Tensor:
        run = (F.conv1d, conv2d, F.conv3d)[len(self.kernel) - 1]
        return run(x, self.weight_blob(), self.blob("bias"), self.stride, self.pad, self.dilation, self.group)


@layer("Deconvolution", "convolution_param")
class Deconvolution(_ConvolutionBase):
    """Convolution's transpose, weight (C, num_output/group, k...), bias (num_output)."""

    transposed = True

    def _weight_shape(self) -> Shape:
        return (self.channels, self.num_output // self.group, *self.kernel)

    def _out_size(self, spec: LayerSpec, size: int, kernel: int, stride: int, pad: int, dilation: int) -> int:
        out = stride * (size - 1) + dilation * (kernel - 1) + 1 - 2 * pad
        if out < 1:
            raise spec.fail(
                f"output would have size {out} (input {size}, kernel {kernel}, pad {pad}); use less padding"
            )
        return out

    def _run(self, x: Tensor) -> Tensor:
        run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(self.kernel) - 1]
        bias, weight = self.blob("bias"), self.weight_blob()
        return run(x, weight, bias, self.stride, self.pad, 0, self.group, self.dilation)


@layer("InnerProduct", "inner_product_param")
class InnerProduct(Layer):
    """Fully connected: weight (num_output, K), or (K, num_output) with `transpose`; K = the axes from `axis`."""

    overwritable = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.inner_product_param
        if message.num_output < 1:
            raise spec.fail("num_output is missing; set inner_product_param { num_output: N } with N >= 1")
        self.axis = canonical_axis(spec, message.axis, len(shapes[0]))
        self.transpose = message.transpose
        inputs, outputs = count(shapes[0][self.axis :]), message.num_output
        self.add_blob("weight", (inputs, outputs) if self.transpose else (outputs, inputs), message.weight_filler)
        if message.bias_term:
            self.add_blob("bias", (outputs,), message.bias_filler)
        self.out_shapes = ((*shapes[0][: self.axis], outputs),)
        self.macs = count(shapes[0]) * outputs

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_blob()
        return F.linear(x.flatten(self.axis), weight.t() if self.transpose else weight, self.blob("bias"))
