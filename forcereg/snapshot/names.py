"""Where snapshots lie and which of them stay."""

from __future__ import annotations

import os
import re
from pathlib import Path

from forcereg.errors import ForceregError


def model_path(prefix: str | Path, iteration: int) -> Path:
    """<prefix>_iter_<N>.caffemodel.h5"""
    return Path(f"{os.fspath(prefix)}_iter_{iteration}.caffemodel.h5")


def state_path(prefix: str | Path, iteration: int) -> Path:
    """<prefix>_iter_<N>.solverstate.h5"""
    return Path(f"{os.fspath(prefix)}_iter_{iteration}.solverstate.h5")


def prune(prefix: str | Path, keep: int, current: int | None = None) -> list[Path]:
    """Delete <prefix>_iter_N.{caffemodel,solverstate}.h5 but for the `keep` newest N; the deleted paths.

    A model or state without its other half is left alone and not counted, and so is what lies beyond
    iteration `current`, from another run. Raises ForceregError if keep < 1 or a file cannot be deleted.
    """
    if keep < 1:
        raise ForceregError(f"cannot keep {keep} snapshots: at least 1 has to stay")
    stem = Path(f"{os.fspath(prefix)}_iter_")
    state_name = re.compile(re.escape(stem.name) + r"(0|[1-9][0-9]*)\.solverstate\.h5")
    names = os.listdir(stem.parent) if stem.parent.is_dir() else []
    found = (state_name.fullmatch(name) for name in names)
    iterations = sorted(int(match[1]) for match in found if match)
    pairs = [n for n in iterations if model_path(prefix, n).is_file() and (current is None or n <= current)]
    deleted = []
    for iteration in pairs[:-keep]:
        # the state first: whenever this stops, no state is left without its model
        for path in (state_path(prefix, iteration), model_path(prefix, iteration)):
            try:
                path.unlink(missing_ok=True)
            except OSError as exc:
                raise ForceregError(f"cannot delete the old snapshot {path}: {exc.strerror}") from exc
            deleted.append(path)
    return deleted
