"""What a search found: the best trial, a CSV file, a table, a picture, and a solver with the best settings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from forcereg.errors import storable
from forcereg.report.plot import COLOURS, figure_type, plain, rendered
from forcereg.report.table import Column, Table, csv_text
from forcereg.schema.text import to_text
from forcereg.solver.setup import solver_root
from forcereg.study.grid import Setting, labels
from forcereg.study.shared import Tried
from forcereg.study.sweep_plan import Plan, Result, solver_of
from forcereg.study.sweep_report import cells_of, ranks_of, spread
from forcereg.study.sweep_run import CUT
from forcereg.study.tune_goal import Goal

COLUMNS = ("trial", "state", "value")
"""Those before a sweep's."""
MARKERS = "os^Dv"
WHOLE = "*"
"""The marker of a net that isn't cut."""


def best_of(trials: Iterable[Tried], goal: Goal) -> Tried | None:
    """The first of the best that are complete; None if none is."""
    return next(iter(ranked(trials, goal)), None)


def ranked(trials: Iterable[Tried], goal: Goal) -> list[Tried]:
    """Those that are complete, the best first: of equal ones the cheaper, the more accurate, then the older."""
    sign = 1 if goal.of_accuracy else -1

    def order(one: Tried) -> tuple[float, int, float, int]:
        run = one.result
        return sign * (one.value or 0.0), run.macs_cut or 0, -(run.accuracy_cut or 0.0), one.number

    return sorted((one for one in trials if one.value is not None), key=order)


def as_csv(trials: Sequence[Tried]) -> str:
    """One line a trial: number, state and value, then as a sweep's."""
    header, rows = cells_of([one.result for one in trials])
    own = [[one.number, one.state, one.value] for one in trials]
    return csv_text([*COLUMNS, *header], [[*first, *row] for first, row in zip(own, rows, strict=True)])


def table(trials: Sequence[Tried], plan: Plan, goal: Goal) -> Table:
    """One row a trial, the best first; behind them those that were ended before, and why."""
    headings = ["whole net", f"ranks at {100 * plan.error:g}% error", "ranks cut to", "MACs left", "cut"]
    headings += [f"cut and fine-tuned for {plan.finetune}"] if plan.finetune else []
    ended = any(one.state != "complete" for one in trials)
    columns = [Column("settings"), *(Column(heading, "numbers") for heading in headings)]
    columns += [Column("ended", "text")] if ended else []
    made = Table(Column("trial", "number"), *columns, title=f"the best at {goal.words} first")
    names = dict(zip([one.number for one in trials], labels([one.result.fields for one in trials]), strict=True))
    first = ranked(trials, goal)
    for one in [*first, *(one for one in trials if one.value is None)]:
        run = one.result
        left = share_left(run)
        cells = [
            spread([run.accuracy], ".2%"),
            ranks_of([run.ranks_at_error]),
            ranks_of([run.ranks]),
            "-" if left is None else f"{left:.1%}",
            spread([run.accuracy_cut], ".2%"),
        ]
        cells += [spread([run.accuracy_tuned], ".2%")] if plan.finetune else []
        cells += ["" if one.state == "complete" else one.state] if ended else []
        made.row(str(one.number), names[one.number], *cells)
    return made


def share_left(run: Result) -> float | None:
    """The cut net's MACs, of the whole one's."""
    return run.macs_cut / run.macs if run.macs and run.macs_cut is not None else None


# -- the picture


