"""The rules for ranks, of which a command takes one: by error, energy, list, file, budget or accuracy.

A rule is an option, a field of `RankOptions` and an entry of `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from forcereg.commands.lowrank_options import LayerOptions, Opened, gathered
from forcereg.errors import UsageError

if TYPE_CHECKING:
    from forcereg.lowrank.config import RankConfig
    from forcereg.lowrank.factor import Rank
    from forcereg.lowrank.ranks import Criterion

SHARE = click.FloatRange(0, 1, min_open=True)

Rule = Callable[[Opened], "Criterion"]
"""What gives every layer of a net its rank, or leaves it whole."""


@dataclass(frozen=True)
class RankOptions:
    """What the options of `rank_options` say."""

    error: float | None
    energy: float | None
    fork_svd_ratio: float | None
    ranks: str | None
    rank_config: str | None
    max_macs: float | None
    max_params: float | None
    max_accuracy_drop: float | None
    even_if_dearer: bool

    @cached_property
    def config(self) -> RankConfig | None:
        """The file of --rank-config. Raises ForceregError."""
        from forcereg.lowrank.config import read_config

        return None if self.rank_config is None else read_config(self.rank_config)

    def rule(self, layers: LayerOptions) -> Rule:
        """The one rule asked for. Raises UsageError unless it is one, and for a value out of range."""
        given = [name for name in RULES if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(map(flag, given)) or "none"
            *most, last = map(flag, RULES)
            raise UsageError(f"give exactly one of {', '.join(most)} and {last}; found {found}")
        return RULES[given[0]](self, layers)


def flag(name: str) -> str:
    """The option of a field."""
    return f"--{name.replace('_', '-')}"


def fixed(criterion: Criterion) -> Rule:
    """A criterion that needs the layers only."""
    return lambda opened: criterion


def saving(criterion: Criterion, options: RankOptions, asked: Collection[str] = ()) -> Rule:
    """The same for one that doesn't look at costs: dearer layers stay whole, but those `asked` for."""
    from forcereg.lowrank.ranks import unless_dearer

    return fixed(criterion if options.even_if_dearer else unless_dearer(criterion, asked))


def error_rule(options: RankOptions, layers: LayerOptions) -> Rule:
    """--error"""
    from forcereg.lowrank.ranks import by_error

    return saving(by_error(options.error or 0.0), options)


def energy_rule(options: RankOptions, layers: LayerOptions) -> Rule:
    """--energy"""
    from forcereg.lowrank.ranks import by_energy

    return saving(by_energy(options.energy or 0.0), options)


def fork_rule(options: RankOptions, layers: LayerOptions) -> Rule:
    """--fork-svd-ratio, which for another method than svd says nothing."""
    from forcereg.lowrank.ranks import by_fork_ratio

    if layers.method != "svd":
        raise UsageError(
            f"--fork-svd-ratio is the fork's rule for --method svd, not for {layers.method}; use --energy, "
            "which means the same for every method"
        )
    return saving(by_fork_ratio(options.fork_svd_ratio or 0.0), options)


def list_rule(options: RankOptions, layers: LayerOptions) -> Rule:
    """--ranks"""
    from forcereg.lowrank.ranks import by_list

    try:
        return fixed(by_list([rank_in(text) for text in str(options.ranks).split(",")]))
    except ValueError:
        expected = "whole numbers with commas, as in 13,21,27, or pairs for tucker2, as in 4-1,4-16"
        raise UsageError(f"--ranks is '{options.ranks}'; expected {expected}") from None


def rank_in(text: str) -> Rank:
    """12, or 8-12 as a pair. Raises ValueError."""
    numbers = tuple(map(int, text.split("-")))
    return numbers if len(numbers) > 1 else numbers[0]


def config_rule(options: RankOptions, layers: LayerOptions) -> Rule:
    """--rank-config, whose ranks are the user's word; its errors and energies are rules as others."""
    assert options.config is not None
    asked = [name for name, rule in options.config.layers.items() if rule.rank is not None]
    return saving(options.config, options, asked)


def budget_rule(measure: Any) -> Callable[[RankOptions, LayerOptions], Rule]:
    """--max-macs and --max-params"""

    def factory(options: RankOptions, layers: LayerOptions) -> Rule:
        from forcereg.lowrank.budget import by_budget

        share = getattr(options, f"max_{measure}")
        return lambda opened: by_budget(measure, share, opened.whole)

    return factory


def accuracy_rule(options: RankOptions, layers: LayerOptions) -> Rule:
    """--max-accuracy-drop"""
    if layers.solver is None:
        raise UsageError("--max-accuracy-drop needs --solver FILE, whose test net scores the decomposed nets")

    def rule(opened: Opened) -> Criterion:
        from forcereg.lowrank.accuracy import MOST, by_accuracy
        from forcereg.report.progress import Steps

        accuracy = layers.evaluator(opened.scores).accuracy(opened.prepared, opened.model.layers)
        steps = Steps("net", MOST)
        search = by_accuracy(options.max_accuracy_drop or 0.0, accuracy, opened.whole, lambda t: steps.done(str(t)))
        return steps.around(search)

    return rule


RULES: dict[str, Callable[[RankOptions, LayerOptions], Rule]] = {
    "error": error_rule,
    "energy": energy_rule,
    "fork_svd_ratio": fork_rule,
    "ranks": list_rule,
    "rank_config": config_rule,
    "max_macs": budget_rule("macs"),
    "max_params": budget_rule("params"),
    "max_accuracy_drop": accuracy_rule,
}
"""Field of RankOptions -> what makes the rule, before anything is read; the options exclude each other."""

rank_options = gathered("ranks", RankOptions, [
    click.option("--error", type=float, metavar="E",
                 help="Rank rule: a bound on each layer's relative squared error, 0 to 1."),
    click.option("--energy", type=float, metavar="R",
                 help="Or the share of each layer's squared norm to keep: --error 1-R."),
    click.option("--fork-svd-ratio", type=float, metavar="R",
                 help="Or Caffe's fork's ratio for --method svd: the root of that share."),
    click.option("--ranks", metavar="A,B,..",
                 help="Or one rank per decomposed layer, in the net file's order; for tucker2 also outputs-inputs."),
    click.option("--rank-config", metavar="FILE.json", type=click.Path(),
                 help="Or what a file says for each layer: {\"conv1\": 8}, or an object with method and one of rank, "
                      "error, energy. Layers not named stay whole."),
    click.option("--max-macs", type=SHARE, metavar="F",
                 help="Or the best ranks with which the whole net has at most this share of its MACs."),
    click.option("--max-params", type=SHARE, metavar="F", help="Or of its parameters."),
    click.option("--max-accuracy-drop", type=click.FloatRange(0, 1), metavar="D",
                 help="Or the cheapest found that lose at most D of the accuracy (0.01: one percentage point) on the "
                      "test net of --solver."),
    click.option("--even-if-dearer", is_flag=True,
                 help="Decompose layers by --error, --energy or their like even where the chain costs no less than the "
                      "layer; else these stay whole. What --ranks says always holds."),
])  # fmt: skip
