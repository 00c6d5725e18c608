"""Normalising and rescaling layers: BatchNorm, Scale, LRN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from forcereg.layers.base import Layer, Shape, canonical_axis
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
        mean, variance = x.new_zeros(channels), x.new_zeros(channels)
        # momentum 1: torch writes the batch mean and the unbiased variance, which is what Caffe sums
        y = torch.batch_norm(x, None, None, mean, variance, True, 1.0, self.eps, False)
        if x.numel() == channels:
            variance = torch.zeros_like(variance)  # one value per channel: torch divides by m - 1 = 0
        with torch.no_grad():
            blobs = [self.weight_blob(name) for name in self.blob_names]
            torch._foreach_mul_(blobs, self.fraction)
            torch._foreach_add_(blobs, [mean, variance, torch.ones_like(blobs[2])])
        return y


@layer("Scale", "scale_param")
class Scale(Layer):
    """x times a multiplier spanning `num_axes` axes from `axis`, plus an optional bias of its shape.

    With two bottoms the second is the multiplier, and only the bias is learned.
    """

    bottoms = (1, 2)

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.scale_param
        scalar = shapes[1:] and not shapes[1]  # a 0-axis multiplier fits anywhere
        self.axis = 0 if scalar else canonical_axis(spec, message.axis, len(shapes[0]))
        if len(shapes) == 1:
            span = len(shapes[0]) - self.axis if message.num_axes == -1 else message.num_axes
            if span < 0 or self.axis + span > len(shapes[0]):
                raise spec.fail(
                    f"num_axes {message.num_axes} from axis {self.axis} exceeds its {len(shapes[0])}-axis bottom"
                )
            shape = shapes[0][self.axis : self.axis + span]
            one = FillerParameter(type="constant", value=1)
            self.add_blob("weight", shape, message.filler if message.HasField("filler") else one)
        else:
            shape = shapes[1]
            if shapes[0][self.axis : self.axis + len(shape)] != shape:
                raise spec.fail(f"multiplier {list(shape)} doesn't fit bottom {list(shapes[0])} from axis {self.axis}")
        if message.bias_term:
            self.add_blob("bias", shape, message.bias_filler if message.HasField("bias_filler") else None)
        self.out_shapes = (shapes[0],)

    def forward(self, x: Tensor, multiplier: Tensor | None = None) -> Tensor:
        weight = self.weight_blob() if multiplier is None else multiplier
        bias = self.blob("bias")
        trailing = (1,) * (x.dim() - self.axis - weight.dim())
        weight = weight.reshape(*weight.shape, *trailing)
        if bias is None:
            return x * weight
        return torch.addcmul(bias.reshape(weight.shape), x, weight)


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
        if not self.within:
            return F.local_response_norm(x, self.size, self.alpha, self.beta, self.k)
        mean = F.avg_pool2d(x * x, self.size, 1, self.size // 2)
        return x * (1 + self.alpha * mean).pow(-self.beta)
