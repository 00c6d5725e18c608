"""Images, arrays and messages: `caffe.io`.

    transformer = caffe.io.Transformer({"data": net.blobs["data"].data.shape})
    transformer.set_transpose("data", (2, 0, 1))
    net.blobs["data"].data[...] = transformer.preprocess("data", caffe.io.load_image("cat.jpg"))

Images are arrays (H, W, K) of floats, colours in the order R, G, B; nets take (K, H, W), mostly B, G, R.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np

from forcereg.data.decoding import decode_image
from forcereg.errors import ForceregError
from forcereg.pycaffe.interpolate import Sizes, resize_image
from forcereg.pycaffe.proto import caffe_pb2
from forcereg.pycaffe.transformer import Transformer
from forcereg.system.files import read_file

__all__ = [
    "Transformer",
    "array_to_blobproto",
    "array_to_datum",
    "arraylist_to_blobprotovector_str",
    "blobproto_to_array",
    "blobprotovector_str_to_arraylist",
    "datum_to_array",
    "load_image",
    "oversample",
    "resize_image",
]

LUMINANCE = (0.2125, 0.7154, 0.0721)
"""Shares of R, G and B in grey, as scikit-image has them."""


# -- arrays and messages


def blobproto_to_array(blob: Any, return_diff: bool = False) -> np.ndarray:
    """The float64 values of a BlobProto, or its gradient, in its shape.

    (num, channels, height, width) if any of the four old fields is set, as in mean images. Raises ValueError if the
    number of values is another, as without a gradient.
    """
    values = np.array(blob.diff if return_diff else blob.data, np.float64)
    legacy = ("num", "channels", "height", "width")
    if any(blob.HasField(name) for name in legacy):
        return values.reshape([getattr(blob, name) for name in legacy])
    return values.reshape(tuple(blob.shape.dim))


def array_to_blobproto(arr: np.ndarray, diff: np.ndarray | None = None) -> Any:
    """A BlobProto of an array of any shape, and of a gradient."""
    blob = caffe_pb2.BlobProto(data=np.ravel(arr).astype(float))
    blob.shape.dim.extend(arr.shape)
    if diff is not None:
        blob.diff.extend(np.ravel(diff).astype(float))
    return blob


def arraylist_to_blobprotovector_str(arraylist: Iterable[np.ndarray]) -> bytes:
    """Arrays as the bytes of a BlobProtoVector."""
    data: bytes = caffe_pb2.BlobProtoVector(blobs=map(array_to_blobproto, arraylist)).SerializeToString()
    return data


def blobprotovector_str_to_arraylist(str: bytes) -> list[np.ndarray]:
    """The arrays in the bytes of a BlobProtoVector."""
    return list(map(blobproto_to_array, caffe_pb2.BlobProtoVector.FromString(str).blobs))


def array_to_datum(arr: np.ndarray, label: int | None = None) -> Any:
    """A Datum of an array (C, H, W): uint8 as bytes, other types as floats. Raises ValueError for other axes."""
    if arr.ndim != 3:
        raise ValueError("Incorrect array shape.")
    channels, height, width = arr.shape
    datum = caffe_pb2.Datum(channels=channels, height=height, width=width)
    if arr.dtype == np.uint8:
        datum.data = arr.tobytes()
    else:
        datum.float_data.extend(arr.astype(float).ravel())
    if label is not None:
        datum.label = label
    return datum


def datum_to_array(datum: Any) -> np.ndarray:
    """(C, H, W) of a Datum: uint8 of its bytes if it has any, else float64.

    An image file inside isn't decoded. Raises ValueError if the number of values isn't that of the shape.
    """
    shape = (datum.channels, datum.height, datum.width)
    if datum.data:
        return np.frombuffer(datum.data, np.uint8).copy().reshape(shape)
    return np.array(datum.float_data, np.float64).reshape(shape)


# -- images


def load_image(filename: str | os.PathLike[str] | BinaryIO, color: bool = True) -> np.ndarray:
    """(H, W, 3) float32 of an image file, R, G, B from 0 to 1; or without `color` (H, W, 1), its luminance.

    `filename`: a path, or an open file, as web services have images. Grey images are repeated in three channels, alpha
    is left out. Reads JPEG, PNG, BMP, GIF (the first picture), TIFF, WebP and PNM. Raises OSError for a file that is
    missing, or no such image.
    """
    if isinstance(filename, str | os.PathLike):
        name = os.fspath(filename)
        data = read_file(name)
    else:
        name, data = "the open file", filename.read()
    try:
        pixels = decode_image(data, deep=True)
    except ForceregError as error:
        raise OSError(f"{name}: {error}") from None
    # as scikit-image: a share of the type's largest value, in double precision
    image = pixels.transpose(1, 2, 0) / np.iinfo(pixels.dtype).max
    if image.shape[2] > 1:
        image = image[:, :, 2::-1]
        image = image if color else image @ np.array(LUMINANCE)[:, None]
    elif color:
        image = np.tile(image, (1, 1, 3))
    return image.astype(np.float32)


def oversample(images: Iterable[np.ndarray], crop_dims: Sizes) -> np.ndarray:
    """(10 N, h, w, K) float32 of N images (H, W, K) of one size: ten crops of each; `crop_dims` is (h, w).

    They are the corners (top left, top right, bottom left, bottom right) and the centre, then those mirrored.
    """
    images = list(images)
    high, wide = images[0].shape[:2]
    h, w = (int(size) for size in crop_dims)
    corners = [(top, left) for top in (0, high - h) for left in (0, wide - w)]
    places = [*corners, centre((high, wide), (h, w))]
    crops = np.empty((10 * len(images), h, w, images[0].shape[-1]), np.float32)
    for number, image in enumerate(images):
        five = crops[10 * number : 10 * number + 5]
        for crop, (top, left) in zip(five, places, strict=True):
            crop[...] = image[top : top + h, left : left + w]
        crops[10 * number + 5 : 10 * number + 10] = five[:, :, ::-1]
    return crops


def centre(size: Sizes, crop: Sizes) -> tuple[int, int]:
    """(top, left) of the crop in the middle, both (height, width)."""
    return int((size[0] - crop[0]) / 2), int((size[1] - crop[1]) / 2)
