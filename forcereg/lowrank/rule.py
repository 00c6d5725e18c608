"""What a rule for ranks is, and what it may ask of the net whose ranks it chooses; the rules are in `rules`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from forcereg.cost import Cost
from forcereg.system.arguments import wrong
from forcereg.system.events import Tell
from forcereg.system.paths import StrPath

if TYPE_CHECKING:
    from torch import Tensor

    from forcereg.lowrank.accuracy import Accuracy
    from forcereg.lowrank.config import LayerRules
    from forcereg.lowrank.ranks import Criterion


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
