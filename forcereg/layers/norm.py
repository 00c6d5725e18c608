"""Normalising and rescaling layers: BatchNorm, MVN, Scale, Bias, LRN."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from forcereg.layers.base import Layer, Shape, canonical_axis, count
from forcereg.layers.kernels import prefers_cudnn
from forcereg.layers.neuron import Elementwise
from forcereg.layers.recording import apply, recording, sizes
from forcereg.registry import layer
from forcereg.schema import FillerParameter, LRNParameter
from forcereg.schema.spec import LayerSpec
from forcereg.schema.synonyms import is_affine


@layer("BatchNorm", "batch_norm_param")
class BatchNorm(Layer):
    """(x - mean) / sqrt(variance + eps) per channel; in NVCaffe's form (`is_affine`) times a scale, plus a shift.

    Blobs are Caffe's running sums: mean (C), variance (C, unbiased) and their common factor (1);
    the statistics used in testing are the sums divided by the factor (0 if the factor is 0). NVCaffe's form has
    scale (C) and shift (C) behind them: what BatchNorm and a Scale with bias compute, in one layer.
    """

    overwritable = True
    per_item = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.batch_norm_param
        self.eps = message.eps
        self.fraction = message.moving_average_fraction
        # unset isn't false: it follows the phase
        self.global_stats = message.use_global_stats if message.HasField("use_global_stats") else None
        self.per_item &= self.global_stats is not False
        # a bottom of one axis is one channel, as in Caffe
        self.channels = shapes[0][1] if len(shapes[0]) > 1 else 1
        self.add_blob("mean", (self.channels,), buffer=True)
        self.add_blob("variance", (self.channels,), buffer=True)
        self.add_blob("factor", (1,), buffer=True)
        self.affine = is_affine(message)
        if self.affine:
            if len(spec.message.param) == 4:
                raise spec.fail(
                    "has 4 param entries, as for the blobs of NVCaffe 0.15 (scale, shift, mean, variance); "
                    "here they are mean, variance, factor, scale, shift: give 5 entries or none"
                )
            # a filler's own default is 0, which would take everything to 0
            one = FillerParameter(type="constant", value=1)
            self.add_blob("scale", (self.channels,), message.scale_filler if message.HasField("scale_filler") else one)
            self.add_blob("shift", (self.channels,), message.bias_filler)
        self.out_shapes = (shapes[0],)
        self.sums: RunningSums | None = None
        self.place = 0

    def forward(self, x: Tensor) -> Tensor:
        # one item of one channel, since torch looks for channels in axis 1
        return self.normalise(x if x.dim() > 1 else x[None, None]).reshape(x.shape)

    def normalise(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """x (N, C, ...) normalised, times `weight` (C), plus `bias` (C): always new memory, which backward can miss.

        In NVCaffe's form these are the layer's own, and none are given.
        """
        if self.affine:
            weight, bias = self.blob("scale"), self.blob("shift")
        use_global = not self.training if self.global_stats is None else self.global_stats
        if use_global:
            factor = self.weight_blob("factor")
            # on the device: asking for the factor would wait for it
            scale = torch.where(factor == 0, torch.zeros_like(factor), 1 / factor)
            mean, variance = self.weight_blob("mean") * scale, self.weight_blob("variance") * scale
            return torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, self.eps, False)
        sums = self.sums if self.sums is not None and self.sums.under_way else None
        if sums is None:
            mean, variance = (torch.zeros_like(self.weight_blob(name)) for name in ("mean", "variance"))
        else:
            mean, variance = sums.room(self)
        # momentum 1: torch writes the batch mean and the unbiased variance, which is what Caffe sums
        cudnn = prefers_cudnn(x, weight, bias, self.eps)
        y = torch.batch_norm(x, weight, bias, mean, variance, True, 1.0, self.eps, cudnn)
        if x.numel() == x.shape[1]:
            variance = torch.zeros_like(variance)  # one value per channel: torch divides by m - 1 = 0
        if sums is None:
            add_to_sums([self], [mean, variance], self.fraction)
        else:
            sums.put(self, mean, variance)
        return y


@torch.no_grad()
def add_to_sums(layers: Sequence[BatchNorm], found: list[Tensor], fraction: float) -> None:
    """Sums of BatchNorm layers = what the batches gave (`found`: mean, variance, mean, ...) + fraction * sums."""
    sums = [layer.weight_blob(name) for layer in layers for name in ("mean", "variance")]
    factors = [layer.weight_blob("factor") for layer in layers]
    # the sums in one launch each for all layers, as the optimizers of torch do
    torch._foreach_copy_(sums, torch._foreach_add(found, sums, alpha=fraction))
    torch._foreach_mul_(factors, fraction)
    torch._foreach_add_(factors, 1)


ALIGNED = 4
"""Values of a float32 blob that begins where kernels may read several at once: 16 bytes."""


class RunningSums:
    """The running sums of all BatchNorm layers of a net, to which a pass adds when it is through: at once.

    Each by itself takes 6 launches, which were 114 of the 298 of an iteration of ResNet-20. Layers that share their
    blobs with others of the net don't take part: what one adds the next may read.
    """

    def __init__(self, layers: Iterable[Layer]) -> None:
        norms = [one for one in layers if isinstance(one, BatchNorm)]
        holders = Counter(id(blob) for norm in norms for blob in norm.blobs)
        self._sizes: list[int] = []
        for norm in norms:
            # one counts for each layer: a blob that two hold is counted twice
            norm.sums = self if all(holders[id(blob)] == 1 for blob in norm.blobs) else None
            norm.place = len(self._sizes) // 2
            self._sizes += [-(-norm.channels // ALIGNED) * ALIGNED] * 2
        self.under_way = False
        self._room: tuple[Tensor, ...] = ()
        self._found: dict[float, tuple[list[BatchNorm], list[Tensor]]] = {}

    @contextmanager
    def behind(self) -> Iterator[None]:
        """A pass, behind which the sums are added to; of one that fails they aren't."""
        self._room, self._found, self.under_way = (), {}, True
        try:
            yield
            self.add()
        finally:
            self._room, self._found, self.under_way = (), {}, False

    def room(self, layer: BatchNorm) -> tuple[Tensor, Tensor]:
        """Zeros for a batch's mean and variance, (C) each; new ones for each pass, whose backward may see them."""
        if not self._room:
            self._room = layer.weight_blob("mean").new_zeros(sum(self._sizes)).split(self._sizes)
        mean, variance = self._room[2 * layer.place], self._room[2 * layer.place + 1]
        if layer.channels % ALIGNED:
            return mean[: layer.channels], variance[: layer.channels]
        return mean, variance

    def put(self, layer: BatchNorm, mean: Tensor, variance: Tensor) -> None:
        """What the layer found in this pass's batch."""
        layers, found = self._found.setdefault(layer.fraction, ([], []))
        layers.append(layer)
        found += (mean, variance)

    def add(self) -> None:
        """Adds what has been put by now."""
        for fraction, (layers, found) in self._found.items():
            add_to_sums(layers, found, fraction)
        self._found = {}


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
        return (apply(_Standardise, y, self.eps) if self.divide else y).reshape(x.shape)


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


