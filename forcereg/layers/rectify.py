"""Rectifiers with learned or penalised outputs: PReLU, and the fork's Sparsify and SymmetricRectify."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from forcereg.layers.base import Shape
from forcereg.layers.neuron import Elementwise
from forcereg.layers.recording import recording
from forcereg.registry import layer
from forcereg.schema import FillerParameter
from forcereg.schema.spec import LayerSpec


class _AddToGradient(torch.autograd.Function):
    """The identity, but `extra` (broadcastable) is added to the gradient: a penalty outside of the loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, extra: Tensor | float) -> Tensor:
        ctx.extra = extra
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad + ctx.extra, None


class _PerChannel(Elementwise):
    """One learned value per channel (axis 1), or one for all (0 axes) with `channel_shared`."""

    def add_channel_blob(self, name: str, shape: Shape, shared: bool, filler: Any) -> None:
        """Declares the blob. Raises ForceregError for a bottom without channels."""
        if len(shape) < 2:
            raise self.spec.fail(f"bottom {list(shape)} must have at least 2 axes (N, C, ...)")
        self.add_blob(name, () if shared else (shape[1],), filler)


@layer("PReLU", "prelu_param")
class PReLU(_PerChannel):
    """max(x, 0) + slope * min(x, 0), slope (C) or 0-axis, 0.25 unless a filler is given; the gradient at 0 is slope."""

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.prelu_param
        quarter = FillerParameter(type="constant", value=0.25)
        filler = message.filler if message.HasField("filler") else quarter
        self.add_channel_blob("slope", shapes[0], message.channel_shared, filler)

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.weight_blob("slope"))


@layer("SymmetricRectify", "symmetric_rectify_param")
class SymmetricRectify(_PerChannel):
    """sign(x) * max(|x| - threshold, 0), threshold (C) or 0-axis, 0 unless a filler is given (the fork's layer).

    Every forward first sets negative thresholds to 0, in the blob. `thre_decay` is subtracted from each threshold's
    gradient. Blobs in the net file are an error, as in the fork.
    """

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.symmetric_rectify_param
        if spec.message.blobs:
            raise spec.fail("takes no blobs from the net file; remove them and load the thresholds from a weights file")
        self.thre_decay = message.thre_decay
        filler = message.filler if message.HasField("filler") else None
        self.add_channel_blob("threshold", shapes[0], message.channel_shared, filler)

    def forward(self, x: Tensor) -> Tensor:
        if recording():
            threshold = self.weight_blob("threshold").clamp(min=0)
        else:
            with torch.no_grad():
                # the blob itself: a borrowed one in another shape may come as a copy
                self.blobs[0].clamp_(min=0)
            threshold = self.weight_blob("threshold")
        if self.thre_decay and not recording():
            # subtracted, as in the fork: what it calls decay lets thresholds grow
            threshold = _AddToGradient.apply(threshold, -self.thre_decay)
        if threshold.dim():
            threshold = threshold.reshape(-1, *(1,) * (x.dim() - 2))
        # not softshrink, which takes one number, not one for each channel
        return x.sign() * F.relu(x.abs() - threshold)


@layer("Sparsify", "sparsify_param")
class Sparsify(Elementwise):
    """x with the L1 penalty coef * sum|y|, whose gradient it adds to the loss's (the fork's layer).

    With `thre` > 0, y = sign(x) * max(|x| - thre, 0), and no gradient passes where y is 0.
    """

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.sparsify_param
        self.thre, self.coef = message.thre, message.coef
        for name in ("thre", "coef"):
            value = getattr(message, name)
            if not value >= 0:
                raise spec.fail(f"{name} is {value:g}; expected 0 or more")

    def forward(self, x: Tensor) -> Tensor:
        y = F.softshrink(x, self.thre) if self.thre else x
        penalised = self.coef and y.requires_grad and not recording()
        return _AddToGradient.apply(y, self.coef * y.detach().sign()) if penalised else y
