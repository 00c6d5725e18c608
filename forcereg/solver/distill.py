"""A net that learns from another one, its teacher: from what that says of the very same batch, beside the labels.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2. The teacher runs in its TEST
phase as far as the scores that a SoftmaxWithLoss of the net reads: its blob of the same name. Of each such loss L with
loss_weight l the total then has

    l * ((1 - share) * L + share * T^2 * KL(softmax(teacher / T) || softmax(net / T)))

where L and KL are means over the same items (`SoftmaxWithLoss.soft`). Other losses stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forcereg.layers.loss import SoftmaxWithLoss
from forcereg.net.batching import gathered
from forcereg.net.module import Net
from forcereg.solver.precision import Precision
from forcereg.system.sidefiles import parse_json

TEACHER = "forcereg_teacher"
"""The attribute of a model that says by whom it was taught."""


@dataclass(frozen=True)
class Head:
    """A loss that a teacher adds to: its layer, the blobs that this reads and gives, and the teacher's for `scores`."""

    layer: SoftmaxWithLoss
    scores: str
    labels: str
    loss: str
    weight: float
    goals: str

    @property
    def soft(self) -> str:
        """What the soft loss is called among the outputs."""
        return f"{self.loss}_soft"


class Lesson:
    """Runs a net (by `precision`) and its `teacher` on the same batch. `told`: who teaches, as snapshots say it."""

    def __init__(
        self,
        net: Net,
        precision: Precision,
        teacher: Net,
        heads: Sequence[Head],
        temperature: float,
        share: float,
        told: Mapping[str, Any],
    ) -> None:
        self.teacher, self._net, self._precision = teacher, net, precision
        # in the net's precision: in float32 it would take most of a fast step's time
        self._teaching = Precision(teacher, precision.device, precision.kind, lambda text: None)
        self._heads, self._temperature, self._share = heads, temperature, share
        self._blobs = list(dict.fromkeys(name for one in heads for name in (one.scores, one.labels, one.loss)))
        self.told = {**told, "temperature": temperature, "weight": share}

    def forward_loss(self, inputs: Mapping[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of both kinds, float32, and the net's outputs with the soft losses; nothing waits for the device."""
        given = gathered(self._net, inputs)
        with torch.no_grad():
            goals = self._teaching.outputs({name: given[name] for name in self.teacher.inputs})
        loss, blobs = self._precision.forward_loss(given, self._blobs)
        outputs = {name: blobs[name] for name in self._net.spec.outputs}
        for one in self._heads:
            scores, labels = blobs[one.scores].float(), blobs[one.labels]
            soft = one.layer.soft(scores, labels, goals[one.goals].float(), self._temperature)
            loss = loss + (one.weight * self._share) * (soft - blobs[one.loss])
            outputs[one.soft] = soft.detach()
        return loss, outputs

    @property
    def loss_weights(self) -> dict[str, float]:
        """Loss output -> what it counts in the total, soft ones too."""
        hard = {one.loss: one.weight * (1 - self._share) for one in self._heads}
        soft = {one.soft: one.weight * self._share for one in self._heads}
        return {**self._net.loss_weights, **hard, **soft}


def attributes(lesson: Lesson | None) -> dict[str, str]:
    """What a snapshot says of it."""
    return {} if lesson is None else {TEACHER: json.dumps(lesson.told)}


def change_of(saved: str | None, lesson: Lesson | None) -> str:
    """What to say where a run goes on with another teacher than that of its snapshot (its attribute TEACHER)."""
    try:
        before = parse_json(saved) if saved else {}
    except ValueError:
        before = None
    now = {} if lesson is None else lesson.told
    if isinstance(before, dict) and _without_place(before) == _without_place(now):
        return ""
    return f"the snapshot was trained with {_shown(before)}; training goes on with {_shown(now)}"


def _without_place(told: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name != "file"}


def _shown(told: Any) -> str:
    if not isinstance(told, Mapping):  # whatever it is, none of ours
        return "an unknown teacher"
    rest = ", ".join(f"{name} {value}" for name, value in told.items() if name not in ("file", "weights"))
    return f"teacher {told.get('file')} ({rest})" if told else "no teacher"
