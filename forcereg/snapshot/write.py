"""Writing a snapshot of either kind in either format, in one step and with a checksum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from forcereg.snapshot import container, flat, npz, tensors
from forcereg.snapshot.binary import model_pieces, state_pieces
from forcereg.snapshot.content import Blobs, ModelFile, StateFile
from forcereg.system.files import replace_file

ARRAYS = {"safetensors": tensors.write, "npz": npz.write}
"""Formats of models that are named arrays and texts -> what writes them."""


def write_model(
    path: str | Path,
    layers: Blobs,
    diffs: Blobs | None = None,
    attrs: Mapping[str, str] | None = None,
    net: Any = None,
) -> None:
    """Write a model that Caffe can read; `layers` names all layers of the net.

    `net`, a NetParameter of the layers without blobs, makes it binary: then a shared blob belongs under every layer
    that uses it. Otherwise it is HDF5: then it belongs under its owner alone, and a `/` in a name makes nested groups.
    Raises ForceregError if the format cannot hold a name or that much, or the file cannot be written (the old stays).
    """
    model = ModelFile(Path(path), layers, attrs or {}, diffs or {})
    if net is None:
        from forcereg.snapshot.hdf5 import model_image

        container.write(path, [model_image(model)])
    else:
        container.write(path, model_pieces(model, net))


def write_arrays(path: str | Path, form: str, layers: Blobs, attrs: Mapping[str, str] | None = None) -> None:
    """Write a model as a file of named arrays, of `form` (see ARRAYS); a shared blob belongs under its owner alone.

    Raises ForceregError if the format cannot hold a name, or the file cannot be written (the old stays).
    """
    arrays, texts = flat.parts(ModelFile(Path(path), layers, attrs or {}))
    with replace_file(path) as temp:
        ARRAYS[form](temp, arrays, texts)


def write_state(
    path: str | Path,
    iteration: int,
    current_step: int,
    learned_net: str,
    history: Sequence[np.ndarray],
    extra: Mapping[str, Any] | None = None,
    binary: bool = False,
) -> None:
    """Write a solver state that Caffe can read, HDF5 or binary.

    `extra` is a nested dict of numbers, text, arrays and CPU or GPU tensors. Raises ForceregError if the file
    cannot be written (the old one stays) or hold a text, TypeError for anything else in `extra`.
    """
    state = StateFile(Path(path), iteration, current_step, learned_net, history, extra)
    if binary:
        container.write(path, state_pieces(state))
    else:
        from forcereg.snapshot.hdf5 import state_image

        container.write(path, [state_image(state)])
