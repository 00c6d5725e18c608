"""What a sweep found: a CSV file, a table, and a picture of accuracy against rank and cost."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Any

from forcereg.report.plot import figure_type, plain, rendered
from forcereg.report.table import Column, Table, csv_text
from forcereg.sweep import Result

COLUMNS = (
    "accuracy", "loss", "ranks", "full_ranks", "macs", "macs_cut", "accuracy_cut", "accuracy_tuned",
    "seconds", "failed",
)  # fmt: skip
MARKERS = "os^Dv"


def as_csv(results: Iterable[Result]) -> str:
    """One line a run: the settings, the seed, then `COLUMNS`; ranks of several layers as 12/44."""
    results = list(results)
    fields = list(dict.fromkeys(name for result in results for name in result.fields))
    rows = []
    for result in results:
        cells = [result.fields.get(name, "") for name in fields]
        rows.append([*cells, result.seed, *(_cell(getattr(result, name)) for name in COLUMNS)])
    return csv_text([*fields, "seed", *COLUMNS], rows)


def _cell(value: Any) -> Any:
    return "/".join(map(str, value)) if isinstance(value, list) else value


def by_setting(results: Iterable[Result]) -> dict[str, list[Result]]:
    """The runs of each setting, its seeds together, under a name of it."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        name = " ".join(f"{field}={value}" for field, value in result.fields.items()) or "as it is"
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


def table(results: Iterable[Result], error: float, finetune: int) -> Table:
    """One row a setting, over those of its seeds that got there."""
    tuned = [f"fine-tuned for {finetune}"] if finetune else []
    numbers = ("accuracy", f"ranks at {100 * error:g}% error", "million MACs", "cut", *tuned)
    found = Table("setting", *(Column(heading, "numbers") for heading in numbers))
    for name, runs in by_setting(results).items():
        failed = sum(bool(run.failed) for run in runs)
        ranks = itertools.zip_longest(*(run.ranks for run in runs if run.ranks))
        cells = [
            spread([run.accuracy for run in runs], ".2%"),
            " / ".join(spread(layer, ".3g") for layer in ranks) or "-",
            spread([run.macs_cut and run.macs_cut / 1e6 for run in runs], ".3g"),
            spread([run.accuracy_cut for run in runs], ".2%"),
            spread([run.accuracy_tuned for run in runs], ".2%"),
        ]
        found.row(f"{name}, {failed} of {len(runs)} failed" if failed else name, *cells[: 4 + len(tuned)])
    return found


def picture(results: Sequence[Result], kind: str) -> bytes:
    """Accuracy against the rank that is left and against MACs: hollow as cut, full once fine-tuned.

    Raises ForceregError without matplotlib.
    """
    figure = figure_type()(figsize=(15, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (name, runs) in enumerate(by_setting(results).items()):
        look = {"color": f"C{number % 10}", "marker": MARKERS[number // 10 % len(MARKERS)], "linestyle": ""}
        for run in runs:
            if run.macs_cut is None or run.accuracy_cut is None:
                continue
            for axes, place in ((left, 100 * sum(run.ranks) / sum(run.full_ranks)), (right, run.macs_cut / 1e6)):
                axes.plot(place, run.accuracy_cut, fillstyle="none", **look)
                if run.accuracy_tuned is not None:
                    pair = (run.accuracy_cut, run.accuracy_tuned)
                    axes.plot([place] * 2, pair, "-", color=look["color"], alpha=0.4, linewidth=1)
                    axes.plot(place, run.accuracy_tuned, **look)
        left.plot([], [], label=plain(name), **look)
    for place in {run.macs / 1e6 for run in results if run.macs}:
        right.axvline(place, color="0.6", linestyle=":", linewidth=1)
    left.set(xlabel="rank that is left, % of the filters", ylabel="test accuracy")
    right.set(xlabel="million multiply-accumulates an image (dotted: as trained)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    title = "hollow: cut, full: fine-tuned"
    figure.legend(fontsize="small", title=title, loc="outside right upper")
    return rendered(figure, kind)
