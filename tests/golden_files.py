"""The recorded Caffe cases as files: bundled in tests/golden, or single ones in a folder. Needs no pytest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

BUNDLED = Path(__file__).resolve().parent / "golden"


@dataclass(frozen=True)
class Case:
    """One recorded case: the HDF5 group `inside` of `path` ("/" when the whole file is the case)."""

    id: str
    path: Path
    inside: str = "/"
    attrs: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @contextmanager
    def open(self) -> Iterator[h5py.Group]:
        """The case's HDF5 group, open for reading."""
        with h5py.File(self.path) as file:
            yield file[self.inside]

    def load(self, path: str) -> np.ndarray:
        """The dataset at `path` inside the case."""
        with self.open() as group:
            return np.asarray(group[path][()])

    def tree(self, path: str) -> dict[str, np.ndarray]:
        """All datasets below `path`, keyed by their path relative to it; {} if there is no such group."""
        found: dict[str, np.ndarray] = {}

        def keep(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                found[name] = item[()]

        with self.open() as group:
            if path in group:
                group[path].visititems(keep)
        return found

    def json(self, attr: str) -> Any:
        """The attribute `attr`, decoded from JSON."""
        return json.loads(self.attrs[attr])

    def file(self, name: str) -> bytes:
        """The content of a file that Caffe wrote beside the case (snapshots only)."""
        if self.inside == "/":
            return (self.path.parent / name).read_bytes()
        return self.load(f"files/{name}").tobytes()


def bundled(group: str) -> list[Case]:
    """The cases of a group (layers, force, solver, ...) in tests/golden."""
    path = BUNDLED / f"{group}.h5"
    with h5py.File(path) as file:
        return [Case(name, path, name, dict(file[name].attrs)) for name in file]


def singles(group: str, folder: Path) -> list[Case]:
    """The cases of a group that are files of their own below `folder`."""
    files = sorted(Path(folder, group).glob("*.h5")) + sorted(Path(folder, group).glob("*/case.h5"))
    return [_single(path) for path in files]


def _single(path: Path) -> Case:
    with h5py.File(path) as file:
        name = path.parent.name if path.name == "case.h5" else path.stem
        return Case(name, path, attrs=dict(file.attrs))
