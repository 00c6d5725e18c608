"""The figures of several benchmarks in one table, with what each should reach.

    python scripts/bench/table.py [--readme FILE] FIGURES.json ...

Each benchmark writes its figures by `write_figures`; all.sh collects the files. --readme puts the table between that
page's two comments about it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BETWEEN = re.compile(r"(?<=<!-- bash scripts/bench/all.sh -->\n).*?(?=<!-- end -->)", re.DOTALL)
DIGITS = 2


@dataclass(frozen=True)
class Figure:
    """A measured number: of what, compared with what, and the most that it should be (None: only told)."""

    part: str
    what: str
    value: float
    goal: float | None = None
    unit: str = "x"
    """"x" for a ratio, "s", "MiB", or "" for a bare number."""

    @property
    def verdict(self) -> str:
        """Whether the goal is reached by the number as it is printed."""
        if self.goal is None:
            return ""
        return "reached" if round(self.value, DIGITS) <= self.goal else "missed"


def number(value: float | None, unit: str, sign: str = "") -> str:
    """As "0.61x", "1.20 s"; empty for None."""
    if value is None:
        return ""
    return f"{sign}{value:.{DIGITS}f}{unit}" if unit == "x" else f"{sign}{value:.{DIGITS}f} {unit}".rstrip()


def rows(figures: Sequence[Figure]) -> list[str]:
    """The lines of the table, below a header."""
    cells = [("", "", "measured", "goal", "")]
    for f in figures:
        cells.append((f.part, f.what, number(f.value, f.unit), number(f.goal, f.unit, "<= "), f.verdict))
    wide = [max(len(row[column]) for row in cells) for column in range(5)]
    align = "<<>><"
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, align, wide, strict=True)).rstrip()
        for row in cells
    ]


def write_figures(path: str | Path, figures: Sequence[Figure], details: Mapping[str, Any], machine: str) -> None:
    """A benchmark's figures, and whatever else it measured, as JSON."""
    from forcereg.system.files import write_text

    found = {"machine": machine, "figures": [asdict(figure) for figure in figures], "details": details}
    write_text(path, json.dumps(found, indent=1) + "\n")


def read_figures(path: str | Path) -> tuple[str, list[Figure]]:
    """The machine and the figures of a file by `write_figures`. Raises SystemExit, one line, for any other file."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        return str(found["machine"]), [Figure(**figure) for figure in found["figures"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path}: not a file of figures as the benchmarks' --json writes it ({error!r})") from None


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="+", help="files written by the benchmarks' --json")
    parser.add_argument("--readme", help="also write the table into this file")
    args = parser.parse_args()
    found = [read_figures(path) for path in args.figures]
    machines = list(dict.fromkeys(machine for machine, _ in found))
    text = "\n".join([*machines, "", *rows([figure for _, figures in found for figure in figures])]) + "\n"
    print(text, end="")
    if args.readme:
        readme = Path(args.readme)
        old = readme.read_text(encoding="utf-8")
        if not BETWEEN.search(old):
            raise SystemExit(f"{readme}: no '<!-- bash scripts/bench/all.sh -->' with '<!-- end -->' below it there")
        readme.write_text(BETWEEN.sub(lambda _: f"\n```\n{text}```\n\n", old), encoding="utf-8")


if __name__ == "__main__":
    main()
