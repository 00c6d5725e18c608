"""Snapshots: models and solver states in Caffe's HDF5 layout. The only package that knows these files."""

from forcereg.snapshot.content import (
    Blobs,
    ModelFile,
    StateFile,
    check_names,
    read_model,
    read_state,
    write_model,
    write_state,
)
from forcereg.snapshot.load import LoadReport, load_into
from forcereg.snapshot.names import model_path, prune, state_path

__all__ = [
    "Blobs",
    "LoadReport",
    "ModelFile",
    "StateFile",
    "check_names",
    "load_into",
    "model_path",
    "prune",
    "read_model",
    "read_state",
    "state_path",
    "write_model",
    "write_state",
]
