"""How sensitive a net's layers are to decomposition: CSV, table and picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields

from forcereg.lowrank.accuracy import Point
from forcereg.lowrank.factor import rank_text
from forcereg.report.plot import COLOURS, STYLES, figure_type, plain, rendered
from forcereg.report.table import Table, csv_text, numeric

EXACT = 1e-6
"""Errors up to here have no place on a logarithmic axis: the layer is as good as whole."""


def as_csv(points: Sequence[Point]) -> str:
    """One line a net; the first is the whole one, without a layer."""
    ranks = ("rank", "full_rank")
    rows = ([rank_text(value) if name in ranks else value for name, value in asdict(point).items()] for point in points)
    return csv_text([one.name for one in fields(Point)], rows)


def table(points: Sequence[Point]) -> Table:
    """A row for each layer, a column for each bound; in a cell the accuracy and the rank."""
    rest = points[1:]
    bounds = list(dict.fromkeys(point.bound for point in rest))
    made = Table("layer alone", *numeric("full rank", *(f"error {bound:g}" for bound in bounds)))
    for name in dict.fromkeys(point.layer for point in rest):
        own = [point for point in rest if point.layer == name]
        cells = [f"{point.accuracy:.2%} ({rank_text(point.rank)})" for point in own]
        made.row(name, rank_text(own[0].full_rank), *cells)
    return made


def picture(points: Sequence[Point], kind: str) -> bytes:
    """Accuracy against the error reached, a curve for each layer. Raises ForceregError without matplotlib."""
    whole, *rest = points
    figure = figure_type()(figsize=(8, 5))
    axes = figure.subplots()
    names = list(dict.fromkeys(point.layer for point in rest))
    for number, name in enumerate(names):
        found = [(point.error, point.accuracy) for point in rest if point.layer == name]
        own = sorted(pair for pair in found if pair[0] > EXACT)
        # ten colours, then the next style
        style = STYLES[number // 10 % len(STYLES)]
        errors, accuracies = [pair[0] for pair in own], [pair[1] for pair in own]
        axes.plot(errors, accuracies, style, color=COLOURS[number % 10], marker=".", label=plain(name))
    axes.axhline(whole.accuracy, color="0.6", linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set(xlabel="relative squared error of the layer that is decomposed", ylabel="test accuracy (dotted: whole)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=-(-len(names) // 20))
    return rendered(figure, kind)
