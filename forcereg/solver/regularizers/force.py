"""The force as a regularizer: which weights of a net feel it, from which iteration to which, and how it is added.

What the force is, as mathematics of one weight, is in forcereg.solver.force.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.lowrank.views import row_count, unfolded, unfoldings
from forcereg.net.module import Learnable, Net
from forcereg.registry import regularizer
from forcereg.schema.scan import shown
from forcereg.solver import course
from forcereg.solver.diagnostics import forced_ranks
from forcereg.solver.force import ForceField, check_force
from forcereg.solver.metric import Metric, check_metric
from forcereg.solver.ondevice import Beside
from forcereg.solver.regularizers.base import Once, Regularizer, Watch

FORCE = "force"


@regularizer(FORCE)
class Force(Regularizer):
    """force_decay * force_mult times the force on each weight with rows, on its course to its end."""

    def __init__(self, learning: Sequence[Learnable], p: Any, device: torch.device) -> None:
        super().__init__(learning, p, device)
        factors = [p.force_decay * one.force_mult * bool(_drawn(one, p)) for one in learning]
        self.touched = [place for place, factor in enumerate(factors) if factor]
        views = [(one.force_view, one.groups) for one in learning]
        weights = [one.blob for one in learning]
        # as it is written: a float32 0.7 is a little less, and 7 of 10 would be too many
        self._course, self._until = course.course_of(p), float(f"{p.force_until:g}")
        settings = (p.force_type, p.force_decay_type, p.force_direction)
        self._p, self._forced = p, [learning[place] for place in self.touched]
        self._metric = Metric(self._forced, p.force_metric_interval) if p.force_metric == "responses" else None
        moments = dict(zip(self.touched, self._metric.moments, strict=True)) if self._metric else {}
        self._field = ForceField(weights, factors, *settings, views, self._course.varies, moments)
        self._looks = False  # whether this iteration looks at inputs
        # the iteration at which force_until was reached, -1 before: a snapshot's tensor, and as the host reads it
        self._reached = torch.full((1,), -1.0, dtype=torch.float64)
        self._turned = self._reached.numpy()
        self._beside = Beside(device)

    @staticmethod
    def check(p: Any, name: str) -> None:
        """See Regularizer."""
        check_force(p.force_type, p.force_decay_type, p.force_direction, name, p.force_metric)
        if p.force_metric_interval < 1:
            raise ForceregError(f"{name}: force_metric_interval is {p.force_metric_interval}; expected >= 1")
        for problem in course.problems(p):
            raise ForceregError(f"{name}: {problem}")

    @staticmethod
    def additive(p: Any) -> bool:
        """See Regularizer; an adaptive force, or one of direction "same", goes by the decayed gradient."""
        return bool((p.force_decay_type, p.force_direction) == ("fixed", "all"))

    def feels(self, iteration: int) -> bool:
        """See Regularizer."""
        return self._now().level(iteration) > 0

    def whole(self, iteration: int) -> bool:
        """See Regularizer."""
        return self._now().level(iteration) == 1

    def prepare(self, iteration: int) -> None:
        """Sets how strong the forces are."""
        if self._course.varies:
            self._field.set(self._now().level(iteration))
        self._looks = self._metric is not None and self._metric.due(iteration)

    def watch(self) -> Watch | None:
        """See Regularizer; what the metric of responses is made of."""
        return self._metric.watch if self._metric is not None and self._looks else None

    def watched(self, mean: Callable[[Tensor], Tensor]) -> None:
        """See Regularizer."""
        if self._metric is not None and self._looks:
            self._metric.take(mean)

    def look(self, iteration: int, once: Once) -> None:
        """Lets go once all ranks are at most force_until of full ones: of what its view draws together."""
        if self._until and self._turned[0] < 0 and once(self._low):
            self._reached.fill_(iteration)

    def news(self, iteration: int) -> str:
        """See Regularizer."""
        text = self._now().news(iteration)
        early = text and self._until and iteration == self._turned[0]
        return f"All ranks at 5 % error are at most {self._until:g} of full ones. {text}" if early else text

    def carried(self) -> Mapping[str, Tensor]:
        """See Regularizer."""
        reached = {"reached": self._reached} if self._until else {}
        return {**reached, **(self._metric.carried() if self._metric is not None else {})}

    def _now(self) -> course.Course:
        reached = self._turned[0]
        return self._course if reached < 0 else self._course.let_go(int(reached))

    def _low(self) -> bool:
        """Whether all ranks are as low as force_until asks for; never while a weight isn't finite."""
        matrices = _matrices(self._forced, self._p)
        ranks = forced_ranks(matrices)
        # no rank is below 1
        return len(ranks) == len(matrices) and all(rank <= max(1, self._until * n) for rank, n in ranks.values())

    def begin(self) -> None:
        """Starts on the forces, beside the passes: small work that leaves most of a GPU idle."""
        if not self._looks:  # else the passes tell first what they depend on
            self._beside.start(self._field.compute)

    def add(self, grads: Sequence[Tensor]) -> None:
        """See Regularizer."""
        if not self._beside.join():  # on a CPU, which has nothing to do it beside
            self._field.compute()
        self._field.add(grads)


