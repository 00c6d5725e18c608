"""Tables of a net's layers: what they cost, the ranks that they need, the angles between their filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from forcereg.errors import ForceregError
from forcereg.lowrank.factor import each_of, rank_text
from forcereg.net.read import ReadNet
from forcereg.net.summary import Summary
from forcereg.net.timing import Timing
from forcereg.report.page import Bars, Cell, Grid
from forcereg.report.ranks import RankTable, cell
from forcereg.study.filters.angles import spread
from forcereg.study.filters.bank import Bank, filters_in
from forcereg.study.reported.history import CutLayer


@dataclass
class Seen:
    """What a net comes to, each None where it isn't known; `milliseconds` of a forward pass."""

    params: int | None = None
    macs: int | None = None
    milliseconds: float | None = None
    accuracy: float | None = None


def glance(seen: Mapping[str, Seen]) -> Grid:
    """The nets side by side."""
    rows = [
        [
            name,
            *("" if count is None else f"{count:,}" for count in (one.params, one.macs)),
            "" if one.milliseconds is None else f"{one.milliseconds:.3g}",
            "" if one.accuracy is None else f"{one.accuracy:.2%}",
        ]
        for name, one in seen.items()
    ]
    return Grid(["net", "parameters", "MACs", "ms", "accuracy"], rows, frozenset(range(1, 5))).known()


def costs(net: Summary, timing: Timing | None) -> Grid:
    """Each layer's shape, parameters, multiply-accumulates for one item, and milliseconds where they were measured."""
    times = {one.name: one.forward for one in timing.layers} if timing else {}
    headings = ["layer", "type", "output", "parameters", "MACs"] + ["ms", "share of time"] * bool(timing)
    whole = sum(times.values())
    rows = []
    for row in net.rows:
        shapes = ", ".join("x".join(map(str, shape)) or "scalar" for shape in row.tops.values())
        counts = [f"{count:,}" if count else "" for count in (row.params, row.macs)]
        took = [f"{times[row.name]:.3f}", _share(times[row.name], whole)] if row.name in times else ["", ""]
        rows.append([row.name, row.type, shapes, *counts, *took * bool(timing)])
    totals = [f"{whole:.3f}", ""] * bool(timing)
    rows.append(["whole net", "", "", f"{net.params:,}", f"{net.macs:,}", *totals])
    return Grid(headings, rows, frozenset(range(3, len(headings))))


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else ""


def needed(table: RankTable, cuts: Mapping[str, CutLayer], angles: Mapping[str, Sequence[float | None]]) -> Grid:
    """The rank that each layer needs at each error, with a bar of their shares of the full one, the rank that it has.

    `angles`: layer -> mean angle in degrees of its filters, before and now, where known.
    """
    cut, turned, both = bool(cuts), bool(angles), any(None not in pair for pair in angles.values())
    headings = ["layer", "full rank", *(f"{error:g}" for error in table.errors), "share of the full rank"]
    headings += ["has rank"] * cut + ["angle before"] * both + ["angle"] * turned
    rows: list[list[Cell]] = []
    for one, ranks in zip(table.layers, table.ranks, strict=True):
        full = each_of(one.full_rank)[0]
        row: list[Cell] = [one.name, rank_text(one.full_rank), *(cell(one, rank) for rank in ranks)]
        row.append(Bars([each_of(rank)[0] / full for rank in ranks]))
        own = cuts.get(one.name)
        row += ["whole" if own is None else f"{rank_text(tuple(own.ranks))} of {own.full_rank}"] * cut
        first, last = angles.get(one.name, (None, None))
        row += [_degrees(first)] * both + [_degrees(last)] * turned
        rows.append(row)
    bars = 2 + len(table.errors)
    return Grid(headings, rows, frozenset(range(1, len(headings))) - {bars})


def _degrees(angle: float | None) -> str:
    return "" if angle is None else f"{angle:.1f}°"


def mean_angle(read: ReadNet, layer: str) -> float | None:
    """Of all pairs of a layer's filters, in degrees; None where there is no pair, or no such layer."""
    try:
        weight, groups = filters_in(read.model, read.file, layer, read.model.path)
        return spread(layer, Bank("", weight, groups)).mean
    except ForceregError:
        return None


def bank(read: ReadNet, layer: str, label: str) -> Bank:
    """The layer's filters. Raises ForceregError."""
    return Bank(label, *filters_in(read.model, read.file, layer, read.model.path))
