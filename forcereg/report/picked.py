"""Some of the curves of runs, and smoother ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from forcereg.errors import UsageError, did_you_mean
from forcereg.report.points import Curve, Run

BEFORE = ("test ", "train ")
"""With what curves' names begin that can be left out."""


def only(runs: Sequence[Run], names: Sequence[str]) -> list[Run]:
    """The runs with those curves alone that one of `names` is the name or a pattern (conv*) of.

    "accuracy" is "test accuracy" too. Raises UsageError for one that no run has.
    """
    every = list(dict.fromkeys(curve for run in runs for curve in run.curves))
    for name in names:
        if not any(named(curve, name) for curve in every):
            hint = did_you_mean(name, every) or f"; there are {', '.join(every)}"
            raise UsageError(f"--only names '{name}', which no log has{hint}")
    return [
        replace(run, curves={curve: own for curve, own in run.curves.items() if any(named(curve, n) for n in names)})
        for run in runs
    ]


def named(curve: str, name: str) -> bool:
    """Whether a curve is meant by a name or pattern."""
    return any(fnmatchcase(curve.removeprefix(before), name) for before in ("", *BEFORE))


def smooth(runs: Sequence[Run], window: int) -> list[Run]:
    """The runs with each value the mean of `window` around it, of fewer at a curve's ends; 1 changes nothing."""
    return [replace(run, curves={name: smoothed(curve, window) for name, curve in run.curves.items()}) for run in runs]


def smoothed(curve: Curve, window: int) -> Curve:
    """The moving mean, of one value more before than behind if the window is even. What is no number stays."""
    values = np.array(curve.values)
    known = np.isfinite(values)
    sums = np.concatenate([[0], np.cumsum(np.where(known, values, 0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    place = np.arange(len(values))
    first, last = np.maximum(place - window // 2, 0), np.minimum(place + (window + 1) // 2, len(values))
    means = (sums[last] - sums[first]) / np.maximum(counts[last] - counts[first], 1)
    return Curve(list(curve.iterations), np.where(known & (window > 1), means, values).tolist())