def _spread(spec: LayerSpec, operand: Tensor, axis: int, x: Tensor) -> Tensor:
    """`operand` with as many trailing axes of size 1 as broadcasting from `axis` of x needs.

    Raises ForceregError if its sizes aren't those of x, which may change: torch would repeat those of 1.
    """
    if sizes(x)[axis : axis + operand.dim()] != sizes(operand):
        raise spec.fail(f"{list(operand.shape)} doesn't fit bottom {list(x.shape)} from axis {axis}")
    return operand.reshape(*operand.shape, *(1,) * (x.dim() - axis - operand.dim()))


@layer("Scale", "scale_param")
class Scale(Layer):
    """x times a multiplier spanning `num_axes` axes from `axis`, plus an optional bias of its shape.

    With two bottoms the second is the multiplier, and only the bias is learned.
    """

    bottoms = (1, 2)
    overwritable = True
    per_item = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.scale_param
        self.axis, shape = _operand(spec, message, shapes, "multiplier")
        # a bottom has items, a blob has none
        self.per_item &= self.axis > 0 if len(shapes) == 1 else self.axis == 0 and not message.bias_term
        if len(shapes) == 1:
            # a filler's own default is 0, but Caffe's Scale begins as the identity
            one = FillerParameter(type="constant", value=1)
            self.add_blob("weight", shape, message.filler if message.HasField("filler") else one)
        if message.bias_term:
            self.add_blob("bias", shape, message.bias_filler if message.HasField("bias_filler") else None)
        self.out_shapes = (shapes[0],)

    @property
    def scales_channels(self) -> bool:
        """Whether it has one learned multiplier per channel."""
        return self.axis == 1 and "weight" in self.blob_names and self.weight_blob().dim() == 1

    def forward(self, x: Tensor, multiplier: Tensor | None = None) -> Tensor:
        weight = self.weight_blob() if multiplier is None else multiplier
        bias = self.blob("bias")
        weight = _spread(self.spec, weight, self.axis, x)
        if bias is None:
            return x * weight
        # one pass over x instead of two
        return torch.addcmul(_spread(self.spec, bias, self.axis, x), x, weight)


