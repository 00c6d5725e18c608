"""What a model and a solver state hold, whichever kind of file they are in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from forcereg.errors import ForceregError

Blobs: TypeAlias = Mapping[str, Mapping[int, np.ndarray]]
"""Layer name -> position of the blob in its layer (0 = weights, 1 = bias, ...) -> values in Caffe's dims."""


@dataclass(frozen=True)
class ModelFile:
    """A model's contents; `attrs`: the text attributes (`forcereg_net`, ...); `diffs`: empty if not saved.

    `legacy`: an old file whose blobs all have four axes, the leading ones 1 where the layer has fewer.
    """

    path: Path
    layers: dict[str, dict[int, np.ndarray]]
    attrs: dict[str, str]
    diffs: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    legacy: bool = False


@dataclass(frozen=True)
class StateFile:
    """A solver state's contents. `extra` is None if Caffe wrote the file; `legacy` as in ModelFile."""

    path: Path
    iteration: int
    current_step: int
    learned_net: str
    history: list[np.ndarray]
    extra: dict[str, Any] | None
    legacy: bool = False


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
