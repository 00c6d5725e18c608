"""A model or solver state in another format: `forcereg convert`."""

from __future__ import annotations

import os
from typing import Any

from forcereg.net import convert as engine
from forcereg.net.convert import Converted
from forcereg.net.load import net_file
from forcereg.schema.dialects import check_dialect
from forcereg.system.arguments import checked
from forcereg.system.paths import StrPath


@checked
def convert(
    source: StrPath,
    target: StrPath,
    *,
    model: StrPath | Any | None = None,
    dialect: str | None = None,
) -> Converted:
    """Writes the model or solver state `source` as `target`: binary (.caffemodel, .solverstate) or HDF5 (also .h5).

    A model may be a .safetensors or .npz, too. All of it is kept, weights and history bit for bit. `model`: the net,
    a path, prototxt text or NetParameter, of a source that holds none, for the layers' settings in a binary file.
    `dialect`: the fork that wrote a binary model or net whose field numbers mean something else in other forks: "ssl"
    (structured sparsity), "force" or "skimcaffe"; such a file is refused without.
    Models of old formats (V0, V1, half precision) are read and come out in today's, as float32. The result has
    `.kind`, "model" or "solver state", `.format`, "binary", "hdf5", "safetensors" or "npz", the numbers of `.blobs`
    and `.values`, and `.remarks`. Raises UsageError for a name of no kind, for the same file and for a model's name
    for a state; ForceregError for what can't be read, or not be written without a loss.

    >>> forcereg.convert("net_iter_20.caffemodel.h5", "net.caffemodel")
    Converted(kind='model', format='binary', blobs=6, values=2019, remarks=())
    """
    check_dialect(dialect)
    file = None if model is None else net_file(model, dialect)
    return engine.convert(os.fspath(source), os.fspath(target), file, dialect)
