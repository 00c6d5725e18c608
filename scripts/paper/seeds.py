"""The frontiers of several seeds as one: a CSV of all points, a table of means and ranges, and a picture.

    python scripts/paper/seeds.py NAME OUT.csv seed1 seed2 seed3 [--picture OUT.svg]

Each folder seedN holds the NAME.csv that `forcereg frontier -o seedN/NAME.svg` wrote.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from forcereg.report.plot import rendered
from forcereg.report.table import Table, csv_text, numeric
from forcereg.study.frontier import Point
from forcereg.study.frontier_report import figure, looks
from forcereg.system.files import write_bytes, write_text

COLUMNS = ("seed", "net", "method", "target", "ranks", "macs", "params", "accuracy", "accuracy_tuned")
Row = Mapping[str, str]
Key = tuple[str, str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    remarks: list[str] = []
    rows: list[dict[str, str]] = []
    for folder in asked.folders:
        said, found = read(folder / f"{asked.name}.csv")
        remarks += [f"{folder.name}: {line}" for line in said]
        rows += [{"seed": folder.name.removeprefix("seed"), **row} for row in found]
    write_text(asked.out, csv_text(COLUMNS, ([row[one] for one in COLUMNS] for row in rows), remarks))
    groups = grouped(rows)
    table(groups).show()
    if asked.picture:
        write_bytes(asked.picture, rendered(drawn(groups), asked.picture.suffix[1:]))


def read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The comments that open a CSV file, and its rows."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.removeprefix("# ") for line in lines if line.startswith("#")]
    return comments, list(csv.DictReader(line for line in lines if not line.startswith("#")))


def grouped(rows: Iterable[Row]) -> dict[Key, list[Row]]:
    """The seeds of each net, method and target."""
    found: dict[Key, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["net"], row["method"], row["target"]].append(row)
    return found


def numbers(rows: Sequence[Row], column: str, scale: float = 1) -> list[float]:
    """The column of all seeds; [] where it is unknown."""
    return [scale * float(row[column]) for row in rows if row[column]]


def told(values: Sequence[float]) -> str:
    """12.3 (11.9 to 12.8)"""
    if not values:
        return "-"
    return f"{mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def table(groups: Mapping[Key, Sequence[Row]]) -> Table:
    """A row a group: the mean over its seeds, the least and the most."""
    found = Table("net", "method", "target", "ranks", *numeric("million MACs", "accuracy %", "fine-tuned %"))
    last = ""
    for (net, method, target), rows in groups.items():
        if net != last:
            found.section()
        last = net
        ranks = " | ".join(dict.fromkeys(row["ranks"] for row in rows))
        macs = mean(numbers(rows, "macs", 1e-6))
        scores = (told(numbers(rows, column, 100)) for column in ("accuracy", "accuracy_tuned"))
        found.row(net, method, target, ranks, f"{macs:.3f}", *scores)
    return found


def drawn(groups: Mapping[Key, Sequence[Row]]) -> Any:
    """`forcereg frontier`'s picture of the means, with a bar from the least to the most seed."""
    points = [mean_point(key, rows) for key, rows in groups.items()]
    made = figure(points)
    colours = {net: look["color"] for net, look in looks(points).items()}
    for axes in made.axes:
        for (net, method, _), rows in groups.items():
            if method not in ("", axes.get_title()):
                continue
            for column, style in (("accuracy", "--"), ("accuracy_tuned", "-")):
                if values := numbers(rows, column):
                    place = mean(numbers(rows, "macs", 1e-6))
                    axes.vlines(place, min(values), max(values), colors=colours[net], linestyles=style, linewidth=1)
    return made


def mean_point(key: Key, rows: Sequence[Row]) -> Point:
    """A group as one point."""
    net, method, target = key
    tuned = numbers(rows, "accuracy_tuned")
    macs, params = (round(mean(numbers(rows, column))) for column in ("macs", "params"))
    return Point(net, method, target, {}, macs, params, mean(numbers(rows, "accuracy")), mean(tuned) if tuned else None)


if __name__ == "__main__":
    main()
