"""What a report is about: snapshots, logs and results of studies, named as files or by their folder."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from forcereg.errors import ForceregError
from forcereg.net.made import stem
from forcereg.study.filters.bank import ITERATION
from forcereg.system.files import open_file, read_file
from forcereg.system.paths import StrPath

SNAPSHOT = re.compile(r".+\.(caffemodel|solverstate)(\.h5)?|.+\.(h5|safetensors|npz)", re.DOTALL)
LOG = re.compile(r".+\.(log|jsonl|json)(\.gz)?", re.DOTALL)
MODEL = re.compile(r"(.+)\.caffemodel(\.h5)?", re.DOTALL)
MOST = 40
"""Files that a folder may bring in."""
PIECE = 1 << 20


@dataclass(frozen=True)
class Sources:
    """The files, each kind in the order that they were named."""

    snapshots: tuple[Path, ...]
    logs: tuple[Path, ...]
    studies: tuple[Path, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return (*self.studies, *self.logs, *self.snapshots)


def sources(named: Sequence[StrPath]) -> Sources:
    """What files and folders are named. Raises ForceregError for a folder without any, and for what isn't there."""
    paths = dict.fromkeys(file for one in named for file in _files(Path(one)))
    kinds: dict[str, list[Path]] = {"snapshot": [], "study": [], "log": []}
    for path in paths:
        kinds[kind(path)].append(path)
    return Sources(tuple(kinds["snapshot"]), tuple(kinds["log"]), tuple(kinds["study"]))


def kind(path: Path) -> str:
    """By its name: "snapshot", "study" (.csv), and "log" for any other."""
    return "snapshot" if SNAPSHOT.fullmatch(path.name) else "study" if path.suffix == ".csv" else "log"


def _files(path: Path) -> list[Path]:
    """The file, or what there is in a folder: results, logs, and of each run's snapshots the last."""
    if not os.path.lexists(path):
        raise ForceregError(f"{path}: no such file or folder; name a snapshot, a log, a results.csv or a run's folder")
    if not path.is_dir():
        return [path]
    try:
        inside = [path / name for name in sorted(os.listdir(path))]
    except OSError as error:
        raise ForceregError(f"{path}: cannot be read ({error.strerror}); correct the path") from None
    found = [one for one in inside if one.suffix == ".csv"]
    found += [one for one in inside if LOG.fullmatch(one.name) and _has_events(one)]
    found += newest(one for one in inside if MODEL.fullmatch(one.name))
    if not found:
        raise ForceregError(f"{path}: holds no .caffemodel, no log and no results.csv; name the folder that does")
    if len(found) > MOST:
        raise ForceregError(f"{path}: holds {len(found):,} snapshots, logs and results; name those to report on")
    return found


def _has_events(path: Path) -> bool:
    """Whether a file is a log; side files in JSON aren't."""
    if ".json" not in path.name:
        return True
    try:
        with open_file(path) as file:
            return file.read(9) == b'{"event":'
    except OSError:
        return False


def newest(models: Iterable[Path]) -> list[Path]:
    """The models without those that are followed by a later one of their run."""
    last: dict[Path, tuple[int, Path]] = {}
    for path in models:
        match = ITERATION.fullmatch(stem(path))
        run, iteration = (path.with_name(match[1]), int(match[2])) if match else (path, 0)
        last[run] = max(last.get(run, (-1, path)), (iteration, path))
    return [path for _, path in last.values()]


def before(model: Path, decomposed: str | None, named: Sequence[Path] = ()) -> Path | None:
    """What a net was before: the one that it was decomposed from, else its run's first snapshot; None if not here.

    `decomposed`: the name of the first, which lies beside the net or is among those `named`.
    """
    if decomposed is not None:
        beside = model.with_name(Path(decomposed).name)
        there = (path for path in (beside, *named) if path.name == beside.name and path.is_file() and path != model)
        return next(there, None)
    match = ITERATION.fullmatch(stem(model))
    if match is None:
        return None
    ending = model.name.removeprefix(stem(model))
    earlier = re.compile(re.escape(match[1]) + r"_iter_(\d{1,10})" + re.escape(ending), re.DOTALL)
    numbers = [int(own[1]) for name in os.listdir(model.parent) if (own := earlier.fullmatch(name))]
    first = min(numbers)
    return model.with_name(f"{match[1]}_iter_{first}{ending}") if first < int(match[2]) else None


def where(path: Path) -> str:
    """A file's name for a sentence."""
    return f"{path.parent.name}/{path.name}" if path.parent.name else path.name


def digest(path: Path) -> tuple[int, str]:
    """A file's bytes and its SHA-256. Raises ForceregError."""
    found, size = hashlib.sha256(), 0
    try:
        with open_file(path) as file:
            while data := file.read(PIECE):
                found.update(data)
                size += len(data)
    except OSError as error:
        raise ForceregError(f"{path}: cannot be read ({error.strerror}); correct the path") from error
    return size, found.hexdigest()


def picture_beside(path: Path, names: Sequence[str], most: int = 64 << 20) -> tuple[bytes, str] | None:
    """The first picture of these names in a file's folder, and its kind; None if there is none."""
    for name in names:
        try:
            return read_file(path.with_name(name), most), Path(name).suffix[1:]
        except OSError:
            continue
    return None
