"""The comparison's rows as a Markdown table: means over seeds, cut → fine-tuned, below them the least to the most.

python scripts/paper/compare/tables.py results/lenet_*.csv --down arm --across method --where budget=0.35 teacher=no
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean

Row = Mapping[str, str]


def read(paths: Iterable[Path]) -> list[dict[str, str]]:
    """All rows of the files."""
    rows: list[dict[str, str]] = []
    for path in paths:
        with path.open(newline="") as stream:
            rows += csv.DictReader(stream)
    return rows


def chosen(rows: Iterable[Row], where: Mapping[str, Sequence[str]]) -> list[Row]:
    """Those whose columns have one of the values, in the order of the values."""
    found = [row for row in rows if all(row[column] in values for column, values in where.items())]
    return sorted(found, key=lambda row: [values.index(row[column]) for column, values in where.items()])


def spread(values: Sequence[float], digits: int = 1) -> str:
    """95.1, or with several seeds 95.1 (94.8 to 95.3)."""
    if not values:
        return "-"
    middle, least, most = (f"{100 * one:.{digits}f}" for one in (mean(values), min(values), max(values)))
    return f"{middle} ({least} to {most})" if len(values) > 1 else middle


def cell(rows: Sequence[Row], shown: Sequence[str], digits: int) -> str:
    """What the seeds of one point come to in these columns; a budget out of reach is a dash."""
    found = [[float(row[column]) for row in rows if row[column]] for column in shown]
    return " → ".join(spread(values, digits) for values in found) if found[0] else "-"


def table(
    rows: Sequence[Row],
    down: Sequence[str],
    across: Sequence[str],
    shown: Sequence[str] = ("cut", "tuned"),
    digits: int = 1,
) -> Iterator[str]:
    """The lines: a row for each combination of `down`, a column for each of `across`, in the order of their coming."""
    found: dict[tuple[str, ...], dict[tuple[str, ...], list[Row]]] = defaultdict(lambda: defaultdict(list))
    columns: dict[tuple[str, ...], None] = {}
    for row in rows:
        place = tuple(row[one] for one in across)
        columns[place] = None
        found[tuple(row[one] for one in down)][place].append(row)
    whole = "arm" in down
    heads = [*down, "seeds", *["whole"] * whole, *(" ".join(place) for place in columns)]
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for key, places in found.items():
        every = [row for group in places.values() for row in group]
        seeds = {row["seed"]: row for row in every}
        wholes = [spread([float(row["whole"]) for row in seeds.values()], digits)] if whole else []
        cells = (cell(places.get(one, []), shown, digits) for one in columns)
        yield f"| {' | '.join([*key, str(len(seeds)), *wholes, *cells])} |"


def listed(rows: Sequence[Row], columns: Sequence[str]) -> Iterator[str]:
    """The lines of a table of these columns as they are, a row each."""
    yield f"| {' | '.join(column.replace('_', ' ') for column in columns)} |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield f"| {' | '.join(row[column] for column in columns)} |"


def told(words: Sequence[str] | None = None) -> list[str]:
    """The table that a command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--down", default="arm")
    parser.add_argument("--across", default="method")
    parser.add_argument("--show", default="cut,tuned", help="columns of shares, as %% (cut,tuned)")
    parser.add_argument("--digits", type=int, default=1, help="behind the point")
    parser.add_argument("--where", nargs="*", default=[], help="COLUMN=VALUE or COLUMN=A,B")
    parser.add_argument("--list", help="these columns instead, a row each")
    asked = parser.parse_args(words)
    where = {column: values.split(",") for column, _, values in (one.partition("=") for one in asked.where)}
    rows = chosen(read(asked.files), where)
    if asked.list:
        return list(listed(rows, asked.list.split(",")))
    down, across, shown = (one.split(",") for one in (asked.down, asked.across, asked.show))
    return list(table(rows, down, across, shown, asked.digits))


if __name__ == "__main__":
    print("\n".join(told()))
