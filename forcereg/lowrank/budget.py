"""Ranks under a budget: the whole net may cost a share of its multiply-accumulates or of its learned values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, gcd, inf
from typing import Literal, SupportsFloat

import numpy as np
from torch import Tensor

from forcereg.cost import Cost
from forcereg.errors import ForceregError, UsageError
from forcereg.lowrank.choosers import Chooser
from forcereg.lowrank.factor import Rank
from forcereg.lowrank.ranks import Candidate, Choice, Criterion, Whole

Measure = Literal["macs", "params"]
WORDS = {"macs": "MACs", "params": "learned values"}
STEPS = 2**28
"""Comparisons that a search may take (about a second); decides how finely costs are told apart."""
MET = 0.02
"""A budget counts as met by what leaves at most this share of it."""


@dataclass(frozen=True)
class Options:
    """What can be chosen for a layer, by rising cost; `whole`: what the layer costs as it is."""

    choices: Sequence[Choice]
    costs: Sequence[int]
    errors: Sequence[float]
    whole: int

    def only(self, ranks: Collection[Rank]) -> Options:
        """Those ranks alone, and the whole layer if it is among the choices."""
        kept = [at for at, one in enumerate(self.choices) if isinstance(one, Whole) or one in ranks]
        choices, costs, errors = self.choices, self.costs, self.errors
        return Options(
            [choices[at] for at in kept], [costs[at] for at in kept], [errors[at] for at in kept], self.whole
        )

    def losses(self, most: float = inf) -> list[float]:
        """The errors weighed by what the layer costs; infinite where one is above `most`."""
        return [self.whole * error if error <= most else inf for error in self.errors]


def by_budget(
    measure: Measure,
    share: float,
    whole: Cost | None,
    fill: bool = True,
    choose: Chooser | None = None,
    moments: Callable[[], Mapping[str, Tensor]] | None = None,
) -> Criterion:
    """The best ranks within `share`, in (0, 1], of the `whole` net's MACs or learned values.

    Best is what `choose` says, None: the least sum of the layers' relative squared errors, each weighed by what the
    layer costs whole; among the choices that spend the budget to 2 %, among all within it where no choice does, or
    without `fill`. `moments`: gives those of the layers' inputs by name, (groups, K, K), to a `choose` that needs them.
    A layer whose chain would cost as much as the layer stays whole. Raises UsageError for a share out
    of range; the criterion raises it for one that can't be reached, and says what can; ForceregError where the net's
    cost is unknown.
    """
    if isinstance(share, bool) or not isinstance(share, SupportsFloat):
        raise UsageError(f"the share of {WORDS[measure]} to keep is {share!r}; expected a number above 0, at most 1")
    if not 0 < share <= 1:
        raise UsageError(f"the share of {WORDS[measure]} to keep is {share:g}; expected above 0, at most 1")
    chooser = choose or Chooser()

    def criterion(candidates: Sequence[Candidate]) -> dict[str, Choice]:
        total = None if whole is None else getattr(whole, measure)
        if total is None or any(getattr(one.dense, measure) is None for one in candidates):
            why = "data that isn't here (--input-shape), or layers that need --allow-python-layers or --import"
            raise ForceregError(f"the net's {WORDS[measure]} are unknown, so there is no share of them to keep: {why}")
        seen = chooser.seen(candidates, moments() if moments and chooser.inputs else {})
        rest = total - sum(getattr(one.dense, measure) for one in candidates)
        offers = [offered(one, measure) for one in seen]
        reached = rest + sum(offer[0][1] for offer in offers)
        room = int(share * total) - rest
        if reached > rest + room:
            raise out_of_reach(candidates, measure, share, reached, total)
        slack = int(MET * share * total) if fill else room
        found = spread(seen, measure, offers, room, slack, chooser.worst)
        return {one.name: choice for one, choice in zip(candidates, found, strict=True)}

    return criterion


def out_of_reach(
    candidates: Sequence[Candidate], measure: Measure, share: float, reached: int, total: int
) -> UsageError:
    """The error for a share that can't be reached; `reached` of the `total` can."""
    # rounded up, so that the share that is named can be reached
    lowest = ceil(1e4 * reached / total) / 1e4
    ways = ["take a smaller --multiple"] * any(one.ladder.multiple > 1 for one in candidates)
    ways += ["decompose more layers (--fc)"] * all(one.type not in ("InnerProduct", "Linear") for one in candidates)
    ways = ways or ["decompose by another --method"]
    return UsageError(
        f"a share of {share:g} of the net's {WORDS[measure]} can't be reached: the least is {lowest:g} "
        f"({reached:,} of {total:,}); allow that, or {' or '.join(ways)}"
    )


Offer = Sequence[tuple[Choice, int]]
"""Choices of a layer and their costs, rising."""


