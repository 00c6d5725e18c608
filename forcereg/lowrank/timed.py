"""Ranks from measured times: of the ranks near those that a criterion gives the fastest, or the layer as it is."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from statistics import median

from forcereg.errors import ForceregError, UsageError
from forcereg.lowrank.factor import Rank, each_of, rank_text
from forcereg.lowrank.ranks import Candidate, Choice, Criterion, Whole

Timer = Callable[[Candidate, Sequence[Choice]], Sequence[Sequence[float]]]
"""A layer and choices for it (`Whole`: as it is) -> milliseconds of each, by rounds in which all took turns."""

MULTIPLES = (4, 8, 16, 32)
"""Channels of a group that kernels like: registers and blocks hold so many."""
PAIRS = 8
"""Ranks near one that are measured at most; a single one has no more than there are MULTIPLES."""
GAIN = 0.03
"""The share of its time that a layer has to save before its chain counts as faster."""
TIE = 0.02
"""Chains whose times differ by less count as equally fast."""
MOST = 0.75
"""The share of the rounds in which a faster chain has to be faster."""


@dataclass(frozen=True)
class Trial:
    """What was measured of a layer, in milliseconds, and what came of it.

    `asked`: the criterion's rank. `before`: as it is. `times`: its chain at each rank tried.
    """

    name: str
    asked: Rank
    before: float
    times: Mapping[Rank, float]
    choice: Choice

    @property
    def after(self) -> float:
        """Of what was chosen."""
        return self.before if isinstance(self.choice, Whole) else self.times[self.choice]


@dataclass(frozen=True)
class Timed:
    """A choice for every layer by name, and the trials of those that the criterion gave a rank."""

    choices: Mapping[str, Choice]
    trials: tuple[Trial, ...]


def by_times(candidates: Sequence[Candidate], criterion: Criterion, timer: Timer, budget: bool = False) -> Timed:
    """Every layer its fastest chain at the criterion's rank or one near it; layers that none makes faster stay whole.

    Ranks go up, so that the error only gets less; with a `budget` they go down, and it is shared out anew without the
    layers that stay whole. Raises ForceregError for ranks out of range, UsageError as the criterion.
    """
    known: dict[tuple[str, Rank], Trial] = {}
    whole: dict[str, Trial] = {}
    while True:
        # ends: with every round at least one more layer stays whole
        left = [one for one in candidates if one.name not in whole]
        asked = _asked(criterion, left, list(whole))
        found: dict[str, Trial] = {}
        for one in left:
            if not isinstance(choice := asked[one.name], Whole):
                rank = rounded(one, choice)
                # measured once: a budget shared out anew mostly asks for the same ranks again
                found[one.name] = known.get((one.name, rank)) or trial(one, rank, timer, budget)
                known[one.name, rank] = found[one.name]
        slower = {name: tried for name, tried in found.items() if isinstance(tried.choice, Whole)}
        whole.update(slower)
        # without a budget a layer that stays whole takes nothing from the others
        if not budget or not slower:
            tried = {**whole, **found}
            trials = tuple(tried[one.name] for one in candidates if one.name in tried)
            # a rank that was asked for and kept stays as it was asked for: where it's rounded, that is told
            others = {one.name: one.choice for one in trials if one.choice != one.asked}
            return Timed({**asked, **others}, trials)


def _asked(criterion: Criterion, left: Sequence[Candidate], whole: Sequence[str]) -> Mapping[str, Choice]:
    try:
        return criterion(left)
    except UsageError as error:
        if not whole:
            raise
        raise UsageError(f"{error}; no chain makes {', '.join(whole)} faster here, so they stay whole") from error


def rounded(one: Candidate, rank: Rank) -> Rank:
    """The rank that the layer's method takes for `rank`. Raises ForceregError for one out of range."""
    try:
        return one.ladder.rounded(rank)
    except ValueError as error:
        raise ForceregError(f"{one.where}: cannot be decomposed: {error}") from error


def trial(one: Candidate, asked: Rank, timer: Timer, down: bool = False) -> Trial:
    """Measures one layer and decides for its fastest chain; of equals the one nearest to `asked` wins.

    Going `down` a lower rank is faster anyway and costs accuracy, so there the time for each MAC counts.
    """
    ranks = [asked, *nearby(one, asked, down)]
    as_is, *chains = timer(one, [Whole("as it is"), *ranks])
    # medians: what else the machine does shows in single rounds
    before, times = median(as_is), {rank: median(rounds) for rank, rounds in zip(ranks, chains, strict=True)}
    scores = {rank: ms / (one.work(rank) if down else 1) for rank, ms in times.items()}
    # ranks are in order of nearness, so that of equals the first is the nearest
    best = next(rank for rank in ranks if scores[rank] <= min(scores.values()) * (1 + TIE))
    choice: Choice = best
    if not is_faster(chains[ranks.index(best)], as_is):
        text = f"measured: {before:.3g} ms as it is, {times[best]:.3g} ms as a chain of rank {rank_text(best)}"
        choice = Whole(text + _doubt(chains[ranks.index(best)], as_is))
    return Trial(one.name, asked, before, times, choice)


def nearby(one: Candidate, asked: Rank, down: bool = False) -> list[Rank]:
    """The next multiples of MULTIPLES for every group above `asked`, or below it if `down`; the nearest first.

    At most twice or at least half of it, and only where the chain costs less than the layer and the layer has the rank.
    Several ranks go each to its own multiple or stay; the PAIRS nearest are taken.
    """
    steps = [multiple * one.ladder.groups for multiple in MULTIPLES]
    each = [
        dict.fromkeys([value, *(value // step * step if down else -(-value // step) * step for step in steps)])
        for value in each_of(asked)
    ]
    found: list[Rank] = [values if isinstance(asked, tuple) else values[0] for values in itertools.product(*each)]
    near = [
        rank
        for rank in found
        if rank != asked and _is_near(each_of(rank), each_of(asked)) and _has(one, rank) and _costs_less(one, rank)
    ]
    # by ratio of work: half and double are equally far
    near.sort(key=lambda rank: abs(log(one.work(rank) / one.work(asked))))
    return near[:PAIRS]


def _is_near(values: Sequence[int], asked: Sequence[int]) -> bool:
    return all(2 * value >= other and value <= 2 * other for value, other in zip(values, asked, strict=True))


def _has(one: Candidate, rank: Rank) -> bool:
    """Whether the layer's rank can be this one."""
    try:
        return one.ladder.rounded(rank) == rank
    except ValueError:
        return False


def _costs_less(one: Candidate, rank: Rank) -> bool:
    return one.work(rank) < one.work(Whole(""))


def is_faster(chain: Sequence[float], whole: Sequence[float]) -> bool:
    """Whether a chain is really faster, by its milliseconds and those of the whole layer in the same rounds."""
    return _saves(chain, whole) and _wins(chain, whole) >= MOST * len(whole)


def _saves(chain: Sequence[float], whole: Sequence[float]) -> bool:
    return median(chain) <= (1 - GAIN) * median(whole)


def _wins(chain: Sequence[float], whole: Sequence[float]) -> int:
    return sum(a < b for a, b in zip(chain, whole, strict=True))


def _doubt(chain: Sequence[float], whole: Sequence[float]) -> str:
    """Why a chain doesn't count as faster although its median is."""
    return f", faster in {_wins(chain, whole)} of {len(whole)} rounds only" if _saves(chain, whole) else ""
