"""Scores of nets: what they are, what they depend on, and the file that keeps them so that none is computed twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forcereg.lowrank.decompose import Prepared
from forcereg.lowrank.ranks import Choice, Whole
from forcereg.lowrank.rewrite import Weights
from forcereg.schema.spec import NetSpec
from forcereg.system import sidefiles
from forcereg.system.files import write_text
from forcereg.system.paths import resolve

SOURCES = ("data_param", "image_data_param", "hdf5_data_param", "window_data_param")
DATABASE = (".mdb", ".ldb", ".sst")  # the files of a database folder that hold its records


@dataclass(frozen=True)
class Evaluation:
    """A net's scores on the test data: accuracy (None for a net without one) and total loss."""

    accuracy: float | None
    loss: float

    def check(self) -> None:
        """Raises ValueError for an accuracy that no net has."""
        check_share(self.accuracy)


def check_share(accuracy: float | None) -> None:
    """Raises ValueError for an accuracy below 0 or above 1."""
    if accuracy is not None and (accuracy < 0 or accuracy > 1):
        raise ValueError(f"an accuracy of {accuracy:g}")


class Cache:
    """Evaluations by key, in a JSON file that several processes may share; None: in memory only.

    What isn't of that form there counts for nothing, and is gone when something is put.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._known = self._read()

    def get(self, key: str) -> Evaluation | None:
        """What was put under the key."""
        return self._known.get(key)

    def put(self, key: str, value: Evaluation) -> None:
        """Keep a value. Raises ForceregError if the file can't be written."""
        # read anew: another process may have put some meanwhile
        self._known = {**self._read(), **self._known, key: value}
        if self.path is not None:
            plain = {key: asdict(value) for key, value in self._known.items()}
            write_text(self.path, json.dumps(plain, indent=1) + "\n")

    def _read(self) -> dict[str, Evaluation]:
        found = sidefiles.known(self.path, dict[str, Any]) or {}
        return {key: value for key, one in found.items() if (value := _evaluation(one)) is not None}


def _evaluation(value: Any) -> Evaluation | None:
    try:
        made: Evaluation = sidefiles.of_form(value, Evaluation)
    except ValueError:
        return None
    return made


# -- what a score depends on


def origin(prepared: Prepared, choices: Mapping[str, Choice]) -> str:
    """What a decomposition was made of, as a key: the last bits of its weights differ with the number of threads."""
    ranks = []
    for one in prepared.candidates:
        choice = choices.get(one.name, Whole(""))
        if not isinstance(choice, Whole):
            ranks.append([one.name, one.method, choice, f"{one.error(choice):.8f}"])  # the error tells seed and moments
    return digest(ranks, prepared.weights)


def digest(what: Any, weights: Weights | None = None) -> str:
    """A name for plain data and weights, equal for equal content."""
    found = hashlib.sha256(json.dumps(what).encode())
    # sorted: files have their layers in other orders than nets
    for layer, blobs in sorted((weights or {}).items()):
        for index, values in sorted(blobs.items()):
            # the same bytes in another layer or shape are other weights
            found.update(f"{layer}/{index} {values.shape}".encode())
            found.update(np.ascontiguousarray(values, np.float32).data)
    return found.hexdigest()


def data_files(spec: NetSpec) -> Iterable[Path]:
    """The files and folders that a net's data layers name."""
    for layer in spec.layers:
        names = [getattr(layer.message, field).source for field in SOURCES if layer.message.HasField(field)]
        names.append(layer.message.transform_param.mean_file)
        yield from (resolve(spec.root, name) for name in names if name)


def stamp(path: Path) -> list[Any]:
    """Changes when the file, or a database's folder, is written again."""
    files: Sequence[Path] = [path]
    if path.is_dir():
        # the lock changes when somebody reads
        files = sorted(one for one in path.iterdir() if one.suffix in DATABASE and one.name != "lock.mdb")
    # size and time, not content: data sets are large
    stats = [os.stat(one) for one in files if one.exists()]
    return [str(path), [(one.st_size, one.st_mtime_ns) for one in stats]]
