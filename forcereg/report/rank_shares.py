"""The ranks that a sweep's nets need, layer by layer, against their errors: read from results.csv, and drawn."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from forcereg.errors import ForceregError
from forcereg.report.lines import lines
from forcereg.report.plot import COLOURS, Look, figure_type, legend, plain, rendered

NEEDED = ("accuracy", "ranks_at_error", "full_ranks")
MOST = 10_000
"""Runs of a file."""
GAP, TICK = 0.036, 0.05
"""Between the settings' names above a picture, and from it to them, in its width and height."""
NAMED = 24
"""Settings whose names have room above a picture."""
MARKERS = "os^Dv<>Pph"


@dataclass(frozen=True)
class Shares:
    """A run: its setting, its accuracy, and of each layer the share of its full rank that it needs, both of 1."""

    setting: str
    accuracy: float
    layers: tuple[str, ...]
    shares: tuple[float, ...]


def is_results(path: Path) -> bool:
    """Whether a file is the results.csv of a sweep or of tune, by its header. Raises ForceregError if unreadable."""
    header = next(_plain_lines(path), "")
    return {*NEEDED} <= {*header.split(",")}


def _plain_lines(path: Path) -> Iterator[str]:
    return (line for line in lines(path) if line.strip() and not line.startswith("#"))


def read_shares(path: Path) -> list[Shares]:
    """The runs that have an accuracy. Raises ForceregError for a damaged file, and for one without such a run."""
    # by hand, as a cell's line break would be one of ours that csv took for a cell's
    source = ((number, line) for number, line in enumerate(lines(path), 1) if line.strip() and line[0] != "#")
    _, first = next(source)
    header = first.split(",")
    found: list[Shares] = []
    for number, line in source:
        try:
            (cells,) = csv.reader([line], strict=True)
            if len(cells) != len(header):
                raise ValueError
            run = _run(dict(zip(header, cells, strict=True)), f"run {len(found) + 1}")
        except (csv.Error, ValueError):
            raise ForceregError(f"{path}:{number}: is no row of a sweep's results; run the sweep again") from None
        if run is not None:
            found.append(run)
        if len(found) > MOST:
            raise ForceregError(f"{path}: has more than {MOST:,} runs, which no picture can show")
    if not found:
        raise ForceregError(f"{path}: has no run with an accuracy and ranks yet; nothing to draw")
    if len({len(run.shares) for run in found}) > 1:
        raise ForceregError(f"{path}: its runs are of nets with different numbers of layers; draw those of one net")
    return found


def _run(row: dict[str, str], other: str) -> Shares | None:
    """`other`: what to call the setting that has no name. Raises ValueError for cells that hold something else."""
    if not row["accuracy"] or not row["full_ranks"]:
        return None
    accuracy = float(row["accuracy"])
    ranks, full = (_numbers(row[name]) for name in ("ranks_at_error", "full_ranks"))
    if not 0 <= accuracy <= 1 or not all(0 < rank <= most for rank, most in zip(ranks, full, strict=True)):
        raise ValueError
    names = row.get("layers", "").split(" ")
    # files of before had no names, and a name may have a space in it
    if len(names) != len(full) or not all(names):
        names = [f"layer {number}" for number in range(1, 1 + len(full))]
    trial = row.get("trial")
    setting = row.get("setting") or (f"trial {trial}" if trial else other)
    return Shares(setting, accuracy, tuple(names), tuple(rank / most for rank, most in zip(ranks, full, strict=True)))


def _numbers(cell: str) -> list[int]:
    found = cell.split("/")
    if not all(re.fullmatch(r"\d{1,9}", one, re.ASCII) for one in found):
        raise ValueError
    return [int(one) for one in found]


def picture(runs: Sequence[Shares], kind: str, look: Look) -> bytes:
    """As `figure`, in one of `PICTURES`."""
    return rendered(figure(runs, look), kind)


def figure(runs: Sequence[Shares], look: Look | None = None) -> Any:
    """A curve for each layer: the share of its full rank that it needs against the net's test error, in percent.

    Points are the settings, means over their seeds, whose runs are dots. Raises ForceregError without matplotlib.
    """
    look = look or Look()
    settings = by_error(runs)
    names = runs[0].layers
    figure = figure_type()(figsize=(9, 6.5), layout="constrained")
    axes = figure.subplots()
    errors = [mean(100 - 100 * run.accuracy for run in own) for own in settings.values()]
    for number, name in enumerate(names):
        color, marker = _colour(number, len(names)), MARKERS[number % len(MARKERS)]
        heights = [mean(100 * run.shares[number] for run in own) for own in settings.values()]
        axes.plot(errors, heights, color=color, marker=marker, markersize=5, label=plain(name))
        single = [run for own in settings.values() if len(own) > 1 for run in own]
        each = [100 - 100 * run.accuracy for run in single], [100 * run.shares[number] for run in single]
        axes.plot(*each, ".", color=color, alpha=0.35, markersize=4)
    axes.set(xlabel="test error of the whole net, %", ylabel="rank needed, % of the layer's full rank", ylim=(0, 102))
    axes.margins(x=0.04)
    axes.set(xlim=look.x)
    if look.y != (None, None):
        axes.set(ylim=look.y)
    axes.grid(alpha=0.3)
    legend(axes)
    if 1 < len(settings) <= NAMED:
        _name(axes, list(settings), errors)
    return figure


def by_error(runs: Iterable[Shares]) -> dict[str, list[Shares]]:
    """The runs of each setting, by rising mean error."""
    groups: dict[str, list[Shares]] = {}
    for run in runs:
        groups.setdefault(run.setting, []).append(run)
    return dict(sorted(groups.items(), key=lambda item: -mean(run.accuracy for run in item[1])))


def _colour(number: int, count: int) -> Any:
    """Of few layers one of its own, of many a shade, the deeper the darker."""
    if count <= len(COLOURS):
        return COLOURS[number]
    from matplotlib import colormaps

    return colormaps["viridis_r"](0.1 + 0.9 * number / (count - 1))


def _name(axes: Any, settings: Sequence[str], errors: Sequence[float]) -> None:
    """The settings' names above the picture, each with a line to its points."""
    low, high = axes.get_xlim()
    seen = [(name, (error - low) / (high - low)) for name, error in zip(settings, errors, strict=True)]
    seen = [(name, place) for name, place in seen if 0 <= place <= 1]
    for (name, place), above in zip(seen, apart([place for _, place in seen]), strict=True):
        line = {"color": "0.6", "linewidth": 0.8, "transform": axes.transAxes, "clip_on": False}
        axes.plot([place, place, above], [0, 1, 1 + TICK], scalex=False, scaley=False, **line)
        axes.text(above, 1.01 + TICK, plain(name), rotation=35, fontsize="small", transform=axes.transAxes)


def apart(places: Sequence[float]) -> list[float]:
    """Rising places of 0 to 1, moved as little as can be for a `GAP` between them, if there is room for that."""
    gap = min(GAP, 1 / max(1, len(places) - 1))
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + gap) if found else place)
    for at in range(len(found)):
        # what went beyond the end comes back
        found[-1 - at] = min(found[-1 - at], 1 - at * gap)
    return found
