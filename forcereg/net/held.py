"""Nets in memory as what is read of a snapshot: what trained one can decompose it without a file between."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from forcereg.net.module import Net
from forcereg.schema import NetParameter
from forcereg.schema.text import to_text
from forcereg.snapshot import INPUT_SHAPES, NET, ModelFile, is_binary
from forcereg.system.arguments import wrong

EXPECTED = (
    "the path of a .caffemodel or .solverstate, also as .h5, of a .safetensors or .npz, a Net, a Solver, or what "
    "decompose or the like made"
)


def is_path(snapshot: Any) -> bool:
    """Whether a snapshot is a file, not a net in memory."""
    return isinstance(snapshot, str | os.PathLike) and isinstance(os.fspath(snapshot), str)


def in_memory(path: Path) -> bool:
    """Whether a model's `path` is no file's: it was never read."""
    return path.name.startswith("<") and not path.exists()


def in_binary(path: Path) -> bool:
    """Whether what is made of a model is written in the binary format: as it was, and as HDF5 if it was never read."""
    return not in_memory(path) and is_binary(path)


def held(found: Any, name: str = "snapshot") -> tuple[ModelFile, Path | None]:
    """A net in memory as a model file, and the root of the net's relative paths, None for where Python runs.

    `found`: a Net, what has one as its `net` (a Solver), a net made of a snapshot, with `net` and `weights`, or a
    ModelFile. Values are copied. Raises UsageError, which calls it `name`, for anything else.
    """
    if isinstance(found, ModelFile):
        return found, None
    net = found if isinstance(found, Net) else getattr(found, "net", None)
    path = Path(f"<{type(found).__name__}>")
    if isinstance(net, Net):
        shapes = json.dumps({name: list(net.shapes[name]) for name in net.inputs})
        return ModelFile(path, copied(net), {NET: net.spec.text, INPUT_SHAPES: shapes}), net.spec.root
    weights = getattr(found, "weights", None)
    if isinstance(net, NetParameter) and isinstance(weights, Mapping):
        return ModelFile(path, {name: dict(blobs) for name, blobs in weights.items()}, {NET: to_text(net)}), None
    raise wrong(name, found, EXPECTED)


def copied(net: Net) -> dict[str, dict[int, np.ndarray]]:
    """Layer -> position -> array, as snapshots have them: what is borrowed only under its owner."""
    # a training that goes on changes the blobs in place
    return {
        name: {at: array(blob) for at, blob in enumerate(blobs) if f"{name}/{at}" not in net.shared}
        for name, blobs in net.params.items()
    }


def array(blob: Tensor) -> np.ndarray:
    """Its values, in Caffe's order of axes whatever the layout."""
    return np.array(blob.detach().cpu().numpy(), order="C")
