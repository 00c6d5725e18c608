"""Layers with learned weights: Convolution, Deconvolution, InnerProduct, Embed; and Im2col, convolution's windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from forcereg.layers.base import Layer, Shape, canonical_axis, count
from forcereg.layers.convolve import Geometry, columns, convolve, deconvolve
from forcereg.layers.recording import recording
from forcereg.layers.sparse import DENSE, MODES, Sparse
from forcereg.registry import layer
from forcereg.schema.spec import LayerSpec


class _ConvolutionBase(Layer):
    """What convolution and its transpose share: geometry, blobs, bottoms with extra leading axes."""

    bottoms = (1, None)
    tops = (1, None)
    overwritable = True
    per_item = True
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
        self.per_item &= self.axis > 0
        before, size = shapes[0][: self.axis], shapes[0][self.axis + 1 :]
        self.geometry = Geometry.read(spec, len(size))
        self.group = message.group
        self.channels, self.num_output = shapes[0][self.axis], message.num_output
        if self.group < 1 or self.channels % self.group or self.num_output % self.group:
            raise spec.fail(
                f"group {self.group} must divide its {self.channels} input channels and num_output {self.num_output}"
            )
        self.add_blob("weight", self._weight_shape(), message.weight_filler)
        if message.bias_term:
            self.add_blob("bias", (self.num_output,), message.bias_filler)
        self.out_shapes = ((*before, self.num_output, *self._out_size(size)),) * len(shapes)
        # a transpose spreads each of its inputs, a convolution gathers for each of its outputs
        dense = count(shapes[0] if self.transposed else self.out_shapes[0])
        self.macs = len(shapes) * dense * count(self.weight_blob().shape[1:])

    def _weight_shape(self) -> Shape:
        return (self.num_output, self.channels // self.group, *self.geometry.kernel)

    def _out_size(self, size: Shape) -> Shape:
        return self.geometry.out(self.spec, size)

    def forward(self, *bottoms: Tensor) -> Any:
        if len(bottoms) == 1 and self.axis == 1:
            return self._run(bottoms[0])
        tops = tuple(self._run_at_axis(x) for x in bottoms)
        return tops if len(tops) > 1 else tops[0]

    def _run_at_axis(self, x: Tensor) -> Tensor:
        if self.axis == 0:
            return self._run(x[None])[0]
        # torch knows one batch axis: those in front become one
        return self._run(x.flatten(0, self.axis - 1)).unflatten(0, x.shape[: self.axis])

    def _run(self, x: Tensor) -> Tensor:
        raise AssertionError("each convolution defines its own")


@layer("Convolution", "convolution_param")
class Convolution(_ConvolutionBase):
    """Cross-correlation over the axes behind `axis`, weight (num_output, C/group, k...), bias (num_output).

    `sparse`: how it leaves out weights that are 0, as `conv_mode` says; None for not at all.
    """

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        self.run_as(MODES[spec.message.convolution_param.conv_mode])

    def lay_out(self, device: torch.device) -> None:
        """On the CPU 2-D weights go channels_last: pooling and convolution are faster there, and follow."""
        weight = self.weight_blob()
        if device.type == "cpu" and weight.dim() == 4:
            # not .contiguous(): with one input channel it keeps strides that torch doesn't take for channels_last
            # by .data: the Parameter stays the one that sharers and solvers hold
            weight.data = torch.empty_like(weight, memory_format=torch.channels_last).copy_(weight.detach())

    def run_as(self, form: str) -> None:
        """Runs in the sparse form of that name from now on, or "dense". Raises ForceregError for an unknown name."""
        self.sparse = None if form == DENSE else Sparse(form)
        # a form is made at the first forward after weights have changed, and waits for the device
        self.capturable = type(self).capturable and self.sparse is None

    def _run(self, x: Tensor) -> Tensor:
        weight, bias = self.weight_blob(), self.blob("bias")
        if self.sparse is None or recording():
            return convolve(x, weight, bias, self.geometry, self.group)
        return self.sparse.run(x, weight, bias, self.geometry, self.group, self.spec.fail)


@layer("Deconvolution", "convolution_param")
class Deconvolution(_ConvolutionBase):
    """Convolution's transpose, weight (C, num_output/group, k...), bias (num_output)."""

    transposed = True

    def _weight_shape(self) -> Shape:
        return (self.channels, self.num_output // self.group, *self.geometry.kernel)

    def _out_size(self, size: Shape) -> Shape:
        return self.geometry.transposed_out(self.spec, size)

    def _run(self, x: Tensor) -> Tensor:
        return deconvolve(x, self.weight_blob(), self.blob("bias"), self.geometry, self.group)


@layer(
    "Im2col",
    "convolution_param.kernel_size,kernel_h,kernel_w,stride,stride_h,stride_w,pad,pad_h,pad_w,dilation,hole,hole_h,hole_w,axis",
)
class Im2col(Layer):
    """What lies under a convolution's kernel at each position: (N, C*k*k, H', W'), kernel positions fastest."""

    per_item = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        self.axis = canonical_axis(spec, spec.message.convolution_param.axis, len(shapes[0]))
        self.per_item &= self.axis > 0
        size = shapes[0][self.axis + 1 :]
        if not size:
            raise spec.fail(f"bottom {list(shapes[0])} has no spatial axis behind axis {self.axis}; expected 1 or more")
        self.geometry = Geometry.read(spec, len(size))
        channels = shapes[0][self.axis] * count(self.geometry.kernel)
        self.out_shapes = ((*shapes[0][: self.axis], channels, *self.geometry.out(spec, size)),)

    def forward(self, x: Tensor) -> Tensor:
        return columns(x, self.axis, self.geometry)


@layer("InnerProduct", "inner_product_param")
class InnerProduct(Layer):
    """Fully connected: weight (num_output, K), or (K, num_output) with `transpose`; K = the axes from `axis`."""

    overwritable = True
    per_item = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.inner_product_param
        if message.num_output < 1:
            raise spec.fail("num_output is missing; set inner_product_param { num_output: N } with N >= 1")
        if message.gemm_mode:
            mode = message.GemmMode.Name(message.gemm_mode)
            spec.warn(f"gemm_mode {mode} has no effect: an InnerProduct multiplies by all of its weights, zeros too")
        self.axis = canonical_axis(spec, message.axis, len(shapes[0]))
        self.per_item &= self.axis > 0
        self.transpose = message.transpose
        inputs, outputs = count(shapes[0][self.axis :]), message.num_output
        self.add_blob("weight", (inputs, outputs) if self.transpose else (outputs, inputs), message.weight_filler)
        if message.bias_term:
            self.add_blob("bias", (outputs,), message.bias_filler)
        self.out_shapes = ((*shapes[0][: self.axis], outputs),)
        self.macs = count(shapes[0]) * outputs

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_blob()
        return F.linear(rows(x, self.axis), weight.t() if self.transpose else weight, self.blob("bias"))


class _Rows(torch.autograd.Function):
    """x.flatten(axis) of a channels_last x, whose gradient is channels_last too: torch's pooling copies thrice else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: int) -> Tensor:
        ctx.shape = x.shape
        return x.flatten(axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.reshape(ctx.shape).contiguous(memory_format=torch.channels_last), None


def rows(x: Tensor, axis: int) -> Tensor:
    """x with the axes from `axis` on as one."""
    is_last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return _Rows.apply(x, axis) if is_last and x.requires_grad and not recording() else x.flatten(axis)


@layer("Embed", "embed_param", limits="on a GPU a wrong index ends in torch's own assertion")
class Embed(Layer):
    """The weight's row (input_dim, num_output) at each index, plus the bias; top = bottom's axes + num_output.

    Raises ForceregError for an index outside 0..input_dim-1 (Caffe reads past the table). On CUDA that check would
    wait for the device, so there torch's own device-side assertion ends the run.
    """

    labels = frozenset({0})
    overwritable = True
    per_item = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.embed_param
        for name in ("num_output", "input_dim"):
            if getattr(message, name) < 1:
                raise spec.fail(f"{name} is missing; set embed_param {{ {name}: N }} with N >= 1")
        self.rows = message.input_dim
        self.add_blob("weight", (self.rows, message.num_output), message.weight_filler)
        if message.bias_term:
            self.add_blob("bias", (message.num_output,), message.bias_filler)
        self.out_shapes = ((*shapes[0], message.num_output),)

    def forward(self, indices: Tensor) -> Tensor:
        rows = indices.long()
        if rows.device.type == "cpu" and not recording():
            wrong = (rows < 0) | (rows >= self.rows)
            if wrong.any():
                raise self.spec.fail(
                    f"index {float(indices[wrong][0]):g} in '{self.spec.bottoms[0]}' has no row; expected 0 to "
                    f"{self.rows - 1}; correct the data or input_dim ({self.rows})"
                )
        y, bias = F.embedding(rows, self.weight_blob()), self.blob("bias")
        return y if bias is None else y + bias
