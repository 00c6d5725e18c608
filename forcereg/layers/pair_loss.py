"""Losses that compare two blobs of equal size: EuclideanLoss, SigmoidCrossEntropyLoss, ContrastiveLoss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from forcereg.layers.base import Layer, Shape, count, item_rows
from forcereg.layers.loss import normalization_mode, normalizer
from forcereg.layers.recording import apply
from forcereg.registry import layer
from forcereg.schema.spec import LayerSpec


class PairLoss(Layer):
    """A 0-axis loss of two bottoms with the same number of items (axis 0) and of values."""

    bottoms = (2, 2)
    per_batch = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        a, b = shapes[:2]
        if not a or a[:1] != b[:1] or count(a) != count(b):
            raise spec.fail(
                f"bottoms {list(a)} and {list(b)} must hold the same number of values, for the same number of items"
            )
        self.out_shapes = ((),)


@layer("EuclideanLoss")
class EuclideanLoss(PairLoss):
    """sum((a - b)^2) / (2N), N = size of axis 0; both bottoms get a gradient."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        # equal counts are enough, as in Caffe
        return (a - b.reshape(a.shape)).square().sum() / (2 * a.shape[0])


@layer("SigmoidCrossEntropyLoss", "loss_param")
class SigmoidCrossEntropyLoss(PairLoss):
    """Logistic loss of logits (bottom 0) against targets (bottom 1), summed and divided by Z (default: BATCH_SIZE).

    A target whose integer part is `ignore_label` doesn't count.
    """

    labels = frozenset({1})

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.loss_param
        self.mode = normalization_mode(spec, "BATCH_SIZE")
        self.ignore_label = message.ignore_label if message.HasField("ignore_label") else None

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        # no gradient for targets, which Caffe refuses
        targets = targets.detach().reshape(logits.shape).to(logits.dtype)
        terms = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        valid = None
        if self.ignore_label is not None:
            # Caffe casts a target to int before it compares
            valid = targets.trunc() != self.ignore_label
            terms = torch.where(valid, terms, 0)
        return terms.sum() / normalizer(self.mode, targets, valid)


class _Distance(torch.autograd.Function):
    """Square root, whose gradient divides by 2 (root + 1e-4): Caffe's, finite at 0."""

    @staticmethod
    def forward(ctx: Any, squared: Tensor) -> Tensor:
        root = squared.sqrt()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        return grad / (2 * (root + 1e-4))


@layer("ContrastiveLoss", "contrastive_loss_param")
class ContrastiveLoss(PairLoss):
    """Pairs of (N, C) features, d apart: d^2 if alike (bottom 2 non-zero), else max(0, margin - d)^2; sum / (2N).

    `legacy_version`: max(0, margin - d^2) for the others. The new version's gradient has d + 1e-4 where the plain
    derivative has d (Caffe's).
    """

    bottoms = (3, 3)
    labels = frozenset({2})

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.contrastive_loss_param
        self.margin, self.legacy = message.margin, message.legacy_version
        for shape in shapes[:2]:
            if count(shape[2:]) != 1:
                raise spec.fail(f"bottom {list(shape)} must be of shape (N, C); put a Flatten layer before it")
        if count(shapes[2]) != shapes[0][0]:
            raise spec.fail(f"bottom 2 {list(shapes[2])} must hold one value per pair ({shapes[0][0]})")

    def forward(self, a: Tensor, b: Tensor, alike: Tensor) -> Tensor:
        squared = (item_rows(a) - item_rows(b)).square().sum(1)
        if self.legacy:
            unlike = F.relu(self.margin - squared)
        else:
            unlike = F.relu(self.margin - apply(_Distance, squared)).square()
        # Caffe casts it to int
        same = alike.detach().flatten().trunc() != 0
        return torch.where(same, squared, unlike).sum() / (2 * a.shape[0])
