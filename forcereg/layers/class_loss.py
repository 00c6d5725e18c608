"""Losses of class scores and labels beside SoftmaxWithLoss: HingeLoss, InfogainLoss, MultinomialLogisticLoss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.layers.base import Shape, count, item_rows
from forcereg.layers.loss import ClassScores, normalization_mode, normalizer
from forcereg.registry import layer
from forcereg.schema import HingeLossParameter, LossParameter
from forcereg.schema.blobs import read_blob
from forcereg.schema.spec import LayerSpec
from forcereg.system.paths import resolve

LEAST = 1e-20
"""Caffe clamps a probability here before its logarithm, in the losses of this file."""


class ItemScores(ClassScores):
    """Scores and one label per item: an item's classes are all its values, whatever its axes."""

    tops = (1, 1)

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        if not shapes[0]:
            raise spec.fail("bottom 0 has no axes; expected items along axis 0")
        # Caffe flattens an item here, whatever its axes
        rows = (shapes[0][0], count(shapes[0][1:]))
        super().__init__(spec, [rows, shapes[1]], 1, LossParameter())
        self.out_shapes = ((),)

    def rows(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Scores as (N, classes) and integer labels as (N, 1)."""
        rows, target = self.aligned(item_rows(scores), labels)
        return rows, target.unsqueeze(1)


@layer("HingeLoss", "hinge_loss_param")
class HingeLoss(ItemScores):
    """One class against all others: sum of max(0, 1 - s*x), s = 1 at the label and -1 elsewhere, over N.

    Norm L2 sums the squares.
    """

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        self.norm = HingeLossParameter.Norm.Name(spec.message.hinge_loss_param.norm)

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        rows, target = self.rows(scores, labels)
        signs = torch.ones_like(rows).scatter_(1, target, -1)
        violations = F.relu(1 + signs * rows)
        return (violations if self.norm == "L1" else violations.square()).sum() / rows.shape[0]


@layer("MultinomialLogisticLoss")
class MultinomialLogisticLoss(ItemScores):
    """-mean log max(p, 1e-20) of the labels' probabilities; the gradient is -1/(N max(p, 1e-20)), as Caffe's."""

    def forward(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        rows, target = self.rows(probabilities, labels)
        p = rows.gather(1, target)
        p.detach().clamp_(min=LEAST)  # behind autograd's back: the gradient isn't 0 where p is clamped
        return -p.log().sum() / rows.shape[0]


def read_infogain(spec: LayerSpec, source: str, classes: int) -> Tensor:
    """The (classes, classes) matrix of a BlobProto file, float32. Raises ForceregError."""
    try:
        path = resolve(spec.root, source)
        values = read_blob(path, "infogain source")
    except ForceregError as error:
        raise spec.fail(str(error)) from error
    if values.size != classes**2:
        raise spec.fail(f"infogain source {path} holds {values.size} values; {classes} classes need {classes**2}")
    return torch.from_numpy(values.reshape(classes, classes))


@layer("InfogainLoss", "infogain_loss_param loss_param")
class InfogainLoss(ClassScores):
    """-(1/Z) sum over classes l of H[label, l] * log max(p_l, 1e-20), p the softmax of the scores along `axis` (1).

    The infogain matrix H (classes x classes) is bottom 2, or the BlobProto file `source`. The gradient is
    p * sum(H[label]) - H[label], also where p is clamped, and none flows to H or from the second top, p (upstream
    Caffe's rule; the fork takes probabilities).
    """

    bottoms = (2, 3)

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        message = spec.message.infogain_loss_param
        super().__init__(spec, shapes, message.axis, spec.message.loss_param)
        if spec.message.loss_param.HasField("normalize"):
            raise spec.fail(
                "loss_param has normalize, which InfogainLoss doesn't take; use normalization: VALID or BATCH_SIZE"
            )
        self.mode = normalization_mode(spec, "VALID")
        self.out_shapes = ((), shapes[0])[: len(spec.tops)]
        if len(shapes) == 3:
            if count(shapes[2]) != self.classes**2:
                raise spec.fail(
                    f"infogain matrix {list(shapes[2])} holds {count(shapes[2])} values; "
                    f"{self.classes} classes need {self.classes**2}"
                )
        elif message.source:
            # not persistent: it is the file's, and Caffe's snapshots have no blob for it
            self.register_buffer("matrix", read_infogain(spec, message.source, self.classes), persistent=False)
        else:
            raise spec.fail("has no infogain matrix; give it as bottom 2, or as a file by infogain_loss_param source")

    def forward(self, scores: Tensor, labels: Tensor, infogain: Tensor | None = None) -> Any:
        aligned, target = self.aligned(scores, labels)
        valid = None
        if self.ignore_label is not None:
            valid = target != self.ignore_label
            target = torch.where(valid, target, 0)
        matrix = self.get_buffer("matrix") if infogain is None else infogain.detach()
        # one row of H for each item: the loss is a sum over all classes, not over the label's only
        gains = matrix.reshape(self.classes, self.classes).index_select(0, target.flatten())
        gains = gains.reshape(*target.shape, self.classes).movedim(-1, 1)
        # a copy: softmax's own backward reads its output, which is clamped below
        log_p = F.log_softmax(aligned, 1).clone()
        log_p.detach().clamp_(min=math.log(LEAST))  # behind autograd's back, as above
        terms = (gains * log_p).sum(1)
        if valid is not None:
            terms = torch.where(valid, terms, 0)
        loss = -terms.sum() / normalizer(self.mode, target, valid)
        return (loss, F.softmax(scores.detach(), self.axis)) if len(self.out_shapes) > 1 else loss
