"""Normalising and rescaling layers: BatchNorm, MVN, Scale, Bias, LRN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from forcereg.layers.base import Layer, Shape, canonical_axis, count
from forcereg.layers.neuron import Elementwise
from forcereg.registry import layer
from forcereg.schema import FillerParameter, LRNParameter
from forcereg.spec import LayerSpec


@layer("BatchNorm", "batch_norm_param")
class BatchNorm(Layer):
    """(x - mean) / sqrt(variance + eps) per channel, without affine part.

    Blobs are Caffe's running sums: mean (C), variance (C, unbiased) and their common factor (1);
    the statistics used in testing are the sums divided by the factor (0 if the factor is 0).
    """

    overwritable = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.batch_norm_param
        self.eps = message.eps
        self.fraction = message.moving_average_fraction
        self.global_stats = message.use_global_stats if message.HasField("use_global_stats") else None
        channels = shapes[0][1] if len(shapes[0]) > 1 else 1
        self.add_blob("mean", (channels,), buffer=True)
        self.add_blob("variance", (channels,), buffer=True)
        self.add_blob("factor", (1,), buffer=True)
        self.out_shapes = (shapes[0],)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        if x.dim() == 1:
            x = x[None, None]
        use_global = not self.training if self.global_stats is None else self.global_stats
        y = self._with_global_statistics(x) if use_global else self._with_batch_statistics(x)
        return y.reshape(shape)

    def _with_global_statistics(self, x: Tensor) -> Tensor:
        factor = self.weight_blob("factor")
        scale = torch.where(factor == 0, torch.zeros_like(factor), 1 / factor)
        mean, variance = self.weight_blob("mean") * scale, self.weight_blob("variance") * scale
        return torch.batch_norm(x, None, None, mean, variance, False, 0.0, self.eps, False)

    def _with_batch_statistics(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        mean, variance = (torch.zeros_like(self.weight_blob(name)) for name in ("mean", "variance"))
        # momentum 1: torch writes the batch mean and the unbiased variance, which is what Caffe sums
        y = torch.batch_norm(x, None, None, mean, variance, True, 1.0, self.eps, False)
        if x.numel() == channels:
            variance = torch.zeros_like(variance)  # one value per channel: torch divides by m - 1 = 0
        with torch.no_grad():
            blobs = [self.weight_blob(name) for name in self.blob_names]
            torch._foreach_mul_(blobs, self.fraction)
            torch._foreach_add_(blobs, [mean, variance, torch.ones_like(blobs[2])])
        return y


class _Standardise(torch.autograd.Function):
    """Centred rows divided by (their deviation + eps), with Caffe's gradient, which takes eps for a constant factor."""

    @staticmethod
    def forward(ctx: Any, centred: Tensor, eps: float) -> Tensor:
        scale = centred.square().mean(1, keepdim=True).sqrt() + eps
        y = centred / scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        return (grad - y * (grad * y).mean(1, keepdim=True)) / scale, None


@layer("MVN", "mvn_param")
class MVN(Elementwise):
    """Each image's channels (with `across_channels` each image) minus their mean, over (deviation + eps).

    `normalize_variance: false` only subtracts the mean. The deviation is the biased one; the gradient is
    (g - mean g - y mean(g y)) / (deviation + eps), Caffe's, which isn't exact where eps matters.
    """

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.mvn_param
        if len(shapes[0]) > 4:
            raise spec.fail(f"bottom {list(shapes[0])} must have at most 4 axes (N, C, H, W)")
        self.eps, self.divide = message.eps, message.normalize_variance
        self.own_axes = 1 if message.across_channels else 2

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(count(x.shape[: self.own_axes]), count(x.shape[self.own_axes :]))
        y = rows - rows.mean(1, keepdim=True)
        return (_Standardise.apply(y, self.eps) if self.divide else y).reshape(x.shape)


