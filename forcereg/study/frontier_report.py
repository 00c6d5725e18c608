"""What a frontier came to: CSV, table and picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from forcereg.lowrank.factor import rank_text
from forcereg.report.plot import COLOURS, figure_type, plain, rendered
from forcereg.report.table import Table, csv_text, numeric
from forcereg.study.frontier import WHOLE, Point

COLUMNS = ("net", "method", "target", "ranks", "macs", "params", "accuracy", "accuracy_tuned", "milliseconds")
MARKERS = "os^Dv"
LINE = {"markersize": 5, "linewidth": 1}
HOLLOW = {"fillstyle": "none"}
STAR = {"marker": "*", "markersize": 11, "linestyle": ""}
ACROSS = 3
"""Panels side by side at most: more are too small to read where a page is wide."""
TOP = 1e-4
"""Test errors down to here are told apart in the picture."""
ROOM = 0.07
"""The least distance of the accuracies written beside a panel, as a share of its height."""
ENOUGH = 4
LEVELS: Sequence[Sequence[float]] = (
    (0.0, 0.5, 0.9, 0.99, 0.999),
    (0.8, 0.95, 0.98, 0.995, 0.998, 0.6, 0.7, 0.2),
    *([part / whole for part in range(whole)] for whole in (10, 20, 100, 1000, 10000)),
)
"""The accuracies that may be written there: a finer level comes in where the ones before aren't ENOUGH."""


def as_csv(points: Sequence[Point], remarks: Sequence[str] = ()) -> str:
    """One line a net, ranks as "conv1=4 conv2=8-12"; `remarks` open it as comments."""
    rows = []
    for one in points:
        ranks = " ".join(f"{name}={rank_text(rank)}" for name, rank in one.ranks.items())
        numbers = (one.macs, one.params, one.accuracy, one.tuned, one.milliseconds)
        rows.append((one.net, one.method, one.target, ranks, *numbers))
    return csv_text(COLUMNS, rows, remarks)


def table(points: Sequence[Point], finetune: int, runtime: str = "torch") -> Table:
    """One row a net; `runtime`: what its milliseconds were taken by."""
    ms = "ms" if runtime == "torch" else f"{runtime} ms"
    numbers = ["million MACs", "parameters", ms, "accuracy"] + [f"fine-tuned for {finetune}"] * bool(finetune)
    found = Table("net", "method", "target", "ranks", *numeric(*numbers))
    last = points[0].net if points else ""
    for one in points:
        if one.net != last:
            found.section()
        last = one.net
        cells = [_number(one.macs and one.macs / 1e6, ".3g"), f"{one.params:,}", _number(one.milliseconds, ".3g")]
        cells += [_number(one.accuracy, ".2%")] + [_number(one.tuned, ".2%")] * bool(finetune)
        ranks = " ".join(f"{name} {rank_text(rank)}" for name, rank in one.ranks.items())
        found.row(one.net, one.method, one.target, ranks, *cells)
    return found


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


# -- picture


def picture(points: Sequence[Point], kind: str, measured: str = "") -> bytes:
    """The figure as png, svg or pdf. Raises ForceregError without matplotlib."""
    return rendered(figure(points, measured), kind)


