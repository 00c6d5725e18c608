"""The options of the rules for ranks, of which a command takes one: those that `rank_rule` knows, in its order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from forcereg.commands.options import flag
from forcereg.errors import UsageError
from forcereg.lowrank.rule import Rule
from forcereg.lowrank.rules import Spread
from forcereg.registry import Option, rank_rule

RULES = {option.field: (name, option) for name, option in rank_rule.options.items()}
"""Field of an option -> name of its rule, and the option."""
BUDGETS = [field for field, (name, _) in RULES.items() if issubclass(rank_rule.get(name), Spread)]
"""Fields of the options that --choose goes with."""


@dataclass(frozen=True)
class RankOptions:
    """What the options of `rank_options` say: the value of each, by its field, None where it isn't given."""

    values: Mapping[str, Any]
    even_if_dearer: bool
    choose: str | None = None

    @property
    def given(self) -> list[str]:
        """The fields of the options that are given."""
        return [name for name in RULES if self.values.get(name) is not None]

    def rule(self) -> Rule:
        """The one rule asked for. Raises UsageError unless it is one, ForceregError for what is wrong with it."""
        if len(self.given) != 1:
            found = " and ".join(map(flag, self.given)) or "none"
            *most, last = map(flag, RULES)
            raise UsageError(f"give exactly one of {', '.join(most)} and {last}; found {found}")
        return rule_of(self.given[0], self.values[self.given[0]], self.choose)


def rule_of(field: str, value: Any, choose: str | None = None) -> Rule:
    """The rule of an option's value; `choose`: how a budget is spread. Raises as `RankOptions.rule`."""
    kind: type[Rule] = rank_rule.get(RULES[field][0])
    try:
        made: Rule = kind.parsed(value)
    except ValueError as error:
        raise UsageError(f"{flag(field)} is '{value}'; expected {error}") from None
    return made.by(choose) if isinstance(made, Spread) else made


def check_choose(choose: str | None, values: Mapping[str, Any]) -> None:
    """Raises UsageError for --choose without a budget among the options' values."""
    offered = [field for field in BUDGETS if field in values]
    if choose is not None and all(values[field] is None for field in offered):
        raise UsageError(f"--choose says how a budget is spread; give {' or '.join(map(flag, offered))} with it")


def rank_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """All of them as one argument `ranks`, RankOptions."""

    @functools.wraps(function)
    def call(even_if_dearer: bool, choose: str | None, **values: Any) -> Any:
        own = {name: values.pop(name) for name in RULES}
        check_choose(choose, own)
        return function(ranks=RankOptions(own, even_if_dearer, choose), **values)

    made: Callable[..., Any] = click.option(
        "--even-if-dearer", is_flag=True,
        help="Decompose layers by --error, --energy or their like even where the chain costs no less than the "
             "layer; else these stay whole. What --ranks says always holds.",
    )(call)  # fmt: skip
    made = click.option(
        "--choose", metavar="energy|minmax|responses|remainder",
        help="With a budget (--max-accuracy-drop tries several): how it spreads over the layers: by the weighed sum of "
             "their errors, by the largest, by errors of responses to training data (--solver), or by errors behind "
             "the leading directions.  [default: energy]",
    )(made)  # fmt: skip
    # decorators apply from the inside out: the last one is the first in --help
    for _, option in reversed(RULES.values()):
        made = click.option(option.flag, type=kind_of(option), metavar=option.metavar, help=option.help)(made)
    return made


def kind_of(option: Option) -> Any:
    """click's type for the option's values."""
    if option.type is Path:
        return click.Path()
    if option.low is None and option.high is None:
        return option.type
    return click.FloatRange(option.low, option.high, min_open=option.above)
