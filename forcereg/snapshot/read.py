"""Reading a snapshot of any kind; its content tells which it is, not its name."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from forcereg.snapshot import binary, container, npz, tensors
from forcereg.snapshot.content import ModelFile, StateFile, wrong_kind


def read(path: str | Path) -> ModelFile | StateFile:
    """What the file holds: HDF5 or binaryproto, written by Caffe or by forcereg; a model's may be safetensors or npz.

    Raises ForceregError for a file that is damaged or something else.
    """
    path = Path(path)
    file: ModelFile | StateFile
    with container.opened(path) as raw:
        form = container.form(raw)
        if form == "hdf5":
            from forcereg.snapshot import hdf5

            file = hdf5.read(raw, path)
        elif form == "binary":
            file = binary.read(raw, path)
        else:
            file = (npz if form == "npz" else tensors).read(raw, path)
    # Caffe's counts are int32; damaged ones would make a run begin anywhere
    if isinstance(file, StateFile) and not all(0 <= n < 1 << 31 for n in (file.iteration, file.current_step)):
        raise container.damaged(path, f"iteration {file.iteration}, step {file.current_step}")
    return file


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


def model_of(state: StateFile, places: Iterable[Path]) -> ModelFile:
    """The model that goes with the state, of these files the first that does; else the first. Raises as `read_model`.

    Another run may have left a file of the same name in the first place.
    """
    # one by one: the first nearly always is the right one, and each may be gigabytes
    models = map(read_model, places)
    first = next(models)
    return next((model for model in chain([first], models) if state.goes_with(model)), first)
