"""Curves of runs from their logs, and a sweep's ranks from its results: `forcereg plot`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

from forcereg.errors import ForceregError, UsageError
from forcereg.report import picked
from forcereg.report.curves import read_run
from forcereg.report.plot import CSV, PICTURES, Look, Range, draw, kind_of
from forcereg.report.points import LARGEST, Run
from forcereg.report.rank_shares import is_results, picture, read_shares
from forcereg.report.series import series_csv
from forcereg.system.arguments import checked, wrong
from forcereg.system.events import Observer, Tell
from forcereg.system.files import write_bytes
from forcereg.system.paths import StrPath, listed


@checked
def plot(
    logs: StrPath | Sequence[StrPath],
    out: StrPath,
    *,
    labels: str | Sequence[str] | None = None,
    only: str | Sequence[str] = (),
    smooth: int = 1,
    line: Any = (),
    x_range: Any = None,
    y_range: Any = None,
    observer: Observer | None = None,
) -> Path:
    """Draws loss, scores, learning rate and ranks of one or several runs over the iterations; the path of `out`.

    `logs`: what `forcereg train`, Caffe or NVIDIA's Caffe printed, or what --log-json wrote. `out` ends in .png, .svg
    or .pdf, .html for a page with the picture and a table, or .csv for all points, in rows of log, phase, name,
    iteration and value. `labels`: the runs' names, a list or "a,b"; None: those of their files. `only`: these curves,
    names or patterns, a list or "a,b"; "accuracy" is "test accuracy" too. `smooth`: each value becomes the mean of so
    many around it. `line`: levels to draw as horizontal lines, numbers or {"whole net": 0.991}; `x_range`, `y_range`:
    where an axis begins and ends, as in (0.9, None) or "0.9,". With `line` or `y_range` there may be one panel.

    A sweep's results.csv, which is known by its columns, is drawn as Wen et al. (ICCV 2017) show theirs: of each layer
    the share of its full rank that it needs against the net's test error, a point a setting (the mean over its seeds).

    `observer` is told, as notes, what was odd about the logs. Raises UsageError for what doesn't go together,
    ForceregError for a file that is none of these, for another ending, and without matplotlib (the extra `plot`; .csv
    does without).

    >>> forcereg.plot(["train.log", "train.json"], "curves.csv").read_text().splitlines()[:2]
    ['log,phase,name,iteration,value', 'train.log,test,accuracy,0,...']
    >>> forcereg.plot("train.log", "curves.svg", only="accuracy", line={"goal": 0.9}, y_range=(0, 1)).name
    'curves.svg'
    """
    tell, out = Tell(observer), Path(out)
    paths = [Path(log) for log in listed(logs)]
    if not paths:
        raise UsageError("logs is empty; give one or several")
    kind, chosen = kind_of(out), names_of("--only", only)
    look = Look(levels(line), range_of("--x-range", x_range), range_of("--y-range", y_range))
    if any(map(is_results, paths)):
        if len(paths) > 1 or labels is not None or chosen or smooth > 1 or look.levels:
            raise UsageError("a sweep's results are drawn alone, without --labels, --only, --smooth and --line")
        if kind not in PICTURES:
            raise ForceregError(f"{out}: a sweep's results are drawn as {', '.join(f'.{one}' for one in PICTURES)}")
        write_bytes(out, picture(read_shares(paths[0]), kind, look))
        return out
    runs = read_runs(paths, labels, tell)
    runs = picked.smooth(picked.only(runs, chosen) if chosen else runs, smooth)
    write_bytes(out, series_csv(runs).encode() if kind == CSV else draw(runs, kind, look))
    return out


def read_runs(paths: Sequence[Path], labels: str | Sequence[str] | None, tell: Tell, silent: bool = False) -> list[Run]:
    """The runs, what is odd about their logs told; `silent` as for `read_run`.

    Raises ForceregError, UsageError for labels of another number.
    """
    stems = [path.stem for path in paths]
    # runs may have logs of one name in folders of their own
    names = [path.stem if stems.count(path.stem) == 1 else str(path) for path in paths]
    if labels is not None:
        names = names_of("--labels", labels)
        if len(names) != len(paths) or len(set(names)) < len(names):
            raise UsageError(
                f"--labels is '{','.join(names)}'; expected {len(paths)} different names, one for each log"
            )
    runs = [read_run(path, name, silent) for path, name in zip(paths, names, strict=True)]
    for run in runs:
        for remark in run.remarks:
            tell.note(remark)
    return runs


def names_of(option: str, given: str | Sequence[str]) -> list[str]:
    """Names in a list, or with commas. Raises UsageError for an empty one."""
    found = [name.strip() for name in (given.split(",") if isinstance(given, str) and given else given)]
    if not all(found):
        raise UsageError(f"{option} is '{given}'; expected names with commas, none of them empty")
    return found


def levels(line: Any) -> dict[str, float]:
    """Names and numbers of a mapping, of numbers, or of texts "NAME=NUMBER" or "NUMBER". Raises UsageError."""
    if isinstance(line, Mapping):
        return {str(name): finite("line", value) for name, value in line.items()}
    if not isinstance(line, str | SupportsFloat | Iterable):
        raise wrong("line", line, "a number, several in a list, or names and numbers")
    found = {}
    for one in [line] if isinstance(line, str | SupportsFloat) else line:
        # from the right: a name may have an = in it
        name, _, number = str(one).rpartition("=")
        found[name or number] = finite("--line", number)
    return found


def range_of(option: str, given: Any) -> Range:
    """Two numbers or None, or text "A,B" with either left out. Raises UsageError."""
    if given is None:
        return None, None
    parts = [part.strip() or None for part in given.split(",")] if isinstance(given, str) else given
    if not isinstance(parts, Sequence) or len(parts) != 2:
        raise wrong(option, given, "two numbers, either may be left out, as in 0.9,1 or 0.9,")
    low, high = (None if part is None else finite(option, part) for part in parts)
    if low is not None and high is not None and low >= high:
        raise wrong(option, given, "the smaller number first")
    return low, high


def finite(option: str, value: Any) -> float:
    """A number, also as text. Raises UsageError."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    # as what is drawn: matplotlib's ticks can't go on for ever
    if not abs(number) <= LARGEST:
        raise wrong(option, value, f"a number, {LARGEST:g} at most")
    return number