@layer("Bias", "bias_param")
class Bias(Layer):
    """x plus a blob spanning `num_axes` axes from `axis`, or plus the second bottom."""

    bottoms = (1, 2)
    overwritable = True
    per_item = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.bias_param
        self.axis, shape = _operand(spec, message, shapes, "bias")
        self.per_item &= self.axis > 0 if len(shapes) == 1 else self.axis == 0
        if len(shapes) == 1:
            self.add_blob("bias", shape, message.filler)
        self.out_shapes = (shapes[0],)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return x + _spread(self.spec, self.weight_blob("bias") if bias is None else bias, self.axis, x)


class _LocalResponse(torch.autograd.Function):
    """x * (k + alpha * mean(x^2))^-beta with Caffe's gradient; `mean` sums over windows symmetrically."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Callable[[Tensor], Tensor], alpha: float, beta: float, k: float) -> Tensor:
        scale = mean(x * x).mul_(alpha).add_(k)
        # nothing is learned from it: one blob does for every step
        if not ctx.needs_input_grad[0]:
            return _inverse_power_(scale, beta).mul_(x)
        # the scale itself divides in backward
        power = _inverse_power_(scale.clone(), beta)
        y = x * power
        ctx.save_for_backward(x, y, scale, power)
        ctx.mean, ctx.factor = mean, -2 * alpha * beta
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, power = ctx.saved_tensors
        others = ctx.mean((grad * y).div_(scale))
        return (grad * power).addcmul_(x, others, value=ctx.factor), None, None, None, None


def _inverse_power_(x: Tensor, beta: float) -> Tensor:
    """x^-beta, in place; by square roots, several times faster than a power, for the beta that nets have."""
    if beta != 0.75:
        return x.pow_(-beta)
    root = x.rsqrt_()
    return root.mul_(root.sqrt())


def _channel_sums(x: Tensor, size: int) -> Tensor:
    """For each value the sum of those of the `size` (odd) channels around it."""
    sums = x.clone()
    for shift in range(1, size // 2 + 1):
        sums[:, shift:].add_(x[:, :-shift])
        sums[:, :-shift].add_(x[:, shift:])
    return sums


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
            if recording():
                return x * self._channel_means(x).mul(self.alpha).add(self.k).pow(-self.beta)
            sums = partial(_channel_sums, size=reach(self.size, x.shape[1]))
            return _LocalResponse.apply(x, sums, self.alpha / self.size, self.beta, self.k)
        height, width = sizes(x)[2:]
        window = reach(self.size, height), reach(self.size, width)
        mean = partial(F.avg_pool2d, kernel_size=window, stride=1, padding=(window[0] // 2, window[1] // 2))
        # avg_pool2d divides by the window as it was cut; Caffe always by size^2
        alpha = self.alpha * (window[0] / self.size) * (window[1] / self.size)
        # 1, not k: within a channel Caffe ignores it
        return apply(_LocalResponse, x, mean, alpha, self.beta, 1.0)

    def _channel_means(self, x: Tensor) -> Tensor:
        """The sums of squares over `size`, as one of torch's poolings."""
        window = reach(self.size, sizes(x)[1])
        squares = F.pad(x.square()[:, None], (0, 0, 0, 0, window // 2, window // 2))
        means = F.avg_pool3d(squares, (window, 1, 1), 1)[:, 0]
        return means * (window / self.size)


def reach(window: int, size: int) -> int:
    # centred at one end, it reaches size - 1 values to the other
    return min(window, max(2 * size - 1, 1))
