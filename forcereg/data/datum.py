"""Datum messages -> arrays: raw bytes, floats, or an image file inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from forcereg.data.decoding import Color, decode_image
from forcereg.data.records import record_error
from forcereg.errors import ForceregError
from forcereg.schema import Datum
from forcereg.schema.wire import COUNTED, varint

DATA_TAG = varint(Datum.DATA_FIELD_NUMBER << 3 | COUNTED)


class SizeDiffers(ForceregError):
    """An image is not as high and wide as the set's first one, which matters only where all must be of one size."""


def serialized(pixels: np.ndarray, label: int) -> bytearray:
    """The Datum of uint8 pixels (C, H, W) and a label: protobuf's bytes, with a single copy of the pixels."""
    channels, height, width = pixels.shape
    # protobuf writes fields by their numbers, and data's lies between width's and label's
    head = Datum(channels=channels, height=height, width=width).SerializeToString() + DATA_TAG + varint(pixels.size)
    tail = Datum(label=label).SerializeToString()
    value = bytearray(len(head) + pixels.size + len(tail))
    value[: len(head)], value[len(value) - len(tail) :] = head, tail
    np.frombuffer(value, np.uint8, pixels.size, len(head)).reshape(pixels.shape)[:] = pixels
    return value


def decode(value: bytes, color: Color = "native") -> tuple[np.ndarray, int]:
    """Image (C, H, W), uint8 or float32, and label of one serialized Datum; image files come as BGR(A).

    Raises ForceregError, without the record's name, if the value is damaged.
    """
    try:
        datum = Datum.FromString(value)
    except DecodeError as error:
        raise ForceregError("not a Datum message; expected records as Caffe's converters write") from error
    if datum.encoded:
        return decode_image(datum.data, color), datum.label
    shape = (datum.channels, datum.height, datum.width)
    data = datum.data
    # as in Caffe bytes win if there are any; it doesn't compare their number with the shape and reads on behind them
    image = np.frombuffer(data, np.uint8) if data else np.array(datum.float_data, np.float32)
    if min(shape) < 1 or image.size != shape[0] * shape[1] * shape[2]:
        kind = "bytes" if data else "floats"
        raise ForceregError(f"holds {image.size} {kind}, expected {shape_text(shape)}")
    return image.reshape(shape), datum.label


def shape_text(shape: Sequence[int]) -> str:
    """(3, 32, 32) -> '3x32x32'."""
    return "x".join(map(str, shape))


@dataclass(frozen=True)
class Layout:
    """What every record of a set must look like: `shape` (C, H, W) and `dtype`, as in its first record.

    `least`: if not 0, images may be of any size from `least` x `least` on.
    """

    source: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    color: Color
    encoded: bool
    least: int = 0

    @classmethod
    def of(cls, source: str, key: bytes, value: bytes, color: Color) -> Layout:
        """The layout of a set whose first record is (key, value)."""
        try:
            image, _ = decode(value, color)
        except ForceregError as error:
            raise record_error(source, key, str(error)) from error
        return cls(source, image.shape, image.dtype, color, bool(Datum.FromString(value).encoded))

    @property
    def record_bytes(self) -> int:
        """Bytes of one decoded record."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def decode(self, key: bytes, value: bytes) -> tuple[np.ndarray, int]:
        """Image and label of the record (key, value).

        Raises ForceregError naming source and key if it is damaged or differently shaped, SizeDiffers if only its
        size is another.
        """
        try:
            image, label = decode(value, self.color)
        except ForceregError as error:
            raise record_error(self.source, key, str(error)) from error
        self._check(key, image)
        return image, label

    def decode_alike(self, values: Sequence[bytes]) -> tuple[np.ndarray, list[int]] | None:
        """Images (n, C, H, W) uint8 and labels of raw records at once, where they are written as Caffe writes them.

        None where one is not: then `decode` reads them, or tells what is wrong.
        """
        head, size = self._head, self.record_bytes
        end = len(head) + size
        # comparing beginnings costs far less than parsing each message
        if not head or min(map(len, values)) < end or not all([value.startswith(head) for value in values]):
            return None
        tails = [value[end:] for value in values]
        # a set has few labels, so that few tails are parsed
        labels = {tail: _label_of(tail) for tail in set(tails)}
        if None in labels.values():
            return None
        pixels = b"".join([value[len(head) : end] for value in values])
        return np.frombuffer(pixels, np.uint8).reshape(-1, *self.shape), [labels[tail] or 0 for tail in tails]

    @cached_property
    def _head(self) -> bytes:
        """What a raw record begins with, up to its pixels; empty for other records."""
        if self.encoded or self.dtype != np.uint8:
            return b""
        channels, height, width = self.shape
        # zeros for the pixels, because the head ends with their number
        whole = Datum(channels=channels, height=height, width=width, data=bytes(self.record_bytes))
        return whole.SerializeToString()[: -self.record_bytes]

    def _check(self, key: bytes, image: np.ndarray) -> None:
        if image.dtype == self.dtype and image.shape == self.shape:
            return
        text = f"is {shape_text(image.shape)} {image.dtype}, expected {shape_text(self.shape)} {self.dtype}"
        error = record_error(self.source, key, f"{text} as in the first record; {self._fix(image)}")
        if image.dtype != self.dtype or image.shape[0] != self.shape[0]:
            raise error
        if not self.least:
            raise SizeDiffers(str(error))
        if min(image.shape[1:]) < self.least:
            small = f"is {shape_text(image.shape)}, smaller than crop_size {self.least}"
            raise record_error(self.source, key, f"{small}; lower crop_size, or write the set with larger images")

    def _fix(self, image: np.ndarray) -> str:
        """What to do about an image that is unlike the first one."""
        if image.dtype != self.dtype:
            return "write the set with bytes or with floats only"
        if image.shape[0] != self.shape[0]:
            if self.encoded:
                return "set transform_param { force_color: true } (or force_gray: true)"
            return "write the set with one number of channels (`forcereg data images` does, with --gray or without)"
        return "write the set with one size (`forcereg data images --resize-height --resize-width`)"


def _label_of(tail: bytes) -> int | None:
    """The label in what follows a raw record's pixels; None if it says more about the image."""
    try:
        datum = Datum.FromString(tail)
    except DecodeError:
        return None
    # of a field that comes twice protobuf takes the last: a tail may say another shape or other pixels
    more = datum.encoded or {field.name for field, _ in datum.ListFields()} - {"label", "encoded"}
    return None if more else datum.label
