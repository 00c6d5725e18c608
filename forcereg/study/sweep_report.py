"""What a sweep found: a CSV file, a table, and a picture of accuracy against rank and cost."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Any

from forcereg.report.plot import COLOURS, figure_type, plain, rendered
from forcereg.report.table import Column, Table, csv_text
from forcereg.study.grid import labels
from forcereg.study.sweep_plan import Plan, Result

COLUMNS = (
    "accuracy", "loss", "accuracy_whole_tuned", "layers", "ranks_at_error", "full_ranks", "ranks", "macs", "macs_cut",
    "accuracy_cut", "accuracy_tuned", "seconds", "failed",
)  # fmt: skip
MARKERS = "os^Dv"
WHOLE = "*"
"""The marker of a net that isn't cut."""


def as_csv(results: Iterable[Result]) -> str:
    """One line a run: the setting as in the table, its fields, the seed, then `COLUMNS`.

    Ranks are as 12/44, layers as conv1 conv2.
    """
    results = list(results)
    header, rows = cells_of(results)
    names = labels([result.fields for result in results])
    return csv_text(["setting", *header], [[name, *row] for name, row in zip(names, rows, strict=True)])


def cells_of(results: Sequence[Result]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of a CSV file: every field that one of them sets, the seed, `COLUMNS`."""
    fields = list(dict.fromkeys(name for result in results for name in result.fields))
    rows = [
        [
            *(one.fields.get(name, "") for name in fields),
            one.seed,
            *(_cell(name, getattr(one, name)) for name in COLUMNS),
        ]
        for one in results
    ]
    return [*fields, "seed", *COLUMNS], rows


def _cell(name: str, value: Any) -> Any:
    # names of layers may have a / in them
    return (" " if name == "layers" else "/").join(map(str, value)) if isinstance(value, list) else value


def by_setting(results: Iterable[Result]) -> dict[str, list[Result]]:
    """The runs of each setting, its seeds together, under a name of what varies between the settings."""
    results = list(results)
    groups: dict[str, list[Result]] = {}
    for name, result in zip(labels([result.fields for result in results]), results, strict=True):
        groups.setdefault(name, []).append(result)
    return groups


def spread(values: Sequence[float | None], form: str) -> str:
    """The mean, and behind it the least and the most of several; '-' without values."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    low, high = (format(bound(known), form) for bound in (min, max))
    middle = format(mean(known), form)
    return middle if low == high else f"{middle} ({low} to {high})"


def ranks_of(lists: Iterable[Sequence[int | str]]) -> str:
    """The ranks of each layer over several runs: numbers as `spread`, 'whole' and pairs as they are."""
    cells = []
    for layer in itertools.zip_longest(*(ranks for ranks in lists if ranks), fillvalue=""):
        found = [str(rank) for rank in layer if rank != ""]
        numbers = [int(rank) for rank in found if rank.isdecimal()]
        others = dict.fromkeys(rank for rank in found if not rank.isdecimal())
        cells.append(" or ".join([*([spread(numbers, ".3g")] if numbers else []), *others]))
    return " / ".join(cells) or "-"


def table(results: Iterable[Result], plan: Plan) -> Table:
    """One row a setting, over those of its seeds that got there."""
    results = list(results)
    # two columns would say one thing
    same = all(run.ranks == [str(rank) for rank in run.ranks_at_error] for run in results)
    long = f"fine-tuned for {plan.finetune}"
    columns = {
        "whole net": lambda runs: spread([run.accuracy for run in runs], ".2%"),
        f"whole net {long}": lambda runs: spread([run.accuracy_whole_tuned for run in runs], ".2%"),
        f"ranks at {100 * plan.error:g}% error": lambda runs: ranks_of([run.ranks_at_error for run in runs]),
        "ranks cut to": lambda runs: ranks_of([run.ranks for run in runs]),
        "million MACs": lambda runs: spread([run.macs_cut and run.macs_cut / 1e6 for run in runs], ".3g"),
        "cut": lambda runs: spread([run.accuracy_cut for run in runs], ".2%"),
        f"cut and {long}": lambda runs: spread([run.accuracy_tuned for run in runs], ".2%"),
    }
    shown = [
        heading
        for heading in columns
        if (plan.finetune or long not in heading) and not (same and heading == "ranks cut to")
    ]
    found = Table("setting", *(Column(heading, "numbers") for heading in shown), title=f"cut by {plan.rule.words}")
    for name, runs in by_setting(results).items():
        failed = sum(bool(run.failed) for run in runs)
        cells = [columns[heading](runs) for heading in shown]
        found.row(f"{name}, {failed} of {len(runs)} failed" if failed else name, *cells)
    return found


def picture(results: Sequence[Result], plan: Plan, kind: str) -> bytes:
    """Accuracy of cut and whole nets against the rank at an error and against MACs: hollow, or full if fine-tuned.

    Raises ForceregError without matplotlib.
    """
    figure = figure_type()(figsize=(15, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (name, runs) in enumerate(by_setting(results).items()):
        look = {"color": COLOURS[number % 10], "marker": MARKERS[number // 10 % len(MARKERS)], "linestyle": ""}
        for run in runs:
            if run.accuracy is None or not run.full_ranks:
                continue
            rank = 100 * sum(run.ranks_at_error) / sum(run.full_ranks)
            whole, cut = (run.accuracy, run.accuracy_whole_tuned), (run.accuracy_cut, run.accuracy_tuned)
            for axes, places in ((left, (rank, rank)), (right, (run.macs, run.macs_cut))):
                for place, pair, marker in zip(places, (whole, cut), (WHOLE, look["marker"]), strict=True):
                    if place is not None:
                        _draw(axes, place if axes is left else place / 1e6, pair, {**look, "marker": marker})
        left.plot([], [], label=plain(name), **look)
    left.plot([], [], label="whole nets", color="0.4", marker=WHOLE, linestyle="")
    left.set(xlabel=f"rank at {100 * plan.error:g}% error, % of the filters", ylabel="test accuracy")
    right.set(xlabel="million multiply-accumulates an image")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    tuned = f"\nhollow: before, full: fine-tuned for {plan.finetune}" if plan.finetune else ""
    figure.legend(fontsize="small", title=f"cut by {plan.rule.words}{tuned}", loc="outside right upper")
    return rendered(figure, kind)


def _draw(axes: Any, place: float, pair: tuple[float | None, float | None], look: dict[str, Any]) -> None:
    """One net: hollow as it was, full fine-tuned, a line between."""
    before, tuned = pair
    if before is None:
        return
    axes.plot(place, before, fillstyle="none", **look)
    if tuned is not None:
        axes.plot([place] * 2, pair, "-", color=look["color"], alpha=0.4, linewidth=1)
        axes.plot(place, tuned, **look)
