"""Loading and resizing images: channel order, errors, and bilinear interpolation spelt out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forcereg.data.images import STRIP, load_image, resize
from forcereg.errors import ForceregError
from tests.data.pictures import noise, png


def by_pixel(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear interpolation at half-pixel centres in float64, one pixel after the other, unrounded."""
    out = np.empty((len(image), height, width))
    for row in range(height):
        for column in range(width):
            y = min(max((row + 0.5) * image.shape[1] / height - 0.5, 0), image.shape[1] - 1)
            x = min(max((column + 0.5) * image.shape[2] / width - 0.5, 0), image.shape[2] - 1)
            value = np.zeros(len(image))
            for at_y in {math.floor(y), math.ceil(y)}:
                for at_x in {math.floor(x), math.ceil(x)}:
                    value += image[:, at_y, at_x] * ((1 - abs(y - at_y)) * (1 - abs(x - at_x)))
            out[:, row, column] = value
    return out


SIZE = st.one_of(st.integers(1, 9), st.sampled_from([STRIP, 2 * STRIP + 1]))


@given(SIZE, SIZE, SIZE, SIZE, st.sampled_from([1, 3]), st.integers(0, 99))
def test_resizing_is_bilinear_and_rounded(
    height: int, width: int, new_height: int, new_width: int, channels: int, seed: int
) -> None:
    image = noise(seed, (channels, height, width))
    found = resize(image, new_height, new_width)
    assert found.dtype == np.uint8 and found.shape == (channels, new_height, new_width)
    np.testing.assert_allclose(found, by_pixel(image, new_height, new_width), rtol=0, atol=0.5 + 1e-3)


def test_halves_are_rounded_up() -> None:
    assert resize(np.array([[[0, 1]]], np.uint8), 1, 1).item() == 1
    assert resize(np.array([[[2], [3]]], np.uint8), 1, 1).item() == 3


@given(SIZE, SIZE, st.integers(0, 255))
def test_a_flat_image_stays_flat(height: int, width: int, value: int) -> None:
    assert (resize(np.full((3, 4, 6), value, np.uint8), height, width) == value).all()


def test_an_image_of_the_size_is_unchanged() -> None:
    image = noise(1, (3, 5, 7))
    np.testing.assert_array_equal(resize(image, 5, 7), image)


def test_colours_come_as_blue_green_red(tmp_path: Path) -> None:
    image = noise(1, (3, 4, 5))
    (tmp_path / "a.png").write_bytes(png(image))
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), png(image)):
        np.testing.assert_array_equal(load_image(source, color=True), image)


def test_grey_is_weighted_as_opencv_does() -> None:
    image = noise(1, (3, 4, 5))
    found = load_image(png(image), color=False)
    assert found.shape == (1, 4, 5)
    expected = np.tensordot([0.114, 0.587, 0.299], image, 1)
    np.testing.assert_allclose(found[0], expected, atol=1)


def test_a_grey_file_has_three_equal_channels_in_colour() -> None:
    image = noise(1, (1, 4, 5))
    np.testing.assert_array_equal(load_image(png(image), color=True), np.repeat(image, 3, 0))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ForceregError, match=r"none\.png: cannot be read \(No such file or directory\); check the path"):
        load_image(tmp_path / "none.png", True)


def test_a_path_that_cannot_be_is_named_on_one_line() -> None:
    with pytest.raises(ForceregError, match=r"^a\\x00\\nb: cannot be read \("):
        load_image("a\0\nb", True)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"GIF8")
    with pytest.raises(ForceregError, match=r"a\.png: .*cannot be decoded"):
        load_image(tmp_path / "a.png", True)
    with pytest.raises(ForceregError, match=r"cannot be decoded"):
        load_image(png(noise(1, (3, 4, 5)))[:60], True)
