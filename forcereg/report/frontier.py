"""What a frontier came to: CSV, table and picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from forcereg.frontier import WHOLE, Point
from forcereg.report.plot import figure_type, plain

COLUMNS = ("net", "method", "target", "ranks", "macs", "params", "accuracy", "accuracy_tuned", "milliseconds")


def as_csv(points: Sequence[Point], remarks: Sequence[str] = ()) -> str:
    """One line a net, ranks as conv1=4/conv2=8; `remarks` open it as comments."""
    out = io.StringIO()
    out.writelines(f"# {line}\n" for line in remarks)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in points:
        ranks = "/".join(f"{name}={rank}" for name, rank in one.ranks.items())
        numbers = (one.macs, one.params, one.accuracy, one.tuned, one.milliseconds)
        cells = ("" if cell is None else f"{cell:.6g}" if isinstance(cell, float) else cell for cell in numbers)
        writer.writerow([one.net, one.method, one.target, ranks, *cells])
    return out.getvalue()


def table(points: Sequence[Point], finetune: int) -> Any:
    """A rich table, one row a net."""
    from rich.markup import escape
    from rich.table import Column, Table

    found = Table(Column("net", overflow="fold"), "method", "target", "ranks")
    numbers = ["million MACs", "ms", "accuracy"] + [f"fine-tuned for {finetune}"] * bool(finetune)
    for heading in numbers:
        found.add_column(heading, justify="right")
    last = ""
    for one in points:
        if last and one.net != last:
            found.add_section()
        last = one.net
        cells = [_number(one.macs and one.macs / 1e6, ".3g"), _number(one.milliseconds, ".3g")]
        cells += [_number(one.accuracy, ".2%")] + [_number(one.tuned, ".2%")] * bool(finetune)
        ranks = " ".join(f"{name} {rank}" for name, rank in one.ranks.items())
        found.add_row(escape(one.net), one.method, one.target, escape(ranks), *cells)
    return found


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def picture(points: Sequence[Point], kind: str) -> bytes:
    """Accuracy against MACs and against time, a column for each method, a colour for each net.

    Hollow: as decomposed; full: fine-tuned; stars: the whole nets. Raises ForceregError without matplotlib.
    """
    methods = list(dict.fromkeys(point.method for point in points if point.method)) or [""]
    axes_of = {"macs": "million multiply-accumulates an image", "milliseconds": "milliseconds a batch, measured"}
    rows = [name for name in axes_of if any(getattr(point, name) is not None for point in points)] or ["macs"]
    figure = figure_type()(figsize=(1 + 4.6 * max(len(methods), 1.4), 4.2 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(methods), sharey=True, squeeze=False)
    nets = list(dict.fromkeys(point.net for point in points))
    for row, name in enumerate(rows):
        for column, method in enumerate(methods):
            axes = grid[row][column]
            for number, net in enumerate(nets):
                own = [point for point in points if point.net == net and point.method in ("", method)]
                _draw(axes, own, name, f"C{number % 10}", plain(net))
            axes.set_xlabel(axes_of[name], fontsize="small")
            axes.grid(alpha=0.3)
            if row == 0:
                axes.set_title(method)
        grid[row][0].set_ylabel("test accuracy")
    tuned = any(point.tuned is not None for point in points)
    title = "star: whole, hollow: decomposed" + (", full: fine-tuned" if tuned else "")
    grid[0][0].legend(fontsize="small", title=title, title_fontsize="small")
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=120)
    return out.getvalue()


def _draw(axes: Any, points: Sequence[Point], name: str, color: str, label: str) -> None:
    """One net's curves: as decomposed, dashed; fine-tuned; and a star for the whole net."""
    scale = 1e-6 if name == "macs" else 1
    places = [(getattr(point, name) or 0) * scale for point in points]
    whole = [point.target == WHOLE for point in points]
    for accuracies, style, fill in (
        ([point.accuracy for point in points], "o--", "none"),
        ([point.tuned for point in points], "o-", "full"),
    ):
        known = [found for found in zip(places, accuracies, whole, strict=True) if found[1] is not None]
        curve = sorted((place, accuracy) for place, accuracy, is_whole in known if not is_whole)
        if curve:
            axes.plot(*zip(*curve, strict=True), style, color=color, fillstyle=fill, markersize=5, linewidth=1)
        for place, accuracy, is_whole in known:
            if is_whole:
                axes.plot(place, accuracy, "*", color=color, fillstyle=fill, markersize=11)
    axes.plot([], [], "o-", color=color, label=label)
