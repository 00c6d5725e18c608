"""What scale.py measured, and what its model makes of that: rows in CSV files, and Markdown tables of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

Place = tuple[str, ...]
SCHEMES = ("dense", "bf16", "fp16", "powersgd", "ternary")
LINKS = {"1 Gbit/s, 50 µs": (1e9, 50e-6), "10 Gbit/s, 50 µs": (1e10, 50e-6), "100 Gbit/s, 5 µs": (1e11, 5e-6)}
"""Bits a second and seconds until a message's first one."""


@dataclass(frozen=True)
class Row:
    """A scheme among `ranks` processes, each with a batch of its own.

    `compute_ms`: an iteration of one process alone; `work_ms`: what the scheme computes beside; both measured. `bits`
    that a rank sends, in `steps` that wait for each other.
    """

    date: str
    machine: str
    threads: str
    net: str
    batch: str
    scheme: str
    ranks: str
    compute_ms: float
    work_ms: float
    bits: float
    steps: float

    @property
    def place(self) -> Place:
        """What isn't measured twice."""
        return self.machine, self.threads, self.net, self.batch

    def milliseconds(self, bandwidth: float, latency: float) -> float:
        """An iteration over a link, by the model: one thing after another."""
        return self.compute_ms + self.work_ms + 1e3 * (self.bits / bandwidth + self.steps * latency)


@dataclass(frozen=True)
class Check:
    """`ranks` processes of one machine behind a throttle: an iteration by the model, and as it was."""

    date: str
    machine: str
    net: str
    batch: str
    scheme: str
    ranks: str
    link: str
    modelled_ms: float
    measured_ms: float


def tables(rows: Sequence[Row], checks: Sequence[Check]) -> str:
    """Markdown: the model's table for each place, and how far it was from what processes did."""
    places = dict.fromkeys(row.place for row in rows)
    found = [table([row for row in rows if row.place == place]) for place in places]
    return "\n".join([*found, *([checked(checks)] if checks else [])])


def table(rows: Sequence[Row]) -> str:
    """One net on one machine."""
    known = {(row.scheme, int(row.ranks)): row for row in rows}
    ranks, first = sorted({count for _, count in known}), rows[0]
    lines = [f"| workers | | {' | '.join(map(str, ranks))} |", "|---|---" + "|---" * len(ranks) + "|"]
    for link, (bandwidth, latency) in LINKS.items():
        times = {key: row.milliseconds(bandwidth, latency) for key, row in known.items()}
        best = {count: min(times[scheme, count] for scheme in SCHEMES) for count in ranks}
        for scheme in SCHEMES:
            cells = [number(times[scheme, count], times[scheme, count] == best[count] and count > 1) for count in ranks]
            lines.append(f"| {link} | {scheme} | {' | '.join(cells)} |")
    how = f"**a model**, milliseconds of an iteration of {first.net}, batch {first.batch} each, the shortest bold"
    return "\n".join([*lines, "", f"({how}; {first.machine}, threads: {first.threads}, {first.date}.)", ""])


def number(value: float, bold: bool = False) -> str:
    """Three digits."""
    text = f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return f"**{text}**" if bold else text


def checked(checks: Sequence[Check]) -> str:
    """Model and measurement side by side."""
    lines = ["| processes | | model | measured | off |", "|---|---|---|---|---|"]
    for one in checks:
        off = one.measured_ms / one.modelled_ms - 1
        cells = number(one.modelled_ms), number(one.measured_ms), f"{off:+.0%}"
        lines.append(f"| {one.ranks} | {one.scheme} | {' | '.join(cells)} |")
    first = checks[0]
    how = f"milliseconds of an iteration of {first.net}, batch {first.batch} each, behind a throttle of {first.link}"
    return "\n".join([*lines, "", f"({how}; {first.machine}, {first.date}.)", ""])


def at(row: Row, ranks: int, bits: float, steps: float) -> Row:
    """The row for another number of ranks that compute as much."""
    return replace(row, ranks=str(ranks), bits=bits, steps=float(steps))
