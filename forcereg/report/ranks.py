"""The ranks that each layer needs at several error bounds: plain data, and a table with a bar for each layer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forcereg.cost import Cost
from forcereg.lowrank.ranks import Candidate
from forcereg.report.lowrank import costs, net_report
from forcereg.report.table import Table, numeric, whole
from forcereg.terminal import echo

BAR = 20
"""Characters of a bar at the full rank."""
SHADES, PLAIN = "█▓▒░·", "#+-. "
"""For up to four bounds, the largest first, and what is left to the full rank."""


@dataclass(frozen=True)
class RankTable:
    """The smallest rank of every layer at each of `errors`; `whole` is the net's cost as it is."""

    errors: tuple[float, ...]
    layers: tuple[Candidate, ...]
    ranks: tuple[tuple[int, ...], ...]
    whole: Cost

    def net(self, at: int) -> Cost:
        """The whole net's cost with every layer at its rank for errors[at], whole where that costs no less."""
        cost = self.whole
        for one, ranks in zip(self.layers, self.ranks, strict=True):
            cost = cost + one.cost(one.kept(ranks[at])) - one.dense
        return cost

    def report(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        layers = [
            {
                "name": one.name,
                "type": one.type,
                "method": one.method,
                "full_rank": one.ladder.full_rank,
                "cheaper_up_to": max(one.cheaper(), default=0),
                "ranks": list(ranks),
            }
            for one, ranks in zip(self.layers, self.ranks, strict=True)
        ]
        nets = [{"error": error, **net_report(self.whole, self.net(at))} for at, error in enumerate(self.errors)]
        return {"errors": list(self.errors), "layers": layers, "net": nets}


def rank_table(layers: Sequence[Candidate], errors: Sequence[float], whole: Cost) -> RankTable:
    """The ranks of the layers. Raises ValueError for an error that isn't from 0 to 1."""
    ranks = tuple(tuple(one.ladder.smallest_rank(error) for error in errors) for one in layers)
    return RankTable(tuple(errors), tuple(layers), ranks, whole)


def show(table: RankTable) -> None:
    """Print the table; in plain columns where it doesn't go to a terminal."""
    fancy = sys.stdout.isatty() and "utf" in sys.stdout.encoding.lower()
    shades = SHADES if fancy else PLAIN
    numbers = ("full rank", "cheaper to", *(f"{error:g}" for error in table.errors))
    found = Table("layer", "method", *numeric(*numbers), whole("ranks"), boxed=fancy)
    for one, ranks in zip(table.layers, table.ranks, strict=True):
        limit = max(one.cheaper(), default=0)
        line = bar(ranks, table.errors, one.ladder.full_rank, shades)
        found.row(one.name, one.method, str(one.ladder.full_rank), str(limit), *map(str, ranks), line)
    found.section()
    nets = [net_report(table.whole, table.net(at)) for at in range(len(table.errors))]
    found.row("speed-up", "", "", "", *(costs(net)[2] for net in nets), "")
    left = [f"{net['params_after'] / net['params_before']:.1%}" for net in nets]
    found.row("params left", "", "", "", *left, "")
    found.show()
    echo(legend(table.errors, shades))
    echo("speed-up (in MACs) and params: of the whole net; beyond 'cheaper to' a chain costs no less: the layer stays")


def bar(ranks: Sequence[int], errors: Sequence[float], full_rank: int, shades: str) -> str:
    """Each rank's share of the full one, the ranks at the larger errors darker, over each other."""
    line = shades[-1] * BAR
    for place, at in reversed(list(enumerate(falling(errors)))):
        length = max(1, round(BAR * ranks[at] / full_rank))
        line = shade(place, errors, shades) * length + line[length:]
    return line


def legend(errors: Sequence[float], shades: str) -> str:
    """What the shades of the bars stand for."""
    parts = [f"{shade(place, errors, shades)} {errors[at]:g}" for place, at in enumerate(falling(errors))]
    return f"bars: share of the full rank at error {', '.join(parts)}"


def falling(errors: Sequence[float]) -> list[int]:
    """The places of the errors, the largest first."""
    return sorted(range(len(errors)), key=lambda at: -errors[at])


def shade(place: int, errors: Sequence[float], shades: str) -> str:
    """The character for the place-th largest error; several share one where there are more than shades."""
    return shades[place * (len(shades) - 1) // max(len(errors), len(shades) - 1)]
