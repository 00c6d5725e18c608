"""The curves of runs as CSV, for other programs: a row for each point."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from forcereg.report.points import Run
from forcereg.report.table import csv_text

COLUMNS = ("log", "phase", "name", "iteration", "value")
_PHASE = re.compile(r"(train output|train|test(?: #\d+)?) (.*)", re.DOTALL)


def series_csv(runs: Sequence[Run]) -> str:
    """Every point of every curve: log, phase (train, train output, test, test #1, ...), name, iteration and value.

    Phase `train` has the displayed loss, lr, and layers' ranks and forces; `train output` the training net's outputs.
    """
    return csv_text(COLUMNS, _rows(runs))


def _rows(runs: Sequence[Run]) -> Iterator[Sequence[Any]]:
    for run in runs:
        for curve, points in run.curves.items():
            found = _PHASE.fullmatch(curve)
            phase, name = (found[1], found[2]) if found else ("train", curve)
            for iteration, value in zip(points.iterations, points.values, strict=True):
                yield run.name, phase, name, iteration, value
