"""The recorded Caffe cases as pytest parameters: bundled in tests/golden, and under $FORCEREG_GOLDEN.

@pytest.mark.parametrize("case", golden_cases("layers"))
def test_forward(case: Case) -> None: ...
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

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


def golden_cases(group: str, select: Callable[[Case], bool] = lambda case: True) -> list[Any]:
    """All cases of a group (layers, force, solver, ...) that `select` accepts, as `pytest.param`s.

    Bundled cases have their id as parameter id, single files under $FORCEREG_GOLDEN have `single-<id>`.
    """
    params = [pytest.param(case, id=case.id) for case in _bundled(group) if select(case)]
    params += [pytest.param(case, id=f"single-{case.id}") for case in _singles(group) if select(case)]
    assert params, f"no golden case of {group} selected"
    return params


def _bundled(group: str) -> list[Case]:
    path = BUNDLED / f"{group}.h5"
    with h5py.File(path) as file:
        return [Case(name, path, name, dict(file[name].attrs)) for name in file]


def _singles(group: str) -> list[Case]:
    named = os.environ.get("FORCEREG_GOLDEN")
    if not named:
        return []
    if not Path(named).is_dir():
        raise pytest.UsageError(f"FORCEREG_GOLDEN={named}: no such folder")
    files = sorted(Path(named, group).glob("*.h5")) + sorted(Path(named, group).glob("*/case.h5"))
    return [_single(path) for path in files]


def _single(path: Path) -> Case:
    with h5py.File(path) as file:
        name = path.parent.name if path.name == "case.h5" else path.stem
        return Case(name, path, attrs=dict(file.attrs))