def _operand(spec: LayerSpec, message: Any, shapes: Sequence[Shape], what: str) -> tuple[int, Shape]:
    """Where in bottom 0 the operand (`what`) starts, and its shape: a span of bottom 0's axes, or bottom 1's."""
    if len(shapes) == 1:
        axis, rank = canonical_axis(spec, message.axis, len(shapes[0])), len(shapes[0])
        span = rank - axis if message.num_axes == -1 else message.num_axes
        if span < 0 or axis + span > rank:
            raise spec.fail(f"num_axes {message.num_axes} from axis {axis} exceeds its {rank}-axis bottom")
        return axis, shapes[0][axis : axis + span]
    # a 0-axis operand fits anywhere
    axis = canonical_axis(spec, message.axis, len(shapes[0])) if shapes[1] else 0
    if shapes[0][axis : axis + len(shapes[1])] != shapes[1]:
        raise spec.fail(f"{what} {list(shapes[1])} doesn't fit bottom {list(shapes[0])} from axis {axis}")
    return axis, shapes[1]


def _spread(operand: Tensor, axis: int, rank: int) -> Tensor:
    """`operand` with as many trailing axes of size 1 as broadcasting from `axis` needs."""
    return operand.reshape(*operand.shape, *(1,) * (rank - axis - operand.dim()))


@layer("Scale", "scale_param")
class Scale(Layer):
    """x times a multiplier spanning `num_axes` axes from `axis`, plus an optional bias of its shape.

    With two bottoms the second is the multiplier, and only the bias is learned.
    """

    bottoms = (1, 2)
    overwritable = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.scale_param
        self.axis, shape = _operand(spec, message, shapes, "multiplier")
        if len(shapes) == 1:
            one = FillerParameter(type="constant", value=1)
            self.add_blob("weight", shape, message.filler if message.HasField("filler") else one)
        if message.bias_term:
            self.add_blob("bias", shape, message.bias_filler if message.HasField("bias_filler") else None)
        self.out_shapes = (shapes[0],)

    def forward(self, x: Tensor, multiplier: Tensor | None = None) -> Tensor:
        weight = self.weight_blob() if multiplier is None else multiplier
        bias = self.blob("bias")
        weight = _spread(weight, self.axis, x.dim())
        if bias is None:
            return x * weight
        return torch.addcmul(_spread(bias, self.axis, x.dim()), x, weight)


@layer("Bias", "bias_param")
class Bias(Layer):
    """x plus a blob spanning `num_axes` axes from `axis`, or plus the second bottom."""

    bottoms = (1, 2)
    overwritable = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.bias_param
        self.axis, shape = _operand(spec, message, shapes, "bias")
        if len(shapes) == 1:
            self.add_blob("bias", shape, message.filler)
        self.out_shapes = (shapes[0],)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return x + _spread(self.weight_blob("bias") if bias is None else bias, self.axis, x.dim())


@layer("LRN", "lrn_param")
class LRN(Elementwise):
    """Local response normalisation across channels, or within one (where `k` has no effect, as in Caffe)."""

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.lrn_param
        if len(shapes[0]) != 4:
            raise spec.fail(f"bottom {list(shapes[0])} must have 4 axes (N, C, H, W)")
        if message.local_size % 2 == 0:
            raise spec.fail(f"local_size is {message.local_size}; expected an odd number")
        self.size, self.alpha, self.beta, self.k = message.local_size, message.alpha, message.beta, message.k
        self.within = LRNParameter.NormRegion.Name(message.norm_region) == "WITHIN_CHANNEL"

    def forward(self, x: Tensor) -> Tensor:
        # a window cannot hold more than all there is: what a larger one adds are zeros
        if not self.within:
            size = _reach(self.size, x.shape[1])
            return F.local_response_norm(x, size, self.alpha * (size / self.size), self.beta, self.k)
        height, width = _reach(self.size, x.shape[2]), _reach(self.size, x.shape[3])
        mean = F.avg_pool2d(x * x, (height, width), 1, (height // 2, width // 2))
        alpha = self.alpha * (height / self.size) * (width / self.size)
        return x * (1 + alpha * mean).pow(-self.beta)


def _reach(window: int, size: int) -> int:
    return min(window, max(2 * size - 1, 1))
