"""The rules for ranks: how much of each layer to keep, by error, energy, list, file, budget or accuracy.

Add one here, or in a module of its own that is imported at the end: one frozen dataclass, registered with the option
that `forcereg decompose` offers it by. Rules are plain values; what they need of torch is imported when they choose.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from forcereg.cost import Cost
from forcereg.errors import UsageError, check_share, did_you_mean
from forcereg.lowrank.choosers import USUAL
from forcereg.registry import Option, chooser, rank_rule
from forcereg.system.arguments import wrong
from forcereg.system.events import Tell
from forcereg.system.paths import StrPath

if TYPE_CHECKING:
    from torch import Tensor

    from forcereg.lowrank.accuracy import Accuracy
    from forcereg.lowrank.config import LayerRules
    from forcereg.lowrank.factor import Rank
    from forcereg.lowrank.ranks import Candidate, Choice, Criterion


class Subject(Protocol):
    """What a rule may ask of the net whose ranks it chooses. Raises ForceregError where it can't be known."""

    @property
    def whole(self) -> Cost:
        """Of the whole net as it is."""

    def scored_on(self, solver: StrPath | None) -> Accuracy:
        """The decomposed net's accuracy on a solver's test data, for a choice of each layer's rank.

        None: the solver that was given for data.
        """

    def scored_by(self, score: Callable[[Any], float]) -> Accuracy:
        """The same by a function of the net."""

    def moments(self) -> Mapping[str, Tensor]:
        """E[x x^T] of the inputs of each layer that can be decomposed, over training data: name -> (groups, K, K)."""

    @property
    def tell(self) -> Tell:
        """What hears how a long search goes."""


class Rule:
    """What chooses the ranks; a rule says what kind it is, and makes the criterion."""

    dearer: ClassVar[bool] = False
    """Whether layers are decomposed even if their chain costs no less than they do; else they stay whole."""
    budget: ClassVar[bool] = False
    """Whether it bounds the whole net's cost, so that a layer left whole has others pay for it."""
    scores: ClassVar[bool] = False
    """Whether it looks at accuracies, so that many nets are scored before it chooses."""

    @property
    def layers(self) -> LayerRules | None:
        """What is said layer by layer, which methods and layers follow; None: one rule for all."""
        return None

    @property
    def asked(self) -> Collection[str]:
        """Names of layers whose ranks are the user's word: they hold even where the chain costs no less."""
        return ()

    def check(self, method: str, has_data: bool) -> None:
        """Raises UsageError if it says nothing for a decomposition method, or needs data that isn't given."""

    @classmethod
    def parsed(cls, text: Any) -> Any:
        """The rule of its option's value. Raises ValueError, which says what is expected, for another text."""
        return cls(text)  # type: ignore[call-arg]

    def criterion(self, subject: Subject) -> Criterion:
        """What gives each candidate of the net its rank, or leaves it whole."""
        raise NotImplementedError


def check_rule(rule: Any) -> None:
    """Raises UsageError for what is no rule."""
    if not isinstance(rule, Rule):
        raise wrong("rule", rule, "a rule for ranks, as forcereg.MaxError(0.05)")


def criterion_of(rule: Rule, subject: Subject, even_if_dearer: bool = False) -> Criterion:
    """A rule's criterion, with which layers stay whole whose chain would cost no less, unless `even_if_dearer`."""
    from forcereg.lowrank.ranks import unless_dearer

    found = rule.criterion(subject)
    return found if rule.dearer or even_if_dearer else unless_dearer(found, rule.asked)


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


@dataclass(frozen=True)
class Budget(Rule):
    """The best ranks with which the whole net has at most a share of its cost."""

    dearer: ClassVar[bool] = True  # a budget never takes a chain that costs as much as its layer
    budget: ClassVar[bool] = True
    measure: ClassVar[Any] = "macs"
    share: float
    choose: str = USUAL

    def __post_init__(self) -> None:
        from forcereg.lowrank.budget import by_budget

        by_budget(self.measure, self.share, None)  # its range
        if not isinstance(self.choose, str):
            raise wrong("choose", self.choose, f"one of {', '.join(chooser)}")
        if self.choose not in chooser:
            hint = did_you_mean(self.choose, chooser) or f"; known are {', '.join(chooser)}"
            raise UsageError(f"unknown {chooser.kind} {self.choose!r}{hint}")

    @property
    def spread(self) -> str:
        """By what it is spread over the layers, where that isn't the usual way; or empty."""
        return "" if self.choose == USUAL else self.choose

    def criterion(self, subject: Subject) -> Criterion:
        """See Rule."""
        from forcereg.lowrank.budget import by_budget

        choose = chooser.get(self.choose)()
        return by_budget(self.measure, self.share, subject.whole, choose=choose, moments=subject.moments)


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
class MaxAccuracyDrop(Rule):
    """The cheapest ranks found that lose at most `drop`, 0 to 1, of the whole net's accuracy.

    What it gives was measured; if no net keeps as much, every layer stays whole. Each net is scored on the test net of
    `solver`, a file, or by `score`: a function of the decomposed net (a `forcereg.Net` in its test phase, to be fed as
    net(data=...)) that returns its accuracy, 0 to 1. Raises UsageError for another number, and for both given.

    >>> forcereg.MaxAccuracyDrop(0.01, solver="solver.prototxt")
    MaxAccuracyDrop(drop=0.01, solver='solver.prototxt', score=None)
    """

    drop: float
    solver: StrPath | None = None
    score: Callable[[Any], float] | None = None
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
            return by_accuracy(self.drop, accuracy, subject.whole, lambda trial: step(str(trial)))(candidates)

        return choose
