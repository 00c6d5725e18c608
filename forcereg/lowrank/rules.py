"""The rules for ranks: how much of each layer to keep, by error, energy, list, file, budget or accuracy.

Add one here, or in a module of its own that is imported at the end: one frozen dataclass, registered with the option
that `forcereg decompose` offers it by. Rules are plain values; what they need of torch is imported when they choose.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from forcereg.errors import UsageError, check_share, did_you_mean
from forcereg.lowrank.choosers import USUAL, Chooser
from forcereg.lowrank.rule import Rule, Subject
from forcereg.registry import Option, chooser, rank_rule
from forcereg.system.arguments import wrong
from forcereg.system.paths import StrPath

if TYPE_CHECKING:
    from forcereg.lowrank.config import LayerRules
    from forcereg.lowrank.factor import Rank
    from forcereg.lowrank.ranks import Candidate, Choice, Criterion


# -- by error


@rank_rule("MaxError", option=Option(
    "--error", "E", "Rank rule: a bound on each layer's relative squared error, 0 to 1.", float,
))  # fmt: skip
@dataclass(frozen=True)
class MaxError(Rule):
    """Every layer the smallest rank whose relative squared error is at most `error`, 0 to 1.

    Raises UsageError for another number.

    >>> forcereg.MaxError(0.05)
    MaxError(error=0.05)
    """

    error: float

    def __post_init__(self) -> None:
        check_share("the error bound", self.error)

    def criterion(self, subject: Subject) -> Criterion:
        """See Rule."""
        from forcereg.lowrank.ranks import by_error

        return by_error(self.error)


@rank_rule("MinEnergy", option=Option(
    "--energy", "R", "Or the share of each layer's squared norm to keep: --error 1-R.", float,
))  # fmt: skip
@dataclass(frozen=True)
class MinEnergy(Rule):
    """Every layer the smallest rank that keeps the share `energy`, 0 to 1, of its squared norm.

    Raises UsageError for another number.

    >>> forcereg.MinEnergy(0.95)
    MinEnergy(energy=0.95)
    """

    energy: float

    def __post_init__(self) -> None:
        check_share("the share of energy to keep", self.energy)

    def criterion(self, subject: Subject) -> Criterion:
        """See Rule."""
        from forcereg.lowrank.ranks import by_energy

        return by_energy(self.energy)


@rank_rule("ForkSvdRatio", option=Option(
    "--fork-svd-ratio", "R", "Or Caffe's fork's ratio for --method svd: the root of that share.", float,
))  # fmt: skip
@dataclass(frozen=True)
class ForkSvdRatio(Rule):
    """Caffe's fork's ratio for svd: the root of the kept share of energy is at least `ratio`, 0 to 1.

    Raises UsageError for another number.

    >>> forcereg.ForkSvdRatio(0.9)
    ForkSvdRatio(ratio=0.9)
    """

    ratio: float

    def __post_init__(self) -> None:
        check_share("the ratio", self.ratio)

    def check(self, method: str, has_data: bool) -> None:
        """See Rule: for another method than svd it says nothing."""
        if method != "svd":
            raise UsageError(
                f"--fork-svd-ratio is the fork's rule for --method svd, not for {method}; use --energy, "
                "which means the same for every method"
            )

    def criterion(self, subject: Subject) -> Criterion:
        """See Rule."""
        from forcereg.lowrank.ranks import by_fork_ratio

        return by_fork_ratio(self.ratio)


# -- as given


@rank_rule("Ranks", option=Option(
    "--ranks", "A,B,..",
    "Or one rank per decomposed layer, in the net file's order; for tucker2 also outputs-inputs.",
))  # fmt: skip
@dataclass(frozen=True)
class Ranks(Rule):
    """One rank for each layer that is decomposed, in the net's order; for tucker2 also pairs (outputs, inputs).

    They are totals over a layer's groups, and hold even where a chain costs no less than its layer. What it is the rule
    of raises UsageError if the net has another number of such layers, ForceregError for a rank out of range.

    >>> forcereg.Ranks([10, (4, 16)])
    Ranks(ranks=(10, (4, 16)))
    """

    ranks: Sequence[Rank]
    dearer: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.ranks, str) or not isinstance(self.ranks, Iterable):
            raise not_ranks(self.ranks)
        # the dataclass is frozen; tuples, so that rules compare and hash
        object.__setattr__(self, "ranks", tuple(map(rank_of, self.ranks)))

    @classmethod
    def parsed(cls, text: str) -> Ranks:
        """Of 13,21,27 or 4-1,4-16."""
        try:
            return cls([rank_in(one) for one in text.split(",")])
        except ValueError:
            pairs = "or pairs for tucker2, as in 4-1,4-16"
            raise ValueError(f"whole numbers with commas, as in 13,21,27, {pairs}") from None

    def criterion(self, subject: Subject) -> Criterion:
        """See Rule."""
        from forcereg.lowrank.ranks import by_list

        return by_list(self.ranks)


def rank_of(given: Any) -> Rank:
    """A rank or pair, with numbers of any library as Python's own. Raises UsageError."""
    try:
        if isinstance(given, list | tuple):
            return tuple(map(operator.index, given))
        return operator.index(given)
    except TypeError:
        raise not_ranks(given) from None


