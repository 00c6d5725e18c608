"""Snapshots: models and solver states in Caffe's HDF5 and binary formats, models as safetensors and npz.

The only package that knows these files.

What needs h5py imports it when it is called: training begins without.
"""

from forcereg.snapshot.binary import check_size
from forcereg.snapshot.container import Damaged, damaged, is_binary
from forcereg.snapshot.content import (
    INPUT_SHAPES,
    NET,
    WEIGHTS,
    Blobs,
    ModelFile,
    StateFile,
    check_names,
    fingerprint,
    fitted,
)
from forcereg.snapshot.load import Copies, LoadReport, joined, load_into, matched, modern, remark, take_over
from forcereg.snapshot.message import net_message
from forcereg.snapshot.names import BEST, average_path, model_path, pairs, prune, state_of, state_path
from forcereg.snapshot.read import model_of, read, read_model, read_state
from forcereg.snapshot.suit import suited, suited_to
from forcereg.snapshot.write import ARRAYS, write_arrays, write_model, write_state

__all__ = [
    "ARRAYS",
    "BEST",
    "INPUT_SHAPES",
    "NET",
    "WEIGHTS",
    "Blobs",
    "Copies",
    "Damaged",
    "LoadReport",
    "ModelFile",
    "StateFile",
    "average_path",
    "check_names",
    "check_size",
    "damaged",
    "fingerprint",
    "fitted",
    "is_binary",
    "joined",
    "load_into",
    "matched",
    "model_of",
    "model_path",
    "modern",
    "net_message",
    "pairs",
    "prune",
    "read",
    "read_model",
    "read_state",
    "remark",
    "state_of",
    "state_path",
    "suited",
    "suited_to",
    "take_over",
    "write_arrays",
    "write_model",
    "write_state",
]
