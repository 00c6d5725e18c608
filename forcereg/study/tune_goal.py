"""What a search for settings is after: the most accuracy at a cost, or the least cost at an accuracy."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from forcereg.errors import UsageError
from forcereg.lowrank.ranks import Choice
from forcereg.lowrank.rules import MaxAccuracyDrop, MaxMacs, MaxParams, Spread
from forcereg.study.opened import Opening
from forcereg.study.rule_names import spread_text
from forcereg.study.sweep_cut import chosen, cut_by
from forcereg.study.sweep_plan import Cut, Result, Trained
from forcereg.system.arguments import wrong

FORMS: dict[str, type[Spread]] = {"macs": MaxMacs, "params": MaxParams, "drop": MaxAccuracyDrop}
"""What a goal bounds -> the rule that cuts nets so."""
EXPECTED = "macs<=F, params<=F or drop<=D, as in macs<=0.5"


@dataclass(frozen=True)
class Goal:
    """`rule`, by which every trained net is cut, says what is bounded: MACs or parameters, or the loss of accuracy.

    The best net within it is the most accurate one; within a loss of accuracy the one with the fewest MACs.
    """

    rule: Spread

    def __post_init__(self) -> None:
        if type(self.rule) not in FORMS.values():
            raise wrong("goal", self.rule, f'MaxMacs, MaxParams or MaxAccuracyDrop, or text: "{EXPECTED}"')
        if isinstance(self.rule, MaxAccuracyDrop) and (self.rule.solver or self.rule.score):
            raise UsageError("goal says how nets are scored; here they are on the test net of the solver that is tuned")

    @property
    def words(self) -> str:
        """As on the command line: macs<=0.5."""
        name = next(name for name, kind in FORMS.items() if type(self.rule) is kind)
        return f"{name}<={spread_text(self.rule)}"

    @property
    def of_accuracy(self) -> bool:
        """Whether it bounds the loss of accuracy, and MACs are what is to be little."""
        return isinstance(self.rule, MaxAccuracyDrop)

    def value(self, result: Result) -> float:
        """What is to be most, or `of_accuracy` least: the cut net's accuracy, tuned if it was; its share of MACs.

        Raises ForceregError for a net without an Accuracy layer.
        """
        if self.of_accuracy:
            return (result.macs_cut or 0) / max(1, result.macs or 0)
        found = result.accuracy_cut if result.accuracy_tuned is None else result.accuracy_tuned
        return 0.0 if found is None else found

    def cut(self, opening: Opening, baseline: Callable[[], Result] | None) -> Cut:
        """How nets are cut; a loss of accuracy is counted from that of `baseline`'s whole net, None: from its own."""
        made = cut_by(self.rule, opening)
        key = {"goal": self.words, **made.key}
        if not isinstance(self.rule, MaxAccuracyDrop) or baseline is None:
            return replace(made, words=self.words, key=key)
        return replace(made, words=self.words, key=key, choose=partial(_within, self.rule, opening, baseline))


def _within(
    rule: MaxAccuracyDrop, opening: Opening, baseline: Callable[[], Result], trained: Trained
) -> Mapping[str, Choice]:
    """The cheapest ranks that keep the baseline's accuracy but for the drop; none where the whole net doesn't."""
    own = trained.evaluator.accuracy(trained.prepared, trained.model.layers)({})
    left = rule.drop - ((baseline().accuracy or 0.0) - own)
    return {} if left < 0 else chosen(replace(rule, drop=min(1.0, left)), opening, False, trained)


def goal_of(asked: Any, choose: str | None = None) -> Goal:
    """A goal as text, or as the rule that bounds it; `choose`: how a budget is spread. Raises UsageError."""
    made = _read(asked) if isinstance(asked, str) else Goal(asked)
    return Goal(made.rule.by(choose))


def _read(asked: str) -> Goal:
    found = re.fullmatch(r"\s*(\w+)\s*<=\s*(\S+)\s*", asked)
    kind = FORMS.get(found[1]) if found else None
    try:
        value = float(found[2]) if found else 0.0
    except ValueError:
        kind = None
    if kind is None:
        raise UsageError(f"--goal is '{asked}'; expected {EXPECTED}")
    return Goal(kind(value))  # type: ignore[call-arg]