def not_ranks(given: Any) -> UsageError:
    """The error for what is no rank, or no list of them."""
    return UsageError(f"the ranks have {given!r}; expected whole numbers, as in [10, 3], or pairs, as in [(4, 16)]")


def rank_in(text: str) -> Rank:
    """12, or 8-12 as a pair. Raises ValueError."""
    numbers = tuple(map(int, text.split("-")))
    return numbers if len(numbers) > 1 else numbers[0]


@rank_rule("RankConfig", option=Option(
    "--rank-config", "FILE.json",
    "Or what a file says for each layer: {\"conv1\": 8}, or an object with method and one of rank, error, energy. "
    "Layers not named stay whole.",
    Path,
))  # fmt: skip
@dataclass(frozen=True)
class RankConfig(Rule):
    """What is said for each layer: a rank, or a mapping with method and one of rank, error and energy.

    config: such a mapping, or the path of a JSON file with one. Layers that it doesn't name stay whole; ranks hold
    even where a chain costs no less than its layer. It is read at once: raises ForceregError for what is wrong in it.

    >>> sorted(forcereg.RankConfig({"conv1": 8, "conv2": {"method": "vh", "error": 0.05}}).layers.methods)
    ['conv2']
    """

    config: StrPath | Mapping[str, Any]

    def __post_init__(self) -> None:
        if isinstance(self.config, Mapping):  # whoever made it may change it later
            object.__setattr__(self, "config", copy.deepcopy(dict(self.config)))
        elif not isinstance(self.config, str | PathLike):
            raise UsageError(f'config is {self.config!r}; expected a path, or ranks by layer, as in {{"conv1": 8}}')
        # not by assert, which python -O takes away
        _ = self.layers

    def __hash__(self) -> int:
        # what a mapping says of a layer may be a mapping, which has no hash
        return hash(frozenset(self.config) if isinstance(self.config, Mapping) else self.config)

    @cached_property
    def layers(self) -> LayerRules:
        """What is said of each layer."""
        from forcereg.lowrank.config import config_of, read_config

        # once: cached_property writes to __dict__, also of a frozen dataclass
        return config_of(self.config) if isinstance(self.config, Mapping) else read_config(self.config)

    @property
    def asked(self) -> Collection[str]:
        """The layers that have a rank; errors and energies are rules as others."""
        return [name for name, rule in self.layers.layers.items() if rule.rank is not None]

    def criterion(self, subject: Subject) -> Criterion:
        """See Rule."""
        return self.layers


# -- within a budget


class Spread(Rule):
    """What looks for its ranks among the best at a cost: `choose` says which those are, by a registered name."""

    choose: str

    def check_spread(self) -> None:
        """Raises UsageError for a name that nobody has."""
        if not isinstance(self.choose, str):
            raise wrong("choose", self.choose, f"one of {', '.join(chooser)}")
        if self.choose not in chooser:
            hint = did_you_mean(self.choose, chooser) or f"; known are {', '.join(chooser)}"
            raise UsageError(f"unknown {chooser.kind} {self.choose!r}{hint}")

    def by(self, choose: str | None) -> Spread:
        """The same rule by another way; None: as it is."""
        return self if choose is None else replace(self, choose=choose)  # type: ignore[type-var]  # of a dataclass

    @property
    def spread(self) -> str:
        """By what it is spread over the layers, where that isn't the usual way; or empty."""
        return "" if self.choose == USUAL else self.choose

    @property
    def chooser(self) -> Chooser:
        """What says which ranks are best."""
        made: Chooser = chooser.get(self.choose)()
        return made


