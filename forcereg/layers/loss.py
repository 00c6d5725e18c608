"""Class scores and labels: Softmax, SoftmaxWithLoss, Accuracy, and what the other losses share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from forcereg.layers.base import Layer, Shape, canonical_axis, count
from forcereg.layers.neuron import Elementwise
from forcereg.layers.recording import sizes
from forcereg.registry import layer
from forcereg.schema import LossParameter
from forcereg.schema.spec import LayerSpec

MAX_NLL = -math.log(torch.finfo(torch.float32).tiny)
"""Caffe clamps a probability at FLT_MIN, so one item's loss is at most 87.3365."""


def normalization_mode(spec: LayerSpec, default: str) -> str:
    """What the summed loss is divided by: FULL, VALID, BATCH_SIZE or NONE; `normalization` beats `normalize`."""
    message = spec.message.loss_param
    if message.HasField("normalization"):
        return LossParameter.NormalizationMode.Name(message.normalization)
    if message.HasField("normalize"):
        return "VALID" if message.normalize else "BATCH_SIZE"
    return default


def normalizer(mode: str, items: Tensor, valid: Tensor | None) -> Tensor | int:
    """Z, at least 1: what the sum over `items` (N, ...) is divided by; `valid` says which count (None: all)."""
    if mode == "VALID" and valid is not None:
        # on the device: max() would wait for the number
        return valid.sum().clamp(min=1)
    if mode in ("VALID", "FULL"):
        return max(1, items.numel())
    return max(1, items.shape[0]) if mode == "BATCH_SIZE" else 1


def check_labels(spec: LayerSpec, scores: Shape, labels: Shape, axis: int) -> None:
    """Raises ForceregError unless there is one label per score vector along `axis`."""
    expected = count(scores) // max(scores[axis], 1)
    if count(labels) != expected:
        raise spec.fail(
            f"labels {list(labels)} hold {count(labels)} values; scores {list(scores)} with axis {axis} need {expected}"
        )


NO_LABEL = -(1 << 40)
"""Stands for "nothing is ignored": torch's default of -100 would hide a wrong label."""


