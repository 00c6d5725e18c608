"""The force as a regularizer: which weights of a net feel it, from which iteration to which, and how it is added.

What the force is, as mathematics of one weight, is in forcereg.solver.force.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from forcereg.net.module import Learnable, Net
from forcereg.registry import regularizer
from forcereg.schema.scan import shown
from forcereg.solver.force import ForceField, check_force
from forcereg.solver.ondevice import Beside
from forcereg.solver.regularizers.base import Regularizer

FORCE = "force"


@regularizer(FORCE)
class Force(Regularizer):
    """force_decay * force_mult times the force on each weight with rows, until force_iter."""

    def __init__(self, learning: Sequence[Learnable], p: Any, device: torch.device) -> None:
        super().__init__(learning, p, device)
        factors = [p.force_decay * one.force_mult * (one.blob.dim() >= 2) for one in learning]
        self.touched = [place for place, factor in enumerate(factors) if factor]
        views = [(one.force_view, one.groups) for one in learning]
        weights = [one.blob for one in learning]
        self._field = ForceField(weights, factors, p.force_type, p.force_decay_type, p.force_direction, views)
        self._end = p.force_iter
        self._beside = Beside(device)

    @staticmethod
    def check(p: Any, name: str) -> None:
        """See Regularizer."""
        check_force(p.force_type, p.force_decay_type, p.force_direction, name)

    @staticmethod
    def additive(p: Any) -> bool:
        """See Regularizer; an adaptive force, or one of direction "same", goes by the decayed gradient."""
        return bool((p.force_decay_type, p.force_direction) == ("fixed", "all"))

    def feels(self, iteration: int) -> bool:
        """See Regularizer."""
        return bool(self._end == -1 or iteration < self._end)

    def begin(self) -> None:
        """Starts on the forces, beside the passes: small work that leaves most of a GPU idle."""
        self._beside.start(self._field.compute)

    def add(self, grads: Sequence[Tensor]) -> None:
        """See Regularizer."""
        if not self._beside.join():  # on a CPU, which has nothing to do it beside
            self._field.compute()
        self._field.add(grads)


def forced_layers(net: Net) -> list[str]:
    """The layers with weights that feel a force: those with force_mult that learn and have filters."""
    return list(dict.fromkeys(one.layer for one in _feeling(net)))


def described(net: Net, p: Any) -> str:
    """What a run's force is and acts on, in a line."""
    named = {one.layer: "" if one.force_view == "FILTERS" else f" ({one.force_view})" for one in _feeling(net)}
    places = ", ".join(f"{layer}{view}" for layer, view in named.items())
    return f"{p.force_type} {p.force_decay:g} on {places or 'nothing'}"


def _feeling(net: Net) -> list[Learnable]:
    return [one for one in net.learnable if one.force_mult and one.blob.dim() >= 2 and one.blob.requires_grad]


def without_force(net: Net, p: Any) -> str:
    """What to say where force_decay is set and nothing feels a force; '' where something does."""
    given = ", ".join(dict.fromkeys(shown(one.layer) for one in net.learnable if one.force_mult))
    why, fix = "no weight has force_mult", "add `param { force_mult: 1 }` to"
    if forced_layers(net):
        if p.force_iter == -1 or p.force_iter > 0:
            return ""
        why, fix = f"force_iter is {p.force_iter}, so it never begins", "remove force_iter, or set how long it acts on"
    elif given:
        why = f"force_mult stands only at what doesn't learn or is a bias ({given})"
        fix = "set lr_mult there, or put `param { force_mult: 1 }` first in"
    said = f"force_decay is {p.force_decay:g} but {why}: NOTHING IS REGULARIZED"
    return f"{said}; {fix} the layers whose filters should be coordinated"
