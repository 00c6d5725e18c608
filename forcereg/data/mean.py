"""Mean images: BlobProto files as Caffe's compute_image_mean writes them."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

from forcereg.errors import ForceregError
from forcereg.schema import BlobProto
from forcereg.schema.blobs import MOST, blob_values
from forcereg.system.files import read_file, write_bytes


def read_mean(path: Path) -> np.ndarray:
    """The mean image (C, H, W), float32, of a .binaryproto file. Raises ForceregError."""
    try:
        blob = BlobProto.FromString(read_file(path, MOST))
    except OSError as error:
        raise ForceregError(f"mean_file {path}: cannot be read ({error.strerror})") from error
    except DecodeError as error:
        raise ForceregError(
            f"mean_file {path}: not a BlobProto; expected a binary file as compute_image_mean writes"
        ) from error
    values = blob_values(blob, f"mean_file {path}")
    shape = tuple(blob.shape.dim) or (blob.num, blob.channels, blob.height, blob.width)
    # compute_image_mean writes a batch of one
    while len(shape) > 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 3 or min(shape) < 1 or values.size != prod(shape):
        raise ForceregError(
            f"mean_file {path}: holds {values.size} values in shape {tuple(shape)}; expected one C,H,W image"
        )
    # it would make every image nan, and be found in the loss only
    if not np.isfinite(values).all():
        bad = values[~np.isfinite(values)][0]
        raise ForceregError(f"mean_file {path}: holds {bad:g}; make it anew with `forcereg data mean`")
    return values.reshape(shape)


def write_mean(path: Path, mean: np.ndarray) -> None:
    """Write the mean image (C, H, W) as a BlobProto with the legacy dimensions num = 1, C, H, W."""
    channels, height, width = mean.shape
    blob = BlobProto(num=1, channels=channels, height=height, width=width)
    blob.data.extend(np.asarray(mean, np.float32).ravel().tolist())
    write_bytes(path, blob.SerializeToString())