def spread(
    candidates: Sequence[Candidate], measure: Measure, offers: Sequence[Offer], room: int, slack: int, worst: bool
) -> list[Choice]:
    """The best choice for each layer within the `room`, which holds the least that is offered; the rest as for `best`.

    At least as good as equal shares of each layer's ranks.
    """
    least = [offer[0][1] for offer in offers]
    options = [
        # what is left for it when all others take their least
        affordable(one, measure, offer, room - sum(least) + low)
        for one, offer, low in zip(candidates, offers, least, strict=True)
    ]
    # one unit for all budgets: rounding never makes a larger one's net the worse
    unit = finest(offers)
    plans = [best(options, room, unit, slack, worst)]
    if any(one.ladder.several for one in candidates):  # whose errors may be estimates
        # a search by estimates may come out worse than equal shares would: then those are taken
        alike = [of.only(set(one.ranks)) for one, of in zip(candidates, options, strict=True)]
        # empty where equal shares at their least cost more than there is
        plans += [best(alike, room, unit, slack, worst)] if all(of.choices for of in alike) else []
    plans = [plan for plan in plans if plan]
    return min(plans, key=lambda plan: lost(candidates, plan, measure, worst)) if len(plans) > 1 else plans[0]


def lost(
    candidates: Sequence[Candidate], plan: Sequence[Choice], measure: Measure, worst: bool = False
) -> tuple[float, float]:
    """What a choice for each layer loses: the largest error if the `worst` counts, and the weighed sum."""
    errors = [one.error(choice) for one, choice in zip(candidates, plan, strict=True)]
    weighed = sum(getattr(one.dense, measure) * error for one, error in zip(candidates, errors, strict=True))
    return max(errors) if worst else 0.0, weighed


def offered(one: Candidate, measure: Measure) -> Offer:
    """The ranks that cost less than the whole layer, then that itself, and what each costs."""
    ranks = one.worthwhile(measure)
    # always on offer, and last: it is the dearest, and costs no accuracy
    reason = "the budget leaves room for it" if ranks else "no rank of it costs less than the whole layer"
    choices: list[Choice] = [*ranks, Whole(reason)]
    return [(choice, getattr(one.cost(choice), measure)) for choice in choices]


def affordable(one: Candidate, measure: Measure, offer: Offer, most: int) -> Options:
    """What is offered and costs at most `most`.

    Errors of other ranks are never asked for: some methods get at a rank through all lower ones.
    """
    choices, costs = zip(*((choice, cost) for choice, cost in offer if cost <= most), strict=True)
    return Options(choices, costs, [one.estimate(choice) for choice in choices], getattr(one.dense, measure))


def finest(offers: Sequence[Offer]) -> int:
    """The unit in which costs are told apart: the finest that STEPS allow, whatever the budget is."""
    every = [cost for offer in offers for _, cost in offer]
    span = sum(offer[-1][1] for offer in offers)
    return max(1, ceil(span * len(every) / STEPS), gcd(*every))


def best(options: Sequence[Options], room: int, unit: int, slack: int, worst: bool = False) -> list[Choice]:
    """One choice a layer: the least sum of losses among those whose costs leave at most `slack` of the `room`.

    If there are none, the least of all within it; empty if none is. With `worst` the largest error is made least, and
    of those that come to it the sum. Exact, if the unit divides all costs beyond the first options'; these are rounded
    up to units.
    """
    losses = [of.losses() for of in options]
    if worst:
        picked = least_joined(options, [of.errors for of in options], np.maximum, room, unit, slack)
        most = max((of.errors[at] for of, at in zip(options, picked, strict=bool(picked))), default=inf)
        # the same options, dearer ones without end: costs are rounded from the same first ones
        losses = [of.losses(most) for of in options]
    picked = least_joined(options, losses, np.add, room, unit, slack)
    return [of.choices[at] for of, at in zip(options, picked, strict=bool(picked))]


def least_joined(
    options: Sequence[Options],
    losses: Sequence[Sequence[float]],
    joined: np.ufunc,
    room: int,
    unit: int,
    slack: int,
) -> list[int]:
    """The places of the choices whose losses, `joined` over the layers (np.add, np.maximum), come to the least.

    As `best`, by dynamic programming over what is spent.
    """
    spare = room - sum(of.costs[0] for of in options)
    if spare < 0:
        return []
    cells = spare // unit
    reached = np.full(cells + 1, inf)  # the least loss of the layers so far, by units spent
    reached[0] = 0
    picks = []
    for of, lost in zip(options, losses, strict=True):
        found, pick = np.full(cells + 1, inf), np.zeros(cells + 1, np.int32)
        for at, (cost, loss) in enumerate(zip(of.costs, lost, strict=True)):
            # rounded up, so that what is found never exceeds the room
            units = -((of.costs[0] - cost) // unit)
            # costs rise, so that all after it are too dear as well
            if units > cells:
                break
            trial = joined(reached[: cells + 1 - units], loss)
            wins = trial < found[units:]
            # ties go to the cheaper choice, which comes first
            found[units:][wins], pick[units:][wins] = trial[wins], at
        reached = found
        picks.append(pick)
    # cells that leave more of the room than the slack don't count as having met the budget
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
