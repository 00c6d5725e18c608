"""Ranks under a budget: the whole net may cost a share of its multiply-accumulates or of its learned values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, gcd, inf
from typing import Literal

import numpy as np

from forcereg.cost import Cost
from forcereg.errors import ForceregError, UsageError
from forcereg.lowrank.ranks import Candidate, Choice, Criterion, Whole

Measure = Literal["macs", "params"]
WORDS = {"macs": "MACs", "params": "learned values"}
STEPS = 2**28
"""Comparisons that a search may take (about a second); decides how finely costs are told apart."""
MET = 0.02
"""A budget counts as met by what leaves at most this share of it."""


@dataclass(frozen=True)
class Options:
    """What can be chosen for a layer, by rising cost."""

    choices: Sequence[Choice]
    costs: Sequence[int]
    losses: Sequence[float]


def by_budget(measure: Measure, share: float, whole: Cost | None, fill: bool = True) -> Criterion:
    """The best ranks within `share`, in (0, 1], of the `whole` net's MACs or learned values.

    Best is the least sum of the layers' relative squared errors, each weighed by what the layer costs whole, among
    the choices that spend the budget to 2 %; among all within it where no choice does, or without `fill`. A layer
    whose chain would cost as much as the layer stays whole. Raises UsageError for a share out of range; the criterion
    raises it for one that can't be reached, and says what can; ForceregError where the net's cost is unknown.
    """
    if not 0 < share <= 1:
        raise UsageError(f"the share of {WORDS[measure]} to keep is {share:g}; expected above 0, at most 1")

    def choose(candidates: Sequence[Candidate]) -> dict[str, Choice]:
        total = None if whole is None else getattr(whole, measure)
        if total is None or any(getattr(one.dense, measure) is None for one in candidates):
            why = "data that isn't here (--input-shape), or layers that need --allow-python-layers or --import"
            raise ForceregError(f"the net's {WORDS[measure]} are unknown, so there is no share of them to keep: {why}")
        room = int(share * total) - (total - sum(getattr(one.dense, measure) for one in candidates))
        least = [cheapest(one, measure) for one in candidates]
        if sum(least) > room:
            reached = total - sum(getattr(one.dense, measure) for one in candidates) + sum(least)
            lowest = ceil(1e4 * reached / total) / 1e4
            raise UsageError(
                f"a share of {share:g} of the net's {WORDS[measure]} can't be reached: the least is {lowest:g} "
                f"({reached:,} of {total:,}); allow that, or decompose more layers (--fc)"
            )
        spare = room - sum(least)
        options = [affordable(one, measure, low + spare) for one, low in zip(candidates, least, strict=True)]
        cells = finest(candidates, measure)
        picked = best(options, spare, cells, int(MET * share * total) if fill else spare)
        return {one.name: of.choices[at] for one, of, at in zip(candidates, options, picked, strict=True)}

    return choose


def cheapest(one: Candidate, measure: Measure) -> int:
    """The least that a layer can cost."""
    cheaper = one.cheaper(measure)
    return getattr(one.cost(cheaper[0]) if cheaper else one.dense, measure)


def affordable(one: Candidate, measure: Measure, most: int) -> Options:
    """The ranks that cost less than the whole layer and at most `most`, then the whole layer if it does.

    Errors beyond these ranks are never asked for: some methods get at a rank through all lower ones.
    """
    cheaper = one.cheaper(measure)
    costs = [getattr(one.cost(rank), measure) for rank in cheaper]
    ranks = [rank for rank, cost in zip(cheaper, costs, strict=True) if cost <= most]
    whole = getattr(one.dense, measure)
    losses = [whole * one.error(rank) for rank in ranks]
    choices: list[Choice] = list(ranks)
    costs = costs[: len(ranks)]
    if whole <= most:
        reason = "the budget leaves room for it" if cheaper else "no rank of it costs less than the whole layer"
        choices, costs, losses = [*choices, Whole(reason)], [*costs, whole], [*losses, 0.0]
    return Options(choices, costs, losses)


def finest(candidates: Sequence[Candidate], measure: Measure) -> int:
    """The unit in which costs are told apart: the finest that STEPS allow, whatever the budget is."""
    every = [getattr(one.cost(rank), measure) for one in candidates for rank in one.cheaper(measure)]
    every += [getattr(one.dense, measure) for one in candidates]
    span = sum(getattr(one.dense, measure) for one in candidates)
    return max(1, ceil(span * len(every) / STEPS), gcd(*every))


def best(options: Sequence[Options], spare: int, unit: int, slack: int) -> list[int]:
    """One option a layer: the least sum of losses where the costs beyond the first options' leave `spare` - `slack`.

    They are at most `spare`; if none are in that reach, the least sum of all. Costs are rounded up to units; exact, if
    the unit divides them all (dynamic programming).
    """
    cells = spare // unit
    reached = np.full(cells + 1, inf)  # the least loss of the layers so far, by units spent
    reached[0] = 0
    picks = []
    for of in options:
        found, pick = np.full(cells + 1, inf), np.zeros(cells + 1, np.int32)
        for at, (cost, lost) in enumerate(zip(of.costs, of.losses, strict=True)):
            units = -((of.costs[0] - cost) // unit)
            if units > cells:
                break
            trial = reached[: cells + 1 - units] + lost
            wins = trial < found[units:]
            found[units:][wins], pick[units:][wins] = trial[wins], at
        reached = found
        picks.append(pick)
    low = max(0, -((slack - spare) // unit))
    if not np.isfinite(reached[low:]).any():
        low = 0
    return traced(options, picks, low + int(reached[low:].argmin()), unit)


def traced(options: Sequence[Options], picks: Sequence[np.ndarray], cells: int, unit: int) -> list[int]:
    """From the last layer's pick back to the first's."""
    chosen = []
    for of, pick in zip(reversed(options), reversed(picks), strict=True):
        chosen.append(int(pick[cells]))
        cells += (of.costs[0] - of.costs[chosen[-1]]) // unit
    return chosen[::-1]
