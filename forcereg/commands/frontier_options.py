"""What frontier aims at: several rules for the ranks."""

from __future__ import annotations

from dataclasses import dataclass

import click

from forcereg.commands.lowrank_options import fractions, gathered
from forcereg.commands.lowrank_rules import BUDGETS, check_choose, rule_of
from forcereg.commands.options import flag
from forcereg.lowrank.rule import Rule

SHARES = "0.15,0.2,0.3,0.4,0.5,0.7"


@dataclass(frozen=True)
class Aims:
    """What the options of `aim_options` say."""

    max_macs: str | None
    max_params: str | None
    error: str | None
    ranks: tuple[str, ...]
    even_if_dearer: bool
    choose: str | None

    def rules(self) -> list[Rule]:
        """Rules of the command `decompose` with one value each; budgets by each way to spread. Raises UsageError."""
        asked = [("ranks", ranks) for ranks in self.ranks]
        given = {"max_macs": self.max_macs, "max_params": self.max_params, "error": self.error}
        if not asked and all(text is None for text in given.values()):
            given["max_macs"] = SHARES
        check_choose(self.choose, given)
        choosers = [None] if self.choose is None else [name.strip() for name in self.choose.split(",")]
        found = [rule_of(*one) for one in asked]
        for field, text in given.items():
            each = choosers if field in BUDGETS else [None]
            found += [rule_of(field, share, choose) for share in shares(flag(field), text) for choose in each]
        return found


aim_options = gathered("aims", Aims, [
    click.option("--max-macs", metavar="A,B,..",
                 help=f"Shares of the whole net's MACs to aim at.  [default without another aim: {SHARES}]"),
    click.option("--max-params", metavar="A,B,..", help="Shares of its parameters."),
    click.option("--error", metavar="A,B,..", help="Bounds on each layer's relative squared error."),
    click.option("--ranks", multiple=True, metavar="A,B,..",
                 help="One rank for each layer that is decomposed, in the net file's order; repeatable."),
    click.option("--choose", metavar="A,B,..",
                 help="How budgets spread over the layers, each way a net of its own.  [default: energy]"),
    click.option("--even-if-dearer", is_flag=True,
                 help="Decompose layers by --error even where the chain costs no less than the layer."),
])  # fmt: skip


def shares(option: str, text: str | None) -> list[float]:
    """Numbers from 0 to 1 with commas, none if the option isn't given. Raises UsageError for anything else."""
    return [] if text is None else fractions(option, text, "numbers", "0.2,0.5")
