"""Reading a snapshot of any kind; its content tells which it is, not its name."""

from __future__ import annotations

from pathlib import Path

from forcereg.snapshot import binary, container, hdf5
from forcereg.snapshot.content import ModelFile, StateFile, wrong_kind


def read(path: str | Path) -> ModelFile | StateFile:
    """What the file holds, HDF5 or binaryproto, written by Caffe or by forcereg.

    Raises ForceregError for a file that is damaged or something else.
    """
    path = Path(path)
    with container.opened(path) as raw:
        raw.seek(0)
        is_hdf5 = raw.read(len(hdf5.SIGNATURE)) == hdf5.SIGNATURE
        return hdf5.read(raw, path) if is_hdf5 else binary.read(raw, path)


def read_model(path: str | Path) -> ModelFile:
    """The model in the file. Raises ForceregError as `read`, and for a solver state."""
    file = read(path)
    if isinstance(file, StateFile):
        raise wrong_kind(file)
    return file


def read_state(path: str | Path) -> StateFile:
    """The solver state in the file. Raises ForceregError as `read`, and for a model."""
    file = read(path)
    if isinstance(file, ModelFile):
        raise wrong_kind(file)
    return file