class ClassScores(Layer):
    """A layer of class scores (bottom 0) and labels (bottom 1) along one axis.

    `classes` and `ignore_label` say which labels are valid; the data layer checks them when it decodes.
    """

    bottoms = (2, 2)
    tops = (1, 2)
    labels = frozenset({1})
    per_batch = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape], axis: int, param: Any) -> None:
        super().__init__(spec, shapes)
        self.axis = canonical_axis(spec, axis, len(shapes[0]))
        check_labels(spec, shapes[0], shapes[1], self.axis)
        self.classes = shapes[0][self.axis]
        # 0 is a label, so that unset can't be told by the value
        self.ignore_label = param.ignore_label if param.HasField("ignore_label") else None

    def aligned(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Scores as (N, classes, ...) and integer labels as (N, ...). Raises ForceregError for fewer classes."""
        classes = sizes(scores)[self.axis]
        if classes < self.classes:  # for which labels have been checked
            raise self.spec.fail(
                f"scores {list(scores.shape)} are of {classes} classes, at first of {self.classes}; give as many"
            )
        if self.axis != 1 or scores.dim() == 1:
            outer = count(scores.shape[: self.axis])
            scores = scores.reshape(outer, classes, -1)
        shape = (scores.shape[0], *scores.shape[2:])
        return scores, labels.detach().reshape(shape).long()


@layer("Softmax", "softmax_param")
class Softmax(Elementwise):
    """exp(x) normalised along `axis` (1)."""

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        self.axis = canonical_axis(spec, spec.message.softmax_param.axis, len(shapes[0]))
        self.per_item &= self.axis > 0

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(x, self.axis)


@layer("SoftmaxWithLoss", "softmax_param loss_param")
class SoftmaxWithLoss(ClassScores):
    """-(1/Z) sum of log softmax at the label, each term at most 87.3365; the second top is the softmax.

    The gradient is probability minus one-hot also where the loss is clamped, and none flows back
    from the second top (both Caffe's).
    """

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes, spec.message.softmax_param.axis, spec.message.loss_param)
        self.mode = normalization_mode(spec, "VALID")
        self.give_softmax = len(spec.tops) > 1
        self.out_shapes = ((), shapes[0])[: len(spec.tops)]

    def forward(self, scores: Tensor, labels: Tensor) -> Any:
        nll, target, valid = self._terms(scores, labels)
        loss = nll.sum() / normalizer(self.mode, target, valid)
        if self.give_softmax:
            return loss, F.softmax(scores.detach(), self.axis)
        return loss

    def _terms(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """-log softmax at the labels, the labels, and which of them count (None: all); each (N, ...)."""
        aligned, target = self.aligned(scores, labels)
        ignore = NO_LABEL if self.ignore_label is None else self.ignore_label
        # the terms one by one: each is clamped, and Caffe divides by its own Z
        nll = F.cross_entropy(aligned, target, ignore_index=ignore, reduction="none")
        nll.detach().clamp_(max=MAX_NLL)  # behind autograd's back: the gradient stays p - onehot
        return nll, target, None if self.ignore_label is None else target != self.ignore_label

    def soft(self, scores: Tensor, labels: Tensor, goals: Tensor, temperature: float) -> Tensor:
        """T^2 KL(softmax(goals / T) || softmax(scores / T)), 0-d, summed and divided over items as the loss is.

        scores, goals: of one shape; items of ignore_label count in neither. T^2 makes its gradient as large as that of
        labels, whatever the temperature T (Hinton et al. 2015, section 2).
        """
        aligned, target = self.aligned(scores, labels)
        logs, aims = (F.log_softmax(one / temperature, 1) for one in (aligned, self.aligned(goals, labels)[0]))
        terms = F.kl_div(logs, aims, reduction="none", log_target=True).sum(1)
        valid = None
        if self.ignore_label is not None:
            valid = target != self.ignore_label
            terms = torch.where(valid, terms, 0)
        return temperature**2 * terms.sum() / normalizer(self.mode, target, valid)

    def each(self, batches: int, scores: Tensor, labels: Tensor) -> Any:  # type: ignore[override]
        """See Layer; by as many launches as one batch takes."""
        # classes lie where batches are joined
        if self.axis == 0:
            return super().each(batches, scores, labels)
        nll, target, valid = self._terms(scores, labels)
        if self.mode == "VALID" and valid is not None:
            over: Tensor | int = valid.reshape(batches, -1).sum(1).clamp(min=1)
        else:
            # the labels of one batch: FULL and BATCH_SIZE count what is in it
            over = normalizer(self.mode, target[: len(target) // batches], None)
        loss = nll.reshape(batches, -1).sum(1) / over
        return (loss, F.softmax(scores, self.axis)) if self.give_softmax else loss


@layer("Accuracy", "accuracy_param")
class Accuracy(ClassScores):
    """Share of items for which fewer than `top_k` other classes score at least the label's score.

    So ties count against (upstream Caffe's rule), and a NaN score is wrong. The second top is the
    accuracy per class, 0 for an absent one.
    """

    labels = frozenset({0, 1})

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        message = spec.message.accuracy_param
        super().__init__(spec, shapes, message.axis, message)
        self.top_k = message.top_k
        if not 1 <= self.top_k <= self.classes:
            raise spec.fail(f"top_k is {self.top_k}; expected 1 to the number of classes {self.classes}")
        self.per_class = len(spec.tops) > 1
        self.out_shapes = ((), (self.classes,))[: len(spec.tops)]

    def forward(self, scores: Tensor, labels: Tensor) -> Any:
        correct, valid, target = self._judged(scores, labels)
        total = correct.sum() / valid.sum().clamp(min=1)
        if not self.per_class:
            return total
        flat = target.flatten()
        # both sums in one tensor: one launch to clear them
        per_class = scores.new_zeros(2, scores.shape[self.axis])
        per_class[0].scatter_add_(0, flat, correct.flatten())
        per_class[1].scatter_add_(0, flat, valid.flatten().to(scores.dtype))
        return total, per_class[0] / per_class[1].clamp(min=1)

    def each(self, batches: int, scores: Tensor, labels: Tensor) -> Any:  # type: ignore[override]
        """See Layer; by as many launches as one batch takes."""
        if self.axis == 0 or self.per_class:
            return super().each(batches, scores, labels)
        correct, valid, _ = (one.reshape(batches, -1) for one in self._judged(scores, labels))
        return correct.sum(1) / valid.sum(1).clamp(min=1)

    def _judged(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which items are right (1 or 0), which count, and their labels (0 where they don't); each (N, ...)."""
        aligned, target = self.aligned(scores.detach(), labels)
        valid = torch.ones_like(target, dtype=torch.bool)
        if self.ignore_label is not None:
            valid = target != self.ignore_label
            # gather takes no index outside, whatever ignore_label is
            target = torch.where(valid, target, 0)
        true = aligned.gather(1, target.unsqueeze(1))
        # not `>=`: a NaN beside the label must count against it, too; 1 is the label itself
        not_below = (~(aligned < true)).sum(1) - 1
        # a NaN at the label is above nothing, which BVLC's Caffe takes for right
        return ((not_below < self.top_k) & ~true.isnan().squeeze(1) & valid).to(scores.dtype), valid, target
