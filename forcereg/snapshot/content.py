"""What a model and a solver state hold, whichever kind of file they are in."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from forcereg.errors import ForceregError
from forcereg.system.sidefiles import parse_json

Blobs: TypeAlias = Mapping[str, Mapping[int, np.ndarray]]
"""Layer name -> position of the blob in its layer (0 = weights, 1 = bias, ...) -> values in Caffe's dims."""


@dataclass(frozen=True)
class ModelFile:
    """A model's contents; `attrs`: the text attributes (`forcereg_net`, ...); `diffs`: empty if not saved.

    `legacy`: an old file whose blobs all have four axes, the leading ones 1 where the layer has fewer.
    `transposed`: InnerProduct layers whose weights are (inputs, outputs), as far as a binary file tells.
    `remarks`: what has been changed since it was read (see `suit`).
    """

    path: Path
    layers: Blobs
    attrs: Mapping[str, str]
    diffs: Blobs = field(default_factory=dict)
    legacy: bool = False
    transposed: frozenset[str] = frozenset()
    remarks: tuple[str, ...] = ()

    @property
    def input_shapes(self) -> dict[str, list[int]] | None:
        """Blob -> shape of what the net was fed, as far as the file tells; None for what isn't of our form."""
        try:
            found = parse_json(self.attrs.get(INPUT_SHAPES, ""))
        except ValueError:
            return None
        return found if isinstance(found, dict) and all(map(_is_shape, found.values())) else None


@dataclass(frozen=True)
class StateFile:
    """A solver state's contents. `extra` is None if Caffe wrote the file; `legacy` as in ModelFile."""

    path: Path
    iteration: int
    current_step: int
    learned_net: str
    history: Sequence[np.ndarray]
    extra: Mapping[str, Any] | None
    legacy: bool = False

    def goes_with(self, model: ModelFile) -> bool:
        """Whether the model holds the weights that the state was saved with, as far as `extra` tells."""
        saved = (self.extra or {}).get(WEIGHTS)
        # by type: a bool is an int, too
        return saved is None or (type(saved) is int and saved == fingerprint(model.layers))


NET = "forcereg_net"
"""The attribute of a model that holds the text of its net."""
INPUT_SHAPES = "forcereg_input_shapes"
"""The attribute of a model that holds the shapes of its net's inputs, in JSON."""
PARTS = 60
"""Parts between the `/`s of a layer's name, which become groups within groups; see forcereg.system.hdf5.DEEPEST."""
WEIGHTS = "weights"
"""The entry of a state's `extra` that holds the fingerprint of its model."""


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and len(value) <= 32 and all(type(n) is int and 0 <= n < 1 << 31 for n in value)


def fingerprint(layers: Blobs) -> int:
    """The CRC-32 of all weights as float32, ordered by layer name and position: the same in every format."""
    checksum = 0
    # sorted: HDF5 gives layers by name, a binary file in the net's order
    for _, blobs in sorted(layers.items()):
        for _, values in sorted(blobs.items()):
            checksum = zlib.crc32(float_bytes(values), checksum)
    return checksum


def as_floats(values: np.ndarray) -> np.ndarray:
    """Numbers as float32, itself if they are that already; what that can't hold becomes infinite or 0."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(values, np.float32)


def float_bytes(values: np.ndarray) -> memoryview:
    """Numbers as bytes, little-endian float32; a view if they are that already."""
    return np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8).data


def check_names(layers: Mapping[str, Iterable[int]], where: str) -> None:
    """Raise ForceregError, opened by `where`, if layers (name -> its blobs' positions) cannot be stored in HDF5."""
    parts = {name: name.split("/") for name in layers}
    # what lies between the `/`s becomes a group, whether a layer has that name or not
    groups = {"/".join(split[: i + 1]) for split in parts.values() for i in range(len(split))}
    for name, blobs in layers.items():
        if len(parts[name]) > PARTS:
            text = f"{len(parts[name])} parts between `/`, HDF5 groups that deep are refused"
            raise ForceregError(f"{where}: layer {name[:60]!r}... has {text}; choose a shorter name")
        if "\0" in name or not {"", "."}.isdisjoint(parts[name]):
            raise ForceregError(f"{where}: layer {name!r} cannot be stored in HDF5; choose a plain name")
        for blob in (f"{name}/{index}" for index in blobs):
            if blob in groups:  # one path cannot be both a dataset and a group
                raise ForceregError(f"{where}: a layer may not be called {blob!r} beside {name!r}; rename it")


def fitted(values: np.ndarray, shape: tuple[int, ...], legacy: bool) -> np.ndarray | None:
    """The values in `shape`; None if theirs is another. Legacy ones may have more leading ones."""
    if values.shape == shape:
        return values
    surplus = values.ndim - len(shape)
    if legacy and surplus > 0 and values.shape == (1,) * surplus + shape:
        return values.reshape(shape)
    return None


def wrong_kind(file: ModelFile | StateFile) -> ForceregError:
    """The error for a file that is a model where a solver state is expected, or the other way round."""
    if isinstance(file, ModelFile):
        return ForceregError(
            f"{file.path}: this is a model, expected a solver state; give the .solverstate (or .solverstate.h5) "
            "beside it; this file is for --weights"
        )
    return ForceregError(
        f"{file.path}: this is a solver state, expected a model; give its model, {file.learned_net}; "
        "this file is for --snapshot"
    )
