"""How much of each layer to keep: a criterion looks at all candidates and gives each a rank, or a reason to leave it.

Add one here (or in a module of its own, if it is long): a function that returns a `Criterion`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from forcereg.cost import Cost, chain_cost
from forcereg.errors import UsageError, check_share
from forcereg.lowrank.factor import Rank, rank_text
from forcereg.lowrank.ladder import Ladder


@dataclass(frozen=True)
class Whole:
    """A choice: the layer stays as it is."""

    reason: str


@dataclass(frozen=True)
class Dearer(Whole):
    """The layer stays as it is because its chain at the rank that a rule gave costs no less."""


Choice = Rank | Whole


@dataclass(frozen=True)
class Candidate:
    """A layer that can be decomposed: the method's ladder of ranks, and what it costs at each."""

    name: str
    type: str
    where: str
    """Opens errors: file, line and layer."""
    method: str
    ladder: Ladder
    dense: Cost
    positions: tuple[int | None, ...]
    """Output positions for one image of each part of the chain."""
    bias: int = 0
    """Values of the bias."""

    def cost(self, choice: Choice) -> Cost:
        """Of the chain at a rank, or of the whole layer."""
        if isinstance(choice, Whole):
            return self.dense
        return chain_cost([prod(size) for size in self.ladder.sizes(choice)], self.positions, self.bias)

    def error(self, choice: Choice) -> float:
        """The relative squared error at a rank; 0 for the whole layer."""
        return 0.0 if isinstance(choice, Whole) else self.ladder.error(choice)

    def work(self, choice: Choice) -> int:
        """What a choice costs to compute: MACs, or the learned values where shapes are unknown."""
        cost = self.cost(choice)
        # one unit for both sides of a comparison, also where shapes are known for one of them only
        return cost.params if cost.macs is None or self.dense.macs is None else cost.macs

    def kept(self, choice: Choice) -> Choice:
        """The choice, but the whole layer where the chain costs no less; the reason names rank and cost."""
        if isinstance(choice, Whole) or self.work(choice) < (whole := self.work(Whole(""))):
            return choice
        unit = "learned values" if self.dense.macs is None else "MACs"
        times = f"{self.work(choice) / whole:.2f}x its {unit}" if whole else f"{self.work(choice):,} {unit}"
        return Dearer(f"its chain of rank {rank_text(choice)} would have {times}")

    def estimate(self, choice: Choice) -> float:
        """The same, but an upper bound where it takes long."""
        return 0.0 if isinstance(choice, Whole) else self.ladder.estimate(choice)

    @property
    def full_rank(self) -> Rank:
        """The largest rank."""
        return self.ladder.full_ranks if self.ladder.several else self.ladder.full_rank

    @property
    def ranks(self) -> Sequence[Rank]:
        """All that can be chosen, rising; of several ranks those that are about equal shares of the full ones."""
        return self.ladder.alike

    def cheaper(self, measure: str = "") -> Sequence[Rank]:
        """Those of `ranks` whose chain costs less than the whole layer: its "macs" or "params".

        Without a measure the MACs, the learned values where shapes are unknown.
        """
        measure = measure or ("params" if self.dense.macs is None else "macs")
        whole, ranks = getattr(self.dense, measure), self.ranks
        # costs rise with the rank, so that the first that isn't cheaper ends it
        return ranks[: bisect_left(ranks, whole, key=lambda rank: getattr(self.cost(rank), measure))]

    @property
    def cheaper_up_to(self) -> Rank:
        """The last of `cheaper`, 0 if there is none."""
        return max(self.cheaper(), default=0)

    def worthwhile(self, measure: str) -> Sequence[Rank]:
        """The ranks worth choosing among, whose chains cost less than the whole layer, by rising cost.

        Of several ranks the combinations of which no other is as cheap and about as good; if those are very many, not
        all of them.
        """
        if not self.ladder.several:
            return self.cheaper(measure)
        # the ladder counts weights, the layer's cost has its bias
        return self.ladder.efficient(self._places(measure), getattr(self.dense, measure) - self._bias(measure))

    def smallest_rank(self, error: float) -> Rank:
        """The cheapest rank found at which every group's relative squared error is at most `error`, in [0, 1].

        By MACs, by learned values where shapes are unknown.
        """
        # a place that is unknown would count as free
        known = self.dense.macs is not None and None not in self.positions
        return self.ladder.smallest_rank(error, self._places("macs" if known else "params"))

    def _places(self, measure: str) -> list[int]:
        """What a value of each part of the chain costs."""
        return [1 if measure == "params" else place or 0 for place in self.positions]

    def _bias(self, measure: str) -> int:
        return self.bias if measure == "params" else 0


Criterion = Callable[[Sequence[Candidate]], Mapping[str, Choice]]
"""Candidates in file order -> a choice for each by name."""


def unless_dearer(criterion: Criterion, asked: Collection[str] = ()) -> Criterion:
    """The same, but layers whose chain at its rank costs no less than they do stay whole (`Candidate.kept`).

    `asked`: names of layers for which the criterion's rank holds all the same, since a user gave it.
    """

    def choose(candidates: Sequence[Candidate]) -> dict[str, Choice]:
        choices = criterion(candidates)
        return {one.name: choices[one.name] if one.name in asked else one.kept(choices[one.name]) for one in candidates}

    return choose


def by_error(error: float) -> Criterion:
    """Every layer the smallest rank whose relative squared error is at most `error`, in [0, 1]: the cheapest."""
    check_share("the error bound", error)
    return lambda candidates: {one.name: one.smallest_rank(error) for one in candidates}


def by_energy(energy: float) -> Criterion:
    """Every layer the smallest rank that keeps the share `energy`, in [0, 1], of the squared norm: error 1 - energy."""
    check_share("the share of energy to keep", energy)
    return by_error(1 - energy)


def by_fork_ratio(ratio: float) -> Criterion:
    """The fork's ratio for svd: the root of the kept share of energy is at least `ratio`, in [0, 1]."""
    check_share("the ratio", ratio)
    return by_error(1 - ratio**2)


def by_list(ranks: Sequence[Rank]) -> Criterion:
    """One given total rank per layer, in file order. The criterion raises UsageError if the counts differ."""

    def choose(candidates: Sequence[Candidate]) -> dict[str, Choice]:
        names = [one.name for one in candidates]
        if len(ranks) != len(names):
            listed = ", ".join(names) or "none"
            raise UsageError(f"{len(ranks)} ranks given; the net has {len(names)} layers to decompose: {listed}")
        return dict(zip(names, ranks, strict=True))

    return choose
