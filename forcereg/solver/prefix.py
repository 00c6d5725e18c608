"""Whether snapshots can be written where a solver wants them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forcereg import snapshot
from forcereg.errors import ForceregError, printable
from forcereg.schema import SolverParameter
from forcereg.system.files import check_writable


def probe_prefix(prefix: Path, p: Any, name: str, start: int = 0) -> None:
    """Raises ForceregError if a run from iteration `start` on can't write its snapshots under `prefix`.

    `p` is the SolverParameter, `name` its file. Looked at are the longest names, and what lies in the place of others.
    """
    # the largest number makes the longest name, which a file system may refuse
    last = max(start, p.max_iter)
    planned = {*snapshot_files(prefix, last, p)}
    for path in [*planned, *_in_the_way(prefix, p, start)]:
        try:
            check_writable(path)
        except ForceregError as error:
            cause = error.__cause__
            said = str(error).partition(f"{printable(str(path))}: ")[2].rpartition(";")[0]
            reason = cause.strerror if isinstance(cause, OSError) else said
            where = "" if path in planned else f"{path.name}: "
            absent = said.startswith("there is no folder ") and not os.path.isdir(prefix.parent)
            fix = f"make the folder {prefix.parent} or " if absent else ""
            raise ForceregError(
                f"{name}: cannot write snapshots to '{prefix}': {where}{reason}; {fix}correct snapshot_prefix"
            ) from None


def snapshot_files(prefix: Path, which: int | str, p: Any) -> list[Path]:
    """The files of a snapshot: the model, its state, and with `ema_decay` the averages. `which`: see snapshot.names."""
    names = [snapshot.model_path, snapshot.state_path, *([snapshot.average_path] if p.ema_decay else [])]
    return [name(prefix, which, writes_binary(p)) for name in names]


def _in_the_way(prefix: Path, p: Any, start: int) -> Iterator[Path]:
    """What lies where a snapshot will be written and isn't a file."""
    ending = "" if writes_binary(p) else r"\.h5"
    average = "(?:_ema)?" if p.ema_decay else ""
    pattern = re.compile(rf"{re.escape(prefix.name)}_iter_(0|[1-9][0-9]*)({average}\.caffemodel|\.solverstate){ending}")
    with contextlib.suppress(OSError), os.scandir(prefix.parent) as entries:
        for entry in entries:
            match = pattern.fullmatch(entry.name)
            if match is None or not start < int(match[1]) <= p.max_iter or entry.is_file():
                continue
            if int(match[1]) == p.max_iter or (p.snapshot > 0 and int(match[1]) % p.snapshot == 0):
                yield Path(entry.path)


def writes_binary(param: Any) -> bool:
    """Whether a SolverParameter asks for binary snapshots, Caffe's default, and not for HDF5."""
    return param.snapshot_format == SolverParameter.SnapshotFormat.Value("BINARYPROTO")
