"""BlobProto messages -> arrays."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from forcereg.errors import ForceregError
from forcereg.schema import BlobProto
from forcereg.system.files import read_file

LEGACY = ("num", "channels", "height", "width")
RAW = {0: "<f8", 1: "<f4", 2: "<f2"}
"""Types of `raw_data`, in which other programs than Caffe store values: DOUBLE, FLOAT and FLOAT16."""
MOST = 1 << 29
"""Bytes of a BlobProto's file: a mean image of 100 megapixels of floats, or an infogain matrix of 10,000 classes."""


def blob_array(blob: Any, what: str) -> np.ndarray:
    """The float32 values of a BlobProto in its shape, or in the four legacy dims if it gives any of these.

    Raises ForceregError, opened by `what`, unless it holds as many values as its shape says.
    """
    values = blob_values(blob, what)
    # one of the four is enough, as in Caffe, which prefers them to shape
    legacy = any(blob.HasField(name) for name in LEGACY)
    shape = tuple(getattr(blob, name) for name in LEGACY) if legacy else tuple(blob.shape.dim)
    if min(shape, default=0) < 0 or values.size != prod(shape):
        raise ForceregError(f"{what} holds {values.size} values in shape {list(shape)}; expected one value each")
    return values.reshape(shape)


def raw_type(blob: Any, what: str) -> np.dtype[Any]:
    """What a BlobProto's `raw_data` is made of. Raises ForceregError, opened by `what`, for what can't be weights."""
    if not blob.HasField("raw_data_type") or blob.raw_data_type not in RAW:
        number = blob.raw_data_type if blob.HasField("raw_data_type") else None
        found = "an unknown type" if number is None else f"type {blob.RawType.Name(number)}"
        known = ", ".join(map(blob.RawType.Name, sorted(RAW)))
        raise ForceregError(f"{what} has raw_data of {found}; expected {known}")
    return np.dtype(RAW[blob.raw_data_type])


def blob_values(blob: Any, what: str) -> np.ndarray:
    """The values of a BlobProto, flat, as float32: too large ones become infinite. Raises ForceregError as `raw_type`,
    and for a part of a number."""
    # values of Caffe's double builds may be beyond float32
    with np.errstate(over="ignore", under="ignore"):
        # Caffe's own fields first: raw_data is other programs'
        if blob.data or blob.double_data or not blob.raw_data:
            return np.array(blob.data or blob.double_data, np.float32)
        kind = raw_type(blob, what)
        if rest := len(blob.raw_data) % kind.itemsize:
            raise ForceregError(f"{what} has raw_data that ends in {rest} bytes of a {kind.itemsize}-byte number")
        return np.frombuffer(blob.raw_data, kind).astype(np.float32)


def read_blob(path: Path, what: str) -> np.ndarray:
    """The array of a binary BlobProto file. Raises ForceregError, opened by `what` and the path."""
    try:
        blob = BlobProto.FromString(read_file(path, MOST))
    except OSError as error:
        raise ForceregError(f"{what} {path} cannot be read ({error.strerror}); correct the path") from error
    except DecodeError as error:
        raise ForceregError(f"{what} {path} is not a BlobProto; expected a binary file as Caffe writes") from error
    return blob_array(blob, f"{what} {path}")
