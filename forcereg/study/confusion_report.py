"""Which classes are taken for which: tables, CSV and picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forcereg.report.plot import figure_type, plain, rendered
from forcereg.report.table import Table, csv_text, numeric
from forcereg.study.confusion import Confusion

SHOWN = 40
"""Classes of which all are listed; of more only as many of the worst."""
WRITTEN = 25
"""Classes up to which a picture has its numbers written into it, and their names beside it up to three times that."""


def titles(names: Sequence[str] | None, classes: int) -> list[str]:
    """What to call each class: its number, and its name if there are any."""
    return [f"{index} {names[index]}" if names else str(index) for index in range(classes)]


def class_table(found: Confusion, called: Sequence[str]) -> Table:
    """A row for each class, of many classes only for the worst: how many, how many right, and for what it is taken."""
    order = worst(found)
    made = Table("class", *numeric("items", "right", "accuracy"), "most often taken for")
    for index in order:
        share, items = found.accuracies[index], int(found.items[index])
        if share is None:
            made.row(called[index], "0", "", "absent", "")
            continue
        wrong = found.counts[index, :-1].copy()
        wrong[index] = 0
        most = int(wrong.argmax())
        taken = f"{called[most]} ({wrong[most]:,})" if wrong[most] else ""
        made.row(called[index], f"{items:,}", f"{int(found.right[index]):,}", f"{share:.2%}", taken)
    return made


def worst(found: Confusion) -> list[int]:
    """The classes to list: all in order, or of many those of least accuracy."""
    shares = found.accuracies
    if len(shares) <= SHOWN:
        return list(range(len(shares)))
    present = [index for index, share in enumerate(shares) if share is not None]
    return sorted(present, key=lambda index: (shares[index], index))[:SHOWN]


def pair_table(found: Confusion, called: Sequence[str], most: int) -> Table:
    """The most frequent mistakes."""
    made = Table("true class", "taken for", *numeric("items", "of the class"))
    for true, taken, count in found.pairs(most):
        made.row(called[true], called[taken], f"{count:,}", f"{count / int(found.items[true]):.2%}")
    return made


def as_csv(found: Confusion, names: Sequence[str] | None) -> str:
    """A row for each true class: number, name, items, accuracy (nothing for an absent one), and the counts."""
    classes = len(found.counts)
    lost = bool(found.counts[:, -1].any())
    header = ["class", "name", "items", "accuracy", *map(str, range(classes)), *["not a number"] * lost]
    rows = []
    for index, (share, items) in enumerate(zip(found.accuracies, found.items.tolist(), strict=True)):
        counts = found.counts[index, : classes + lost].tolist()
        rows.append([index, names[index] if names else None, items, share, *counts])
    return csv_text(header, rows)


def picture(found: Confusion, called: Sequence[str], kind: str) -> bytes:
    """The matrix as a heat map, shades are shares of the true class. Raises ForceregError without matplotlib."""
    counts = found.counts[:, :-1]
    # of an absent class all counts are zero
    shares = counts / np.maximum(found.items, 1)[:, None]
    classes = len(counts)
    side = min(14.0, max(5.0, 2.5 + 0.35 * classes))
    figure = figure_type()(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shades = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(shades, ax=axes, shrink=0.8, label="share of the true class")
    axes.set(xlabel="taken for", ylabel="true class", title=f"accuracy {found.accuracy:.2%}")
    if classes <= 3 * WRITTEN:
        shown = [plain(name) for name in called]
        axes.set_xticks(range(classes), shown, rotation=90 if max(map(len, shown)) > 2 else 0, fontsize="small")
        axes.set_yticks(range(classes), shown, fontsize="small")
    if classes <= WRITTEN:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize="x-small")
    return rendered(figure, kind)