@dataclass(frozen=True)
class Budget(Spread):
    """The best ranks with which the whole net has at most a share of its cost."""

    dearer: ClassVar[bool] = True  # a budget never takes a chain that costs as much as its layer
    budget: ClassVar[bool] = True
    measure: ClassVar[Any] = "macs"
    share: float
    choose: str = USUAL

    def __post_init__(self) -> None:
        from forcereg.lowrank.budget import by_budget

        by_budget(self.measure, self.share, None)  # its range
        self.check_spread()

    def criterion(self, subject: Subject) -> Criterion:
        """See Rule."""
        from forcereg.lowrank.budget import by_budget

        return by_budget(self.measure, self.share, subject.whole, choose=self.chooser, moments=subject.moments)


@rank_rule("MaxMacs", option=Option(
    "--max-macs", "F", "Or the best ranks with which the whole net has at most this share of its MACs.",
    float, 0, 1, above=True,
))  # fmt: skip
@dataclass(frozen=True)
class MaxMacs(Budget):
    """The best ranks with which the whole net has at most the share `share` of its MACs, above 0, at most 1.

    `choose`: how it spreads over the layers. "energy" makes least the sum of their relative squared errors, each
    weighed by what the layer costs whole; "minmax" the largest of them (ALDS, NeurIPS 2021); "responses" the sum of
    the errors of the layers' responses to training data; "remainder" that of the errors behind the leading directions,
    for nets trained with force. Raises UsageError for another number or word, and when ranks are chosen for a share
    that can't be reached.

    >>> forcereg.MaxMacs(0.5, choose="minmax")
    MaxMacs(share=0.5, choose='minmax')
    """

    measure: ClassVar[Any] = "macs"


@rank_rule("MaxParams", option=Option(
    "--max-params", "F", "Or of its parameters.", float, 0, 1, above=True,
))  # fmt: skip
@dataclass(frozen=True)
class MaxParams(Budget):
    """The best ranks with which the whole net has at most the share `share` of its parameters, above 0, at most 1.

    `choose` and the errors raised are those of MaxMacs.

    >>> forcereg.MaxParams(0.5)
    MaxParams(share=0.5, choose='energy')
    """

    measure: ClassVar[Any] = "params"


# -- by accuracy


@rank_rule("MaxAccuracyDrop", option=Option(
    "--max-accuracy-drop", "D",
    "Or the cheapest found that lose at most D of the accuracy (0.01: one percentage point) on the test net of "
    "--solver.", float, 0, 1,
))  # fmt: skip
@dataclass(frozen=True)
class MaxAccuracyDrop(Spread):
    """The cheapest ranks found that lose at most `drop`, 0 to 1, of the whole net's accuracy.

    What it gives was measured; if no net keeps as much, every layer stays whole. Each net is scored on the test net of
    `solver`, a file, or by `score`: a function of the decomposed net (a `forcereg.Net` in its test phase, to be fed as
    net(data=...)) that returns its accuracy, 0 to 1. The nets tried are the best of several budgets, by `choose` as in
    MaxMacs. Raises UsageError for another number or word, and for both given.

    >>> forcereg.MaxAccuracyDrop(0.01, solver="solver.prototxt")
    MaxAccuracyDrop(drop=0.01, solver='solver.prototxt', score=None, choose='energy')
    """

    drop: float
    solver: StrPath | None = None
    score: Callable[[Any], float] | None = None
    choose: str = USUAL
    dearer: ClassVar[bool] = True  # its budgets never take such a chain
    scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_share("the accuracy to lose", self.drop)
        if self.solver is not None and self.score is not None:
            raise UsageError("solver and score are both given; nets are scored by one of them")
        if self.score is not None and not callable(self.score):
            raise UsageError(f"score is {self.score!r}; expected a function of a net that returns its accuracy")
        if self.solver is not None and not isinstance(self.solver, str | PathLike):
            raise UsageError(f"solver is {self.solver!r}; expected a solver prototxt's path (a function is score=...)")
        self.check_spread()

    def check(self, method: str, has_data: bool) -> None:
        """See Rule."""
        if self.solver is None and self.score is None and not has_data:
            raise UsageError("--max-accuracy-drop needs --solver FILE, whose test net scores the decomposed nets")

    def criterion(self, subject: Subject) -> Criterion:
        """See Rule."""
        from forcereg.lowrank.accuracy import MOST, by_accuracy

        accuracy = subject.scored_on(self.solver) if self.score is None else subject.scored_by(self.score)

        def choose(candidates: Sequence[Candidate]) -> Mapping[str, Choice]:
            step = subject.tell.steps("net", MOST)
            ways = (self.chooser, subject.moments)
            return by_accuracy(self.drop, accuracy, subject.whole, lambda trial: step(str(trial)), *ways)(candidates)

        return choose
