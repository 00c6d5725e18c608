"""Datum values with image files inside: channels and their order as Caffe (OpenCV) delivers them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from forcereg.data.datum import decode
from forcereg.errors import ForceregError
from forcereg.schema import Datum

RGBA = np.array([[[10, 20, 30, 40], [50, 60, 70, 80]]], np.uint8)  # (H, W, channels)


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return Datum(encoded=True, data=file.getvalue(), label=5).SerializeToString()


def picture(mode: str) -> Image.Image:
    if mode == "P":
        return Image.fromarray(RGBA[:, :, :3]).quantize(4)
    if mode == "I;16":
        return Image.fromarray(np.array([[1000, 2000]], np.uint16))
    return Image.fromarray(RGBA).convert(mode)


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGB", "native", [[30, 70], [20, 60], [10, 50]]),
        ("RGBA", "native", [[30, 70], [20, 60], [10, 50], [40, 80]]),
        ("RGBA", "color", [[30, 70], [20, 60], [10, 50]]),
        ("P", "native", [[30, 70], [20, 60], [10, 50]]),
        ("L", "native", [[18, 58]]),
        ("L", "color", [[18, 58]] * 3),
        ("RGB", "gray", [[18, 58]]),
        ("RGBA", "gray", [[18, 58]]),
    ],
)
def test_channels(mode: str, color, expected: list[list[int]]) -> None:
    image, label = decode(encoded(picture(mode)), color)
    assert (image.dtype, label) == (np.uint8, 5)
    assert image[:, 0].tolist() == expected


@pytest.mark.parametrize("color", ["native", "color", "gray"])
def test_sixteen_bits_are_refused(color) -> None:
    with pytest.raises(ForceregError, match="mode I;16; expected 8 bits"):
        decode(encoded(picture("I;16")), color)


def test_data_wins_over_float_data() -> None:
    datum = Datum(channels=1, height=1, width=2, data=b"\x01\x02", float_data=[7.0, 8.0])
    assert decode(datum.SerializeToString())[0].tolist() == [[[1, 2]]]
