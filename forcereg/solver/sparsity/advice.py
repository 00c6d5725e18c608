"""Warnings that help: a group lasso too strong to make zeros, a rate that falls before sparsity has settled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from forcereg.net.module import Net
from forcereg.registry import solver_type
from forcereg.schema.scan import shown
from forcereg.solver import policy
from forcereg.solver.sparsity.asked import ISTA, kind_of, terms_of, threshold

DROP = 0.5
"""A rate at most so many times the last one has dropped."""
WINDOW, RISE = 0.1, 1.0
"""Sparsity is settled if no kind of it rose by more than RISE, in percent, in the last WINDOW of those at a rate."""


def too_strong(net: Net, p: Any) -> str:
    """What to say where rate * decay is above twice the threshold; '' where blocks can become zero.

    A step shortens a block by rate * decay whatever its length, so that a shorter one swings around zero: it stays
    zero only if the swing ends within the threshold. Types that rescale gradients aren't judged.
    """
    limit = 2 * threshold(net, p)
    if not limit or solver_type.get(p.type)().adaptive:
        return ""
    _, first = policy.highest(p)
    last = policy.rate(p, max(0, p.max_iter - 1), policy.catch_up(p, max(0, p.max_iter - 1), 0))
    found: dict[str, float] = {}
    for one in net.learnable:
        decay = one.lr_mult * sum(term.decay for term in terms_of(one, p))
        if decay > 0 and first * decay > limit * (1 + 1e-6):
            found.setdefault(one.layer, decay)
    if not found:
        return ""
    layer, most = max(found.items(), key=lambda item: item[1])
    never = last * most > limit * (1 + 1e-6)
    when = "none of them ever becomes zero" if never else f"none becomes zero before the rate is {limit / most:.3g}"
    return (
        f"group lasso on {', '.join(map(shown, found))}: rate * decay is up to {first * most:.3g} ({shown(layer)}), "
        f"above {limit:.3g}, so blocks swing around zero and {when}; at the rate {first:g} the decays of a blob may "
        f"add up to {limit / first:.3g} at most"
    )


def notes(net: Net, p: Any) -> list[str]:
    """What differs from the forks and is used here, a line each."""
    if p.weight_decay and any(kind_of(one, p) == ISTA for one in net.learnable):
        return ["ISTA: the soft threshold rate * decay is the only penalty; SkimCaffe adds decay * sign(w) as well"]
    return []


class Settling:
    """Follows sparsity over the displays of a run, from its start or its resume on."""

    def __init__(self) -> None:
        self._rate = 0.0
        self._since = 0
        self._seen: list[tuple[int, dict[str, float]]] = []

    def take(self, iteration: int, layers: Sequence[Mapping[str, Any]]) -> None:
        """What a display tells: see statistics.told."""
        shares: dict[str, float] = {}
        for layer in layers:
            if layer["index"] == 0:
                blocks = {f"blocks ({one['x']},{one['y']})": one["percent"] for one in layer["blocks"]}
                kinds = blocks or {"rows": layer["row"], "columns": layer["column"]}
                shares |= {f"{kind} of {layer['layer']}": share for kind, share in kinds.items()}
        self._seen.append((iteration, shares))

    def fallen(self, iteration: int, rate: float) -> str:
        """Told the rate of an iteration: what to say if it has dropped too early, '' otherwise."""
        before, self._rate = self._rate, rate
        if not 0 < rate <= DROP * before:
            return ""
        start = iteration - WINDOW * (iteration - self._since)
        window = [one for one in self._seen if one[0] >= start]
        self._since, self._seen = iteration, self._seen[-1:]
        if len(window) < 2:
            return ""
        (first, low), (last, high) = window[0], window[-1]
        most = max(high, key=lambda name: high[name] - low[name], default="")
        if not most or high[most] - low[most] <= RISE:
            return ""
        return (
            f"the rate drops at iteration {iteration} while sparsity still rises (zero {most}: {low[most]:.1f} % at "
            f"iteration {first}, {high[most]:.1f} % at {last}): sparsity is made at the first rate, accuracy comes "
            "back at the later ones; let it drop later"
        )