def forced_layers(net: Net) -> list[str]:
    """The layers whose weights are to feel a force: those with force_mult that learn and have filters."""
    return list(dict.fromkeys(one.layer for one in _asked(net)))


def forced_matrices(net: Net, p: Any) -> dict[str, Tensor]:
    """What the force draws together, by layer: (groups, rows, entries); none where force_decay is 0.

    A layer's name has "/index" behind it unless the weight is its first blob, and " (CHANNELS)" or the like where these
    aren't its filters; BOTH makes two entries.
    """
    return _matrices(_feeling(net, p), p) if p.force_decay else {}


def _matrices(forced: Sequence[Learnable], p: Any) -> dict[str, Tensor]:
    found = {}
    for one in forced:
        name = f"{one.layer}/{one.index}" if one.index else one.layer
        for unfolding, groups in _drawn(one, p):
            view = "" if unfolding == "FILTERS" else f" ({unfolding})"
            found[name + view] = unfolded(one.blob.detach(), unfolding, groups)
    return found


def described(net: Net, p: Any) -> str:
    """What a run's force is and acts on, in a line."""
    named = {one.layer: "" if one.force_view == "FILTERS" else f" ({one.force_view})" for one in _feeling(net, p)}
    places = ", ".join(f"{layer}{view}" for layer, view in named.items())
    metric = ", by responses," if p.force_metric == "responses" else ""
    text = f"{p.force_type} {p.force_decay:g}{metric} on {places or 'nothing'}"
    return "; ".join(filter(None, (text, course.described(p))))


def check_fit(net: Net, p: Any) -> None:
    """Raises ForceregError for a net whose forced weights `p` asks more of than they have."""
    if p.force_decay and p.force_metric == "responses":
        check_metric(net, _feeling(net, p))


def _feeling(net: Net, p: Any) -> list[Learnable]:
    return [one for one in _asked(net) if _drawn(one, p)]


def _asked(net: Net) -> list[Learnable]:
    return [one for one in net.learnable if one.force_mult and one.blob.dim() >= 2 and one.blob.requires_grad]


def _drawn(one: Learnable, p: Any) -> list[tuple[str, int]]:
    """The unfoldings of a weight that have rows to draw together, and the groups that each is taken of."""
    shape, apart = one.blob.shape, p.force_metric == "responses"
    found = unfoldings(one.force_view, one.groups, apart) if len(shape) >= 2 else []
    return [(unfolding, groups) for unfolding, groups in found if row_count(shape, unfolding, groups) > 1]


def without_force(net: Net, p: Any) -> str:
    """What to say where force_decay is set and nothing feels a force; '' where something does."""
    given = ", ".join(dict.fromkeys(shown(one.layer) for one in net.learnable if one.force_mult))
    why, fix = "no weight has force_mult", "add `param { force_mult: 1 }` to"
    if _feeling(net, p):
        if p.force_iter == -1 or p.force_iter > 0:
            return ""
        why, fix = f"force_iter is {p.force_iter}, so it never begins", "remove force_iter, or set how long it acts on"
    elif alone := ", ".join(map(shown, forced_layers(net))):
        why = f"it has nothing to draw together in {alone}, by their force_view single filters or channels"
        fix = "use another force_view there, or put `param { force_mult: 1 }` first in"
    elif given:
        why = f"force_mult stands only at what doesn't learn or is a bias ({given})"
        fix = "set lr_mult there, or put `param { force_mult: 1 }` first in"
    said = f"force_decay is {p.force_decay:g} but {why}: NOTHING IS REGULARIZED"
    return f"{said}; {fix} the layers whose filters should be coordinated"
