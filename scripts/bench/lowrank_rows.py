"""What alexnet_lowrank.py measured: rows in a CSV file, and the Markdown table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import kept

Key = tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A layer or net at a batch size, dense and decomposed: median milliseconds, and how they came about.

    `macs`: those of the dense one over those of the decomposed; `paper`: the factor that the paper measured, "" where
    it says nothing; `layout`: in which dense and decomposed were fastest, "" where nobody chose.
    """

    date: str
    machine: str
    threads: str
    runtime: str
    what: str
    ranks: str
    batch: str
    macs: float
    paper: str
    dense_ms: float
    ms: float
    factor: float
    layout: str

    @property
    def place(self) -> Key:
        """Where it was measured, but for the runtime."""
        return self.machine, self.threads

    @property
    def key(self) -> Key:
        """What isn't measured twice."""
        return (*self.place, self.runtime, self.what, self.ranks, self.batch)

    @property
    def text(self) -> str:
        """Milliseconds and factor for the table, bold where the paper's is reached."""
        factor = f"{self.factor:.2f}x"
        reached = self.paper and round(self.factor, 2) >= float(self.paper)
        return f"{self.dense_ms:.3g} → {self.ms:.3g}, {f'**{factor}**' if reached else factor}"


def read_rows(path: Path) -> list[Row]:
    """See kept.read."""
    return kept.read(path, Row)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """See kept.write."""
    kept.write(path, rows, Row)


def tables(rows: Sequence[Row]) -> str:
    """A Markdown table for each machine and number of threads."""
    found = dict.fromkeys(row.place for row in rows)
    return "\n".join(table([row for row in rows if row.place == place]) for place in found)


def table(rows: Sequence[Row]) -> str:
    """One machine's table, its runtimes side by side, layers and nets in the order of their first rows."""
    runtimes, whats = list(dict.fromkeys(row.runtime for row in rows)), list(dict.fromkeys(row.what for row in rows))
    held = {row.key: row for row in rows}
    lines = [f"| | ranks | MACs | paper | batch | {' | '.join(runtimes)} |", "|---" * (5 + len(runtimes)) + "|"]
    ordered = sorted(rows, key=lambda row: (whats.index(row.what), int(row.batch)))
    for row in {(row.what, row.ranks, row.batch): row for row in ordered}.values():
        each = [held.get((*row.place, runtime, row.what, row.ranks, row.batch)) for runtime in runtimes]
        told = f"{row.paper}x" if row.paper else ""
        cells = " | ".join("" if one is None else one.text for one in each)
        lines.append(f"| {row.what} | {row.ranks} | {row.macs:.2f}x | {told} | {row.batch} | {cells} |")
    first, last = min(row.date for row in rows), max(row.date for row in rows)
    when = first if first == last else f"{first} to {last}"
    how = "milliseconds dense → decomposed, medians, and the factor, bold where the paper's is reached"
    return "\n".join([*lines, "", f"({rows[0].machine}, threads: {rows[0].threads}, {when}; {how}.)", ""])
