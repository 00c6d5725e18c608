"""Where snapshots lie and which of them stay."""

from __future__ import annotations

import os
import re
from pathlib import Path

from forcereg.errors import ForceregError

BEST = "best"
"""What stands in a name in place of the iteration, of the best net of a run."""


def model_path(prefix: str | Path, which: int | str, binary: bool = False) -> Path:
    """<prefix>_iter_<N>.caffemodel.h5 or, of `BEST`, <prefix>_best.caffemodel.h5; without .h5 if it is binary"""
    return Path(f"{os.fspath(prefix)}_{_mark(which)}.caffemodel{_end(binary)}")


def state_path(prefix: str | Path, which: int | str, binary: bool = False) -> Path:
    """The same of the solver state: <prefix>_iter_<N>.solverstate.h5"""
    return Path(f"{os.fspath(prefix)}_{_mark(which)}.solverstate{_end(binary)}")


def average_path(prefix: str | Path, which: int | str, binary: bool = False) -> Path:
    """The same of the model of averaged weights: <prefix>_iter_<N>_ema.caffemodel.h5"""
    return Path(f"{os.fspath(prefix)}_{_mark(which)}_ema.caffemodel{_end(binary)}")


def state_of(model: Path) -> Path:
    """The state's path beside a model of one of these names."""
    start, _, end = model.name.rpartition("caffemodel")
    return model.with_name(f"{start}solverstate{end}")


def _mark(which: int | str) -> str:
    return which if isinstance(which, str) else f"iter_{which}"


def _end(binary: bool) -> str:
    return "" if binary else ".h5"


def pairs(prefix: str | Path, binary: bool = False) -> list[int]:
    """The iterations of which model and state are there in one format, in ascending order."""
    stem = Path(f"{os.fspath(prefix)}_iter_")
    state_name = re.compile(re.escape(stem.name) + r"(0|[1-9][0-9]*)\.solverstate" + re.escape(_end(binary)))
    # listed and not globbed: a prefix may hold brackets and stars
    names = os.listdir(stem.parent) if os.path.isdir(stem.parent) else []
    found = (state_name.fullmatch(name) for name in names)
    iterations = sorted(int(match[1]) for match in found if match)
    return [n for n in iterations if model_path(prefix, n, binary).is_file()]


def prune(prefix: str | Path, keep: int, current: int | None = None, binary: bool = False) -> list[Path]:
    """Delete the models, averages and states <prefix>_iter_N of one format but for the `keep` newest N.

    Returns the deleted paths.

    A model or state without its other half is left alone and not counted, and so is what lies beyond
    iteration `current`, from another run. Raises ForceregError if keep < 1 or a file cannot be deleted.
    """
    if keep < 1:
        raise ForceregError(f"cannot keep {keep} snapshots: at least 1 has to stay")
    deleted = []
    for iteration in [n for n in pairs(prefix, binary) if current is None or n <= current][:-keep]:
        # the state first: whenever this stops, no state is left without its model
        average = average_path(prefix, iteration, binary)
        beside = [average] if average.exists() else []
        for path in (state_path(prefix, iteration, binary), model_path(prefix, iteration, binary), *beside):
            try:
                path.unlink(missing_ok=True)
            except OSError as exc:
                raise ForceregError(f"cannot delete the old snapshot {path}: {exc.strerror}") from exc
            deleted.append(path)
    return deleted
