"""The ranks that each layer needs at several error bounds: plain data, and a table with a bar for each layer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forcereg.cost import Cost
from forcereg.lowrank.factor import Rank, each_of, rank_text
from forcereg.lowrank.ranks import Candidate, Whole
from forcereg.report.lowrank import costs, net_report
from forcereg.report.table import Table, numeric, whole
from forcereg.system.terminal import echo

BAR = 20
"""Characters of a bar at the full rank."""
SHADES, PLAIN = "█▓▒░·", "#+-. "
"""For up to four bounds, the largest first, and what is left to the full rank."""
DEAR = "*"


@dataclass(frozen=True)
class RankTable:
    """The cheapest rank of every layer at each of `errors`; `whole` is the net's cost as it is."""

    errors: tuple[float, ...]
    layers: tuple[Candidate, ...]
    ranks: tuple[tuple[Rank, ...], ...]
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
                "full_rank": one.full_rank,
                "cheaper_up_to": one.cheaper_up_to,
                "ranks": list(ranks),
            }
            for one, ranks in zip(self.layers, self.ranks, strict=True)
        ]
        nets = [{"error": error, **net_report(self.whole, self.net(at))} for at, error in enumerate(self.errors)]
        return {"errors": list(self.errors), "layers": layers, "net": nets}


def rank_table(layers: Sequence[Candidate], errors: Sequence[float], whole: Cost) -> RankTable:
    """The ranks of the layers. Raises ValueError for an error that isn't from 0 to 1."""
    ranks = tuple(tuple(one.smallest_rank(error) for error in errors) for one in layers)
    return RankTable(tuple(errors), tuple(layers), ranks, whole)


def show(table: RankTable) -> None:
    """Print the table; in plain columns where it doesn't go to a terminal."""
    # elsewhere blocks and frames may come out as other characters
    fancy = sys.stdout.isatty() and "utf" in sys.stdout.encoding.lower()
    shades = SHADES if fancy else PLAIN
    numbers = ("full rank", "cheaper to", *(f"{error:g}" for error in table.errors))
    found = Table("layer", "method", *numeric(*numbers), whole("ranks"), boxed=fancy)
    for one, ranks in zip(table.layers, table.ranks, strict=True):
        line = bars(ranks, table.errors, one.full_rank, shades)
        cells = [cell(one, rank) for rank in ranks]
        found.row(one.name, one.method, *map(rank_text, (one.full_rank, one.cheaper_up_to)), *cells, line)
    found.section()
    nets = [net_report(table.whole, table.net(at)) for at in range(len(table.errors))]
    found.row("speed-up", "", "", "", *(costs(net)[2] for net in nets), "")
    left = [f"{net['params_after'] / net['params_before']:.1%}" for net in nets]
    found.row("params left", "", "", "", *left, "")
    found.show()
    echo(legend(table.errors, shades))
    echo("speed-up (in MACs) and params: of the whole net; beyond 'cheaper to' a chain costs no less: the layer stays")
    if any(one.ladder.several for one in table.layers):
        echo(
            f"pairs: outputs-inputs, the cheapest found ({DEAR} no cheaper than the layer); 'cheaper to': equal shares"
        )


def cell(one: Candidate, rank: Rank) -> str:
    """A rank; a pair, for which no single limit says that, is marked where its chain costs no less than the layer."""
    dear = isinstance(rank, tuple) and one.work(rank) >= one.work(Whole(""))
    return f"{rank_text(rank)}{DEAR if dear else ''}"


def bars(ranks: Sequence[Rank], errors: Sequence[float], full_rank: Rank, shades: str) -> Sequence[str]:
    """A bar for each rank that can be more than 1, below each other."""
    each = zip(*map(each_of, (full_rank, *ranks)), strict=True)
    return [bar(own, errors, full, shades) for full, *own in each if full > 1]


def bar(ranks: Sequence[int], errors: Sequence[float], full_rank: int, shades: str) -> str:
    """Each rank's share of the full one, the ranks at the larger errors darker, over each other."""
    line = shades[-1] * BAR
    for place, at in reversed(list(enumerate(falling(errors)))):
        # a rank is never nothing
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