def picture(trials: Sequence[Tried], plan: Plan, goal: Goal, kind: str) -> bytes:
    """What came of which strength, and accuracy against cost. Raises ForceregError without matplotlib."""
    figure = figure_type()(figsize=(15, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    done, looks = ranked(trials, goal)[::-1], _looks(trials)  # the best are drawn last, above the others
    for one in done:
        look = looks[one.result.fields.get("force_type", "")]
        if decay := float(one.result.fields.get("force_decay", 0)):
            left.plot(decay, one.value, **look)
            left.set_xscale("log")
        else:
            left.axhline(one.value or 0.0, linestyle="--", color="0.4")
        _nets(right, one.result, look)
    _front(right, [point for one in done for point in _points(one.result)])
    left.set(xlabel="force_decay", ylabel="MACs left, of the whole net's" if goal.of_accuracy else "test accuracy")
    right.set(xlabel="MACs left, of the whole net's", ylabel="test accuracy")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.plot([], [], linestyle="--", color="0.4", label="without force")
    for name, look in looks.items():
        right.plot([], [], label=plain(name or "nets without force"), **look)
    right.plot([], [], linestyle="", marker=WHOLE, color="0.4", label="whole nets")
    right.plot([], [], color="0.4", linewidth=1, label="none cheaper and better")
    tuned = f"\nhollow: before, full: fine-tuned for {plan.finetune}" if plan.finetune else ""
    figure.legend(fontsize="small", title=f"cut for {goal.words}{tuned}", loc="outside right upper")
    return rendered(figure, kind)


def _nets(axes: Any, run: Result, look: Mapping[str, Any]) -> None:
    """The whole net of a run and the cut one: hollow as it was cut, full as it ended."""
    share = share_left(run)
    if share is not None and run.accuracy_tuned is not None and run.accuracy_cut is not None:
        axes.plot(share, run.accuracy_cut, fillstyle="none", **look)
    for (place, accuracy), marker in zip(_points(run)[::-1], (look["marker"], WHOLE), strict=False):
        axes.plot(place, accuracy, **{**look, "marker": marker})


def _looks(trials: Sequence[Tried]) -> Mapping[str, Mapping[str, Any]]:
    """Force type -> colour and marker."""
    kinds = dict.fromkeys(one.result.fields.get("force_type", "") for one in trials)
    return {
        kind: {"linestyle": "", "color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        for number, kind in enumerate(kinds)
    }


def _points(run: Result) -> list[tuple[float, float]]:
    """Share of MACs and accuracy of a run's nets: the whole one, and the cut one as it ended."""
    share, cut = share_left(run), run.accuracy_cut if run.accuracy_tuned is None else run.accuracy_tuned
    found = [(1.0, run.accuracy), (share, cut)]
    return [(x, y) for x, y in found if x is not None and y is not None]


def _front(axes: Any, points: Iterable[tuple[float, float]]) -> None:
    """A line through the nets than which none is both cheaper and more accurate."""
    front: list[tuple[float, float]] = []
    for share, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((share, accuracy))
    axes.step(*zip(*front, strict=True), where="post", color="0.4", linewidth=1) if front else None


# -- the solver


def best_solver(best: Tried, plan: Plan, goal: Goal, out: Path) -> str:
    """The solver with the best trial's settings, as text, to be run from the folder that it was tuned in."""
    run = best.result
    setting = Setting(run.fields, run.seed)
    message = solver_of(plan, setting).message
    message.snapshot_prefix = storable((out / "best").resolve())
    if plan.weights:
        message.weights[:] = [storable(path) for path in plan.weights]
    force = "" if float(run.fields.get("force_decay", 1)) else ": no force was better than any"
    accuracy = run.accuracy_cut if run.accuracy_tuned is None else run.accuracy_tuned
    tuned = f", fine-tuned for {plan.finetune}" if run.accuracy_tuned is not None else ""
    lines = [
        f"forcereg tune --goal {goal.words}: trial {best.number}{force}",
        f"accuracy {spread([accuracy], '.2%')} at {share_left(run) or 1:.1%} of the MACs{tuned}; "
        f"whole {spread([run.accuracy], '.2%')}",
        f"its cut net: {out / setting.folder / CUT}.prototxt, .caffemodel.h5",
        f"paths start at {os.path.relpath(solver_root(plan.solver), out)} from here",
    ]
    return "".join(f"# {storable(line)}\n" for line in lines) + to_text(message)
