"""Datum values with image files inside: channels and their order as Caffe (OpenCV) delivers them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from forcereg.data.datum import Layout, decode, serialized
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
        return Image.fromarray(np.array([[0x12FF, 0x3480]], np.uint16))
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
        ("I;16", "native", [[0x12, 0x34]]),
        ("I;16", "gray", [[0x12, 0x34]]),
        ("I;16", "color", [[0x12, 0x34]] * 3),
    ],
)
def test_channels(mode: str, color, expected: list[list[int]]) -> None:
    image, label = decode(encoded(picture(mode)), color)
    assert (image.dtype, label) == (np.uint8, 5)
    assert image[:, 0].tolist() == expected


def test_data_wins_over_float_data() -> None:
    datum = Datum(channels=1, height=1, width=2, data=b"\x01\x02", float_data=[7.0, 8.0])
    assert decode(datum.SerializeToString())[0].tolist() == [[[1, 2]]]


def raw(label: int | None, *, first: int = 0, **more) -> bytes:
    """A record of 2x2x3 bytes as Caffe's converters write them."""
    return Datum(
        channels=2, height=2, width=3, data=bytes(range(first, first + 12)), label=label, **more
    ).SerializeToString()


FIRST = raw(3)
LAYOUT = Layout.of("db", b"0", FIRST, "native")


@pytest.mark.parametrize("label", [None, 0, 7, 128, 99999, -1, 2**31 - 1])
@pytest.mark.parametrize("more", [{}, {"encoded": False}], ids=["", "encoded-false"])
def test_raw_records_are_read_at_once_as_one_by_one(label: int | None, more: dict[str, bool]) -> None:
    values = [FIRST, raw(label, first=40, **more), raw(label, first=80), FIRST]
    found = LAYOUT.decode_alike(values)
    assert found is not None
    images, labels = found
    expected = [decode(value) for value in values]
    assert images.dtype == np.uint8 and images.tolist() == [image.tolist() for image, _ in expected]
    assert labels == [one for _, one in expected]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"", id="empty"),
        pytest.param(FIRST[:-3], id="cut-in-the-pixels"),
        pytest.param(FIRST[:-1], id="cut-in-the-label"),
        pytest.param(FIRST + b"\xff", id="damaged-tail"),
        pytest.param(FIRST + Datum(data=bytes(12)).SerializeToString(), id="pixels-twice"),
        pytest.param(FIRST + Datum(channels=1).SerializeToString(), id="shape-twice"),
        pytest.param(FIRST + Datum(float_data=[1.0]).SerializeToString(), id="floats-too"),
        pytest.param(raw(3, encoded=True), id="an-image-file"),
        pytest.param(Datum(channels=2, height=3, width=2, data=bytes(12)).SerializeToString(), id="another-shape"),
        pytest.param(Datum(label=3).SerializeToString() + raw(None), id="label-first"),
    ],
)
def test_other_records_are_left_to_be_read_one_by_one(value: bytes) -> None:
    assert LAYOUT.decode_alike([FIRST, value]) is None


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(encoded(picture("RGB")), id="image-files"),
        pytest.param(Datum(channels=1, height=1, width=2, float_data=[1.0, 2.0]).SerializeToString(), id="floats"),
    ],
)
def test_only_raw_sets_are_read_at_once(first: bytes) -> None:
    assert Layout.of("db", b"0", first, "native").decode_alike([first]) is None


@given(st.tuples(*[st.integers(1, 90)] * 3), st.integers(-(2**31), 2**31 - 1), st.booleans())
def test_serialized_is_what_protobuf_writes(shape: tuple[int, int, int], label: int, mirrored: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)[:, :, :: -1 if mirrored else 1]
    channels, height, width = shape
    datum = Datum(channels=channels, height=height, width=width, data=pixels.tobytes(), label=label)
    assert serialized(pixels, label) == datum.SerializeToString()
