"""Snapshots: models and solver states in Caffe's HDF5 and binary formats. The only package that knows these files."""

from forcereg.snapshot.binary import check_size
from forcereg.snapshot.binary import write_model as write_binary_model
from forcereg.snapshot.binary import write_state as write_binary_state
from forcereg.snapshot.content import Blobs, ModelFile, StateFile, fitted
from forcereg.snapshot.hdf5 import check_names, write_model, write_state
from forcereg.snapshot.load import LoadReport, load_into, modern
from forcereg.snapshot.message import net_message
from forcereg.snapshot.names import model_path, pairs, prune, state_path
from forcereg.snapshot.read import read, read_model, read_state

__all__ = [
    "Blobs",
    "LoadReport",
    "ModelFile",
    "StateFile",
    "check_names",
    "check_size",
    "fitted",
    "load_into",
    "model_path",
    "modern",
    "net_message",
    "pairs",
    "prune",
    "read",
    "read_model",
    "read_state",
    "state_path",
    "write_binary_model",
    "write_binary_state",
    "write_model",
    "write_state",
]
