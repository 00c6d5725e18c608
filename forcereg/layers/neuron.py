"""Elementwise layers without blobs: ReLU, ELU, Exp, Power, Clip, Dropout, ..."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from forcereg.layers.base import Layer, Shape
from forcereg.layers.recording import apply, recording
from forcereg.registry import layer
from forcereg.schema.spec import LayerSpec


class Elementwise(Layer):
    """One bottom, one top of the same shape."""

    per_item = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        self.out_shapes = (shapes[0],)


@layer("ReLU", "relu_param")
class ReLU(Elementwise):
    """max(x, 0) + negative_slope * min(x, 0); the gradient at 0 is the slope.

    `overwrite` is set by the net where the bottom's memory can be reused.
    """

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        self.slope = spec.message.relu_param.negative_slope
        self.overwrite = False

    def forward(self, x: Tensor) -> Tensor:
        if self.slope:
            # its gradient at 0 is the slope, as Caffe's
            return F.leaky_relu(x, self.slope)
        return F.relu(x, inplace=self.overwrite and not recording())


@layer("Sigmoid", "sigmoid_param")
class Sigmoid(Elementwise):
    """1 / (1 + exp(-x))."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


@layer("TanH", "tanh_param")
class TanH(Elementwise):
    """tanh(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


@layer("Dropout", "dropout_param")
class Dropout(Elementwise):
    """In training keeps with probability 1 - ratio and scales by 1/(1 - ratio); in testing the identity.

    With `scale_train: false` (Fast R-CNN's fork) it scales by 1 - ratio in testing instead, in training not at all.
    """

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.dropout_param
        self.ratio, self.scale_train = message.dropout_ratio, message.scale_train
        if not 0 <= self.ratio < 1:
            raise spec.fail(f"dropout_ratio is {self.ratio:g}; expected 0 <= ratio < 1")

    def forward(self, x: Tensor) -> Tensor:
        if self.scale_train:
            return F.dropout(x, self.ratio, self.training)
        # dropout's own draw, without the scale that it brings along
        kept = F.dropout(torch.ones_like(x), self.ratio) > 0 if self.training else 1 - self.ratio
        return x * kept


@layer("AbsVal")
class AbsVal(Elementwise):
    """|x|; the gradient at 0 is 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


@layer("BNLL")
class BNLL(Elementwise):
    """log(1 + exp(x)), without overflow."""

    def forward(self, x: Tensor) -> Tensor:
        # where Caffe's gradient clamps x; in float32 log(1 + e^x) is x long before
        return F.softplus(x, threshold=50)


@layer("ELU", "elu_param")
class ELU(Elementwise):
    """x above 0, alpha * (exp(x) - 1) elsewhere; the gradient at 0 is alpha."""

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        self.alpha = spec.message.elu_param.alpha

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x, self.alpha)


def log_of_base(spec: LayerSpec, base: float) -> float:
    """The natural logarithm of `base`, where -1 stands for e. Raises ForceregError for another base <= 0."""
    if base == -1:
        return 1.0
    if not 0 < base < math.inf:
        raise spec.fail(f"base is {base:g}; expected a positive number, or -1 for e")
    return math.log(base)


@layer("Exp", "exp_param")
class Exp(Elementwise):
    """base ^ (shift + scale * x); base -1 (the default) is e."""

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.exp_param
        log_base = log_of_base(spec, message.base)
        # b^y = e^(y log b): the base costs nothing in forward
        self.scale, self.shift = log_base * message.scale, log_base * message.shift

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.scale, self.shift).exp()


@layer("Log", "log_param")
class Log(Elementwise):
    """Logarithm to `base` of shift + scale * x; base -1 (the default) is e."""

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.log_param
        self.log_base = log_of_base(spec, message.base)
        if self.log_base == 0:
            raise spec.fail("base is 1, to which there is no logarithm; expected another positive number, or -1 for e")
        self.scale, self.shift = message.scale, message.shift

    def forward(self, x: Tensor) -> Tensor:
        y = linear(x, self.scale, self.shift).log()
        return y if self.log_base == 1 else y / self.log_base


@layer("Power", "power_param")
class Power(Elementwise):
    """(shift + scale * x) ^ power; a constant, with gradient 0, if scale or power is 0."""

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.power_param
        self.power, self.scale, self.shift = message.power, message.scale, message.shift

    def forward(self, x: Tensor) -> Tensor:
        if self.scale * self.power == 0:
            constant = torch.full_like(x, self.shift).pow(self.power)
            # x takes part, though it is never picked, so that its gradient is zeros and not missing
            return torch.where(torch.zeros((), dtype=torch.bool, device=x.device), x, constant)
        y = linear(x, self.scale, self.shift)
        return y if self.power == 1 else y.pow(self.power)


def linear(x: Tensor, scale: float, shift: float) -> Tensor:
    """scale * x + shift, without the steps that change nothing."""
    x = x if scale == 1 else x * scale
    return x if shift == 0 else x + shift


@layer("Swish", "swish_param")
class Swish(Elementwise):
    """x * sigmoid(beta * x)."""

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        self.beta = spec.message.swish_param.beta

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x) if self.beta == 1 else x * torch.sigmoid(self.beta * x)


class _Clamp(torch.autograd.Function):
    """x limited to [low, high] with Caffe's gradient at the bounds, 1: torch's clamp has 0 there from 2.14 on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.low, ctx.high = low, high
        return x.clamp(low, high)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return torch.where((x >= ctx.low).logical_and_(x <= ctx.high), grad, 0), None, None


@layer("Clip", "clip_param")
class Clip(Elementwise):
    """x limited to [min, max], both of which must be given; the gradient is 1 on the closed interval."""

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.clip_param
        missing = [name for name in ("min", "max") if not message.HasField(name)]
        if missing:
            raise spec.fail(f"clip_param lacks {' and '.join(missing)}; set for example clip_param {{ min: 0 max: 6 }}")
        self.low, self.high = message.min, message.max
        if not self.low <= self.high:
            raise spec.fail(f"clip_param has min {self.low:g} and max {self.high:g}; expected min <= max")

    def forward(self, x: Tensor) -> Tensor:
        return apply(_Clamp, x, self.low, self.high)


@layer("Threshold", "threshold_param")
class Threshold(Elementwise):
    """1 where x > threshold, else 0; no gradient."""

    labels = frozenset({0})

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        self.threshold = spec.message.threshold_param.threshold

    def forward(self, x: Tensor) -> Tensor:
        return (x > self.threshold).to(x.dtype)
