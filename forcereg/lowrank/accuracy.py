"""Ranks by what they do to a net's accuracy: the cheapest that keep it, and the sensitivity of each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from forcereg.cost import Cost
from forcereg.errors import UsageError
from forcereg.lowrank.budget import WORDS, Measure, by_budget, offered
from forcereg.lowrank.choosers import Chooser
from forcereg.lowrank.factor import Rank
from forcereg.lowrank.ranks import Candidate, Choice, Criterion, Whole

MOST = 10
"""Evaluations of a search, that of the net as it is among them."""
NEAR = 1.01
"""Budgets that differ by no more than this factor aren't told apart."""
ROUNDING = 1e-7
"""Of an accuracy in float32; less than one item of any test set."""

Accuracy = Callable[[Mapping[str, Choice]], float]
"""A choice for each layer -> the decomposed net's accuracy on the test data, 0 to 1."""


@dataclass(frozen=True)
class Trial:
    """One net that was scored: its cost as a share of the whole net's, and whether it keeps the accuracy asked for."""

    number: int
    share: float
    words: str
    """What the share is of."""
    accuracy: float
    kept: bool

    def __str__(self) -> str:
        return f"{self.share:.1%} of the {self.words}, accuracy {self.accuracy:.4f}{'' if self.kept else ': too low'}"


def by_accuracy(
    drop: float,
    accuracy: Accuracy,
    whole: Cost,
    tell: Callable[[Trial], None] = lambda trial: None,
    choose: Chooser | None = None,
    moments: Callable[[], Mapping[str, Tensor]] | None = None,
) -> Criterion:
    """The cheapest ranks found whose accuracy is at most `drop`, in [0, 1], below the whole net's.

    Searches by bisection among the best ranks of every budget (`by_budget`, with the last two arguments; of MACs, of
    learned values where shapes are unknown), with at most MOST calls of `accuracy`. What it gives was measured and
    meets the bound; if no net does, every layer stays whole. Raises UsageError for a drop out of range.
    """
    if not 0 <= drop <= 1:
        raise UsageError(f"the accuracy to lose is {drop:g}; expected 0 to 1, as in 0.01 for one percentage point")

    def criterion(candidates: Sequence[Candidate]) -> Mapping[str, Choice]:
        scores = Scores(candidates, accuracy, whole, tell)
        # scored like the others: an accuracy from elsewhere may be of other batches
        base = scores.get({one.name: Whole("") for one in candidates}, 0.0).accuracy
        least = base - drop - ROUNDING
        reason = f"no cheaper net was found whose accuracy is at most {drop:g} below {base:.4g}"
        best: Mapping[str, Choice] = {one.name: Whole(reason) for one in candidates}
        low, high = scores.lowest(), 1.0
        while scores.count < MOST and high > NEAR * low:
            # halfway on a logarithmic scale: from 10 % to 20 % is as far as from 50 % to 100 %
            share = sqrt(low * high)
            # not filled: a cheaper net that loses nothing is as welcome as one at the budget
            choices = by_budget(scores.measure, share, whole, False, choose, moments)(candidates)
            trial = scores.get(choices, least)
            if trial.kept:
                # what it really costs, which may be well below the budget that it came of
                best, high = choices, trial.share
            else:
                low = share
        return best

    return criterion


class Scores:
    """Nets at the choices asked for, each scored once."""

    def __init__(
        self, candidates: Sequence[Candidate], accuracy: Accuracy, whole: Cost, tell: Callable[[Trial], None]
    ) -> None:
        self.measure: Measure = "params" if whole.macs is None else "macs"
        self._candidates, self._accuracy, self._tell = candidates, accuracy, tell
        self._total = getattr(whole, self.measure)
        # what is no candidate costs the same in every net
        self._rest = self._total - sum(getattr(one.dense, self.measure) for one in candidates)
        self._known: list[tuple[Mapping[str, Choice], Trial]] = []

    @property
    def count(self) -> int:
        """Nets scored so far."""
        return len(self._known)

    def get(self, choices: Mapping[str, Choice], least: float) -> Trial:
        """The net's score; `kept` if it is at least `least`."""
        # compared one by one: mappings can't be hashed, and there are ten at most
        for known, trial in self._known:
            if known == choices:
                return trial
        costs = [getattr(one.cost(choices[one.name]), self.measure) for one in self._candidates]
        share, accuracy = (self._rest + sum(costs)) / self._total, self._accuracy(choices)
        trial = Trial(self.count + 1, share, WORDS[self.measure], accuracy, accuracy >= least)
        self._known.append((choices, trial))
        self._tell(trial)
        return trial

    def lowest(self) -> float:
        """The share of the whole net's cost below which no choice gets."""
        return (self._rest + sum(offered(one, self.measure)[0][1] for one in self._candidates)) / self._total


@dataclass(frozen=True)
class Point:
    """A net in which one layer alone is decomposed, at an error bound: `error` is what its rank really has.

    `share`: of the whole net's MACs that are left, None where they are unknown. `drop`: of the accuracy.
    """

    layer: str
    method: str
    bound: float
    rank: Rank
    full_rank: Rank
    error: float
    share: float | None
    accuracy: float
    drop: float


def sensitivity(
    candidates: Sequence[Candidate], errors: Sequence[float], accuracy: Accuracy, whole: Cost
) -> Iterator[Point]:
    """Every layer alone at every error bound, in [0, 1]; before them the whole net, as a Point without a layer."""
    base = accuracy({})
    yield Point("", "", 0.0, 0, 0, 0.0, None if whole.macs is None else 1.0, base, 0.0)
    for one in candidates:
        for bound in errors:
            rank = one.smallest_rank(bound)
            after, share = one.cost(rank).macs, None
            if whole.macs is not None and one.dense.macs is not None and after is not None:
                share = (whole.macs - one.dense.macs + after) / whole.macs
            score = accuracy({one.name: rank})
            found = (bound, rank, one.full_rank, one.error(rank))
            yield Point(one.name, one.method, *found, share, score, base - score)