def figure(points: Sequence[Point], measured: str = "") -> Any:
    """Accuracy against MACs and against time (`measured`: how), a panel for each method, a colour for each net.

    Hollow: as decomposed; full: fine-tuned; stars: the whole nets. Lines join the nets that no other beats at its cost.
    matplotlib's Figure; raises ForceregError without it.
    """
    methods: list[str | None] = [*dict.fromkeys(point.method for point in points if point.method)]
    costs = axes_of(points, measured)
    # one method: its costs side by side; four are a square
    columns = len(costs) if len(methods) == 1 else 2 if len(methods) == 4 else min(len(methods), ACROSS)
    if len(methods) > 1:
        methods += [None] * (-len(methods) % columns)  # every kind of cost begins a row
    panels = [(cost, method) for cost in costs for method in methods]
    rows = -(-len(panels) // columns)
    made = figure_type()(figsize=(4.2 * max(columns, 1.5), 0.9 + 3.1 * rows), layout="constrained")
    grid = made.subplots(rows, columns, sharey=True, squeeze=False)
    drawn: dict[str, Any] = {}
    for axes, (cost, method) in zip(grid.flat, panels, strict=True):
        if method is None:
            axes.axis("off")
            continue
        # one scale for a kind of cost, so that methods compare
        axes.sharex(drawn.get(cost, axes))
        drawn.setdefault(cost, axes)
        axes.set_title(method, fontsize="medium")
        axes.set_xlabel(costs[cost], fontsize="small")
        _draw(axes, points, method, cost)
    for axes in grid[:, 0]:
        axes.set_ylabel("test accuracy")
    shown = ticks(*grid[0][0].get_ylim())
    # of one panel, since all share the axis
    grid[0][0].set_yticks(shown, [f"{100 * one:.4g}%" for one in shown])
    _legends(made, points)
    return made


def axes_of(points: Sequence[Point], measured: str) -> dict[str, str]:
    """The costs that are known of all points, field -> label: parameters only where there are no MACs."""
    labels = {
        "macs": "million multiply-accumulates an image",
        "params": "million parameters",
        "milliseconds": f"milliseconds, {measured}" if measured else "milliseconds a batch",
    }
    known = {name: text for name, text in labels.items() if all(getattr(one, name) is not None for one in points)}
    if "macs" in known:
        del known["params"]
    return known


def _draw(axes: Any, points: Sequence[Point], method: str, cost: str) -> None:
    """The nets by one method and the whole ones: marks, and a line along the best."""
    axes.grid(alpha=0.3)
    axes.set_yscale("function", functions=(stretched, relaxed))
    for net, look in looks(points).items():
        own = [point for point in points if point.net == net and point.method in ("", method)]
        for kind, line, fill in (("accuracy", "--", HOLLOW), ("tuned", "-", {})):
            whole, cut = _pairs(own, cost, kind, True), _pairs(own, cost, kind, False)
            front = {"marker": "", "linestyle": line}
            for pairs, more in ((whole, STAR), (cut, {"linestyle": ""}), (best(cut), front)):
                # reshaped, because there may be no pairs
                axes.plot(*np.reshape(pairs, (-1, 2)).T, **{**look, **fill, **more})


def _pairs(points: Iterable[Point], cost: str, kind: str, whole: bool) -> list[tuple[float, float]]:
    """Cost and accuracy of the whole nets, or of the others."""
    scale = 1 if cost == "milliseconds" else 1e-6
    own = [one for one in points if (one.target == WHOLE) == whole and getattr(one, kind) is not None]
    return [(scale * getattr(one, cost), getattr(one, kind)) for one in own]


def looks(points: Iterable[Point]) -> dict[str, dict[str, Any]]:
    """How each net is drawn."""
    nets = enumerate(dict.fromkeys(point.net for point in points))
    # matplotlib has ten colours; then they begin again with another marker
    return {net: {**LINE, "color": COLOURS[at % 10], "marker": MARKERS[at // 10 % len(MARKERS)]} for at, net in nets}


def _legends(made: Any, points: Sequence[Point]) -> None:
    """The nets above the panels, what the marks mean below."""
    from matplotlib.lines import Line2D

    nets = [(plain(net), look) for net, look in looks(points).items()]
    marks: list[tuple[str, dict[str, Any]]] = [("as decomposed", {"marker": "o", "linestyle": "--", **HOLLOW})]
    if any(point.tuned is not None for point in points):
        marks.append(("fine-tuned", {"marker": "o"}))
    marks.append(("whole net", STAR))
    for shown, place in ((nets, "upper"), (marks, "lower")):
        handles = [Line2D([], [], label=label, **{**LINE, "color": "0.4", **look}) for label, look in shown]
        made.legend(handles=handles, loc=f"outside {place} center", ncols=ACROSS, fontsize="small")


def best(pairs: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of pairs (cost, accuracy) those that no other of at most their cost equals in accuracy, by rising cost."""
    found: list[tuple[float, float]] = []
    # of one cost the best comes first, and the others don't equal it
    for cost, accuracy in sorted(pairs, key=lambda pair: (pair[0], -pair[1])):
        if not found or accuracy > found[-1][1]:
            found.append((cost, accuracy))
    return found


# -- the axis of accuracies: 90%, 99% and 99.9% at equal distances, because there nets differ


def stretched(accuracy: Any) -> Any:
    """-log of the error; errors below `TOP` as that."""
    return -np.log(np.maximum(1 - np.asarray(accuracy, float), TOP))


def relaxed(place: Any) -> Any:
    """The accuracy again."""
    return 1 - np.exp(-np.asarray(place, float))


def ticks(low: float, high: float) -> list[float]:
    """Round accuracies between the bounds with room for their labels, roundest first."""
    span = float(stretched(high) - stretched(low))
    found: list[float] = []
    for level in LEVELS:
        for one in level if len(found) < ENOUGH else ():
            gaps = (abs(float(stretched(one) - stretched(other))) for other in found)
            if low <= one <= high and all(gap > ROOM * span for gap in gaps):
                found.append(one)
    return sorted(found)
