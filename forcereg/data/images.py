"""Image files -> arrays, and resizing them, close to what OpenCV gives Caffe."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from forcereg.data.budget import DECODING, OPTION
from forcereg.data.decoding import Color, decode_image
from forcereg.errors import ForceregError
from forcereg.schema.scan import shown
from forcereg.system.files import open_file, read_file

STRIP = 32  # rows
LONGEST_LINE = 1 << 16


def load_image(source: str | os.PathLike[str] | bytes, color: bool, size: tuple[int, int] | None = None) -> np.ndarray:
    """(C, H, W) uint8 of an image file, given by path or content: B, G, R if `color`, else one grey channel.

    Resized to `size` (rows, columns), where that is given, while its memory is still counted.
    Raises ForceregError, beginning with the path if it is one, for a file that cannot be read or decoded.
    """
    wanted: Color = "color" if color else "gray"
    change = None if size is None else partial(resize, height=size[0], width=size[1])
    if isinstance(source, bytes):
        return decode_image(source, wanted, change)
    try:
        return decode_image(read_file(os.fspath(source), DECODING.limit), wanted, change)
    except (OSError, ValueError) as error:
        raise unreadable(source, error) from error
    except ForceregError as error:
        raise ForceregError(f"{shown(os.fspath(source), 200)}: {error}") from error


def text_lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """The lines of a list, called `name` in errors, that aren't empty: number and text without the space around.

    Raises ForceregError for a file that can't be read and for a line that is too long to be one.
    """
    try:
        # editors may put a mark in front
        # paths may be in any encoding: what isn't UTF-8 comes back as it was when the file is opened
        with io.TextIOWrapper(open_file(path), encoding="utf-8-sig", errors="surrogateescape") as file:
            # a file without line ends would else be read as one line
            for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE), ""), 1):
                if len(line) == LONGEST_LINE:
                    raise ForceregError(
                        f"{name}:{number}: has {LONGEST_LINE:,} characters or more; expected a text file"
                    )
                if line := line.strip():
                    yield number, line
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def unreadable(path: str | os.PathLike[str], error: OSError | ValueError) -> ForceregError:
    """The error to raise where `path` could not be opened; ValueError is for one that no system has."""
    reason = getattr(error, "strerror", None) or error
    fix = f"raise {OPTION} if it is meant" if getattr(error, "errno", None) == errno.EFBIG else "check the path"
    return ForceregError(f"{shown(os.fspath(path), 200)}: cannot be read ({reason}); {fix}")


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(C, H, W) uint8 -> (C, `height`, `width`) uint8: bilinear, half-pixel centres, borders repeated, rounded.

    No smoothing when shrinking, as OpenCV's linear resize (its fixed-point arithmetic differs by at most 1).
    """
    if image.shape[1:] == (height, width):
        return image
    above, below, down = _neighbours(image.shape[1], height)
    left, right, across = _neighbours(image.shape[2], width)
    across = np.repeat(across[:, None], len(image), 1)
    # pixel by pixel, not plane by plane, and by strips, for the caches and because large blocks of memory are slow
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
    out = np.empty((height, width, len(image)), np.uint8)
    for top in range(0, height, STRIP):
        rows = slice(top, top + STRIP)
        needed = np.union1d(above[rows], below[rows])
        strip = _between(pixels[needed].astype(np.float32), 1, left, right, across)
        first, second = np.searchsorted(needed, above[rows]), np.searchsorted(needed, below[rows])
        strip = _between(strip, 0, first, second, down[rows, None, None])
        strip += np.float32(0.5)  # halves up
        out[rows] = strip
    return out.transpose(2, 0, 1)


def _neighbours(size: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `wanted` pixels the two of `size` it lies between, and how far it is towards the second."""
    # in front of the first centre and behind the last one the border's pixel counts alone, as in OpenCV
    position = np.clip((np.arange(wanted) + 0.5) * (size / wanted) - 0.5, 0, size - 1)
    first = position.astype(np.intp)
    return first, np.minimum(first + 1, size - 1), (position - first).astype(np.float32)


def _between(pixels: np.ndarray, axis: int, first: np.ndarray, second: np.ndarray, part: np.ndarray) -> np.ndarray:
    low, high = pixels.take(first, axis), pixels.take(second, axis)
    # in place: low + part * (high - low) would take three more arrays of the strip's size
    high -= low
    high *= part
    low += high
    return low
