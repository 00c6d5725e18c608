"""BlobProto messages -> arrays."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from forcereg.errors import ForceregError
from forcereg.files import read_file
from forcereg.schema import BlobProto

LEGACY = ("num", "channels", "height", "width")
MOST = 1 << 29
"""Bytes of a BlobProto's file: a mean image of 100 megapixels of floats, or an infogain matrix of 10,000 classes."""


def blob_array(blob: Any, what: str) -> np.ndarray:
    """The float32 values of a BlobProto in its shape, or in the four legacy dims if it gives any of these.

    Raises ForceregError, opened by `what`, unless it holds as many values as its shape says.
    """
    values = np.array(blob.data or blob.double_data, np.float32)
    legacy = any(blob.HasField(name) for name in LEGACY)
    shape = tuple(getattr(blob, name) for name in LEGACY) if legacy else tuple(blob.shape.dim)
    if min(shape, default=0) < 0 or values.size != prod(shape):
        raise ForceregError(f"{what} holds {values.size} values in shape {list(shape)}; expected one value each")
    return values.reshape(shape)


def read_blob(path: Path, what: str) -> np.ndarray:
    """The array of a binary BlobProto file. Raises ForceregError, opened by `what` and the path."""
    try:
        blob = BlobProto.FromString(read_file(path, MOST))
    except OSError as error:
        raise ForceregError(f"{what} {path} cannot be read ({error.strerror}); correct the path") from error
    except DecodeError as error:
        raise ForceregError(f"{what} {path} is not a BlobProto; expected a binary file as Caffe writes") from error
    return blob_array(blob, f"{what} {path}")
