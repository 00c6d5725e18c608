"""Curves of runs from their logs: `forcereg plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from forcereg.errors import UsageError
from forcereg.report.curves import read_run
from forcereg.report.plot import CSV, draw, kind_of
from forcereg.report.series import series_csv
from forcereg.system.arguments import checked
from forcereg.system.events import Observer, Tell
from forcereg.system.files import write_bytes
from forcereg.system.paths import StrPath, listed


@checked
def plot(
    logs: StrPath | Sequence[StrPath],
    out: StrPath,
    *,
    observer: Observer | None = None,
) -> Path:
    """Draws loss, scores, learning rate and ranks of one or several runs over the iterations; the path of `out`.

    `logs`: what `forcereg train`, Caffe or NVIDIA's Caffe printed, or what --log-json wrote. `out` ends in .png, .svg
    or .pdf, .html for a page with the picture and a table, or .csv for all points, in rows of log, phase, name,
    iteration and value. `observer` is told, as notes, what was odd about the logs. Raises ForceregError for a file that
    is no such log, for another ending, and without matplotlib (the extra `plot`; .csv does without).

    >>> forcereg.plot(["train.log", "train.json"], "curves.csv").read_text().splitlines()[:2]
    ['log,phase,name,iteration,value', 'train.log,test,accuracy,0,...']
    """
    tell, out = Tell(observer), Path(out)
    paths = [Path(log) for log in listed(logs)]
    if not paths:
        raise UsageError("logs is empty; give one or several")
    kind = kind_of(out)
    stems = [path.stem for path in paths]
    # runs may have logs of one name in folders of their own
    names = [path.stem if stems.count(path.stem) == 1 else str(path) for path in paths]
    runs = [read_run(path, name) for path, name in zip(paths, names, strict=True)]
    for run in runs:
        for remark in run.remarks:
            tell.note(remark)
    write_bytes(out, series_csv(runs).encode() if kind == CSV else draw(runs, kind))
    return out
