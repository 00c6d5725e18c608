"""Window files, and how R-CNN cuts a window out of its image."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from forcereg.data.images import resize, text_lines
from forcereg.errors import ForceregError
from forcereg.schema.scan import shown

_FIELDS = ("image", "line", "label", "x1", "y1", "x2", "y2")
ROW = np.dtype([(name, np.int32) for name in _FIELDS])


@dataclass(frozen=True)
class Listed:
    """An image of a window file: the line of its path, as written, and its size."""

    line: int
    path: str
    height: int
    width: int


@dataclass(frozen=True)
class Windows:
    """A window file, called `name` in errors: its images, of `channels` each, and windows, arrays of `ROW`.

    `image` counts from 0; both ends of a window are in it. Background has label 0.
    """

    name: str
    channels: int
    images: tuple[Listed, ...]
    foreground: np.ndarray
    background: np.ndarray


def read_windows(path: Path, name: str, least: float, below: float) -> Windows:
    """The window file `path`: foreground overlaps by `least` or more, background, of the rest, by less than `below`.

    Per image the file has the lines `# INDEX`, path, channels, height, width, count, and `count` lines
    `class overlap x1 y1 x2 y2`. Raises ForceregError, with the line's number, where it does not.
    """
    images: list[Listed] = []
    foreground, background, channels = [np.empty(0, ROW)], [np.empty(0, ROW)], 0
    reader = _Reader(text_lines(path, name), name)
    while reader.more():
        channels, image = reader.image(channels)
        rows, overlap = reader.windows(image, len(images), least)
        images.append(image)
        foreground.append(rows[overlap >= np.float32(least)])
        background.append(rows[(overlap < np.float32(least)) & (overlap < np.float32(below))])
        background[-1]["label"] = 0
    if not images:
        raise ForceregError(f"{path}: lists no images; expected a window file, beginning with '# 0'")
    return Windows(name, channels, tuple(images), np.concatenate(foreground), np.concatenate(background))


class _Reader:
    """The numbered lines of a window file called `name`."""

    def __init__(self, lines: Iterator[tuple[int, str]], name: str) -> None:
        self.name, self.lines = name, lines
        self.number = 0  # of the line read last

    def fail(self, number: int, text: str) -> ForceregError:
        """The error to raise about line `number`."""
        return ForceregError(f"{self.name}:{number}: {text}")

    def line(self, pattern: str, expected: str) -> str:
        """The next line, which must match; an empty one stands for the end."""
        self.number, text = next(self.lines, (self.number, ""))
        if not re.fullmatch(pattern, text):
            found = f"is '{shown(text, 200)}'" if text else "is where the file ends"
            raise self.fail(self.number, f"{found}; expected {expected}")
        return text

    def more(self) -> bool:
        """Whether there is another image; its first line is read."""
        # the empty alternative is the file's end
        return bool(self.line(r"(#\s*[0-9]+)?", "'# INDEX' of the next image, or a larger count of windows above"))

    def image(self, channels: int) -> tuple[int, Listed]:
        """An image and its channels, which must be `channels` if that is not 0."""
        path = self.line(".+", "the path of an image")
        number = self.number
        found = int(self.line("[13]", "the image's channels, 3 or 1"))
        if channels not in (0, found):
            raise self.fail(self.number, f"{found} channels, but {channels} in the images above; use one kind")
        height = int(self.line("[0-9]{1,9}", "the image's height"))
        width = int(self.line("[0-9]{1,9}", "the image's width"))
        return found, Listed(number, path, height, width)

    def windows(self, image: Listed, index: int, least: float) -> tuple[np.ndarray, np.ndarray]:
        """The image's windows as an array of `ROW`, and their overlaps, float32 as Caffe compares them."""
        count = int(self.line("[0-9]{1,9}", "the number of windows"))
        values = [(index, number, *self._values(number, text)) for number, text in islice(self.lines, count)]
        if len(values) < count:
            raise self.fail(self.number, f"{count} windows announced, but the file ends after {len(values)}")
        table = np.array(values, np.float64).reshape(-1, 8)
        # an overlap beyond float32 becomes infinite, which compares as it should
        with np.errstate(over="ignore"):
            overlap = table[:, 3].astype(np.float32)
        # what is left has to be integers
        table = np.delete(table, 3, axis=1)
        self._check(table, image, overlap >= np.float32(least))
        rows = np.empty(len(table), ROW)
        for name, column in zip(_FIELDS, table.T, strict=True):
            rows[name] = column
        return rows, overlap

    def _values(self, number: int, text: str) -> list[float]:
        try:
            values = [float(part) for part in text.split()]
        except ValueError:
            values = []
        if len(values) != 6:
            raise self.fail(number, f"is '{shown(text, 200)}'; expected class overlap x1 y1 x2 y2")
        return values

    def _check(self, table: np.ndarray, image: Listed, foreground: np.ndarray) -> None:
        _, number, label, x1, y1, x2, y2 = table.T
        whole = (table == np.floor(table)) & (abs(table) < 1 << 31)
        inside = (x1 >= 0) & (y1 >= 0) & (x2 < image.width) & (y2 < image.height)
        for good, text in (
            (whole.all(1), "class and corners are not integers; expected class overlap x1 y1 x2 y2"),
            (inside, f"the window leaves its image, {image.width} wide and {image.height} high; clip it"),
            ((x1 <= x2) & (y1 <= y2), "the window ends before it begins; expected x1 y1 x2 y2, both ends in it"),
            (~foreground | (label > 0), "a foreground window has class 0 or less, which is the background's; use 1 on"),
        ):
            if not good.all():
                raise self.fail(int(number[good.argmin()]), text)


@dataclass(frozen=True)
class Crop:
    """How windows become crops of `size` x `size` pixels, `pad` of them on each side showing what is around."""

    size: int
    pad: int
    square: bool
    mirror: bool

    def place(self, window: tuple[int, ...], height: int, width: int, mirrored: bool) -> tuple[Span, Span]:
        """Rows and columns of a window x1, y1, x2, y2 (both ends in it) in an image: where from, and where to."""
        x1, y1, x2, y2 = window
        if not self.pad and not self.square:
            return Span(y1, y2 + 1, 0, self.size), Span(x1, x2 + 1, 0, self.size)
        scale = self.size / (self.size - 2 * self.pad)
        half_height, half_width = (y2 - y1 + 1) / 2, (x2 - x1 + 1) / 2
        middle_y, middle_x = y1 + half_height, x1 + half_width
        if self.square:
            half_height = half_width = max(half_height, half_width)
        rows = self._span(middle_y, half_height * scale, height, False)
        return rows, self._span(middle_x, half_width * scale, width, mirrored)

    def _span(self, middle: float, half: float, limit: int, mirrored: bool) -> Span:
        """One axis of R-CNN's rule: the region about `middle`, cut at the image's ends, scaled with what is cut."""
        # both ends are in the region, as in R-CNN: it has last - first + 1 pixels
        first, last = _round(middle - half), _round(middle + half)
        scale = self.size / (last - first + 1)
        before, after = max(0, -first), max(0, last - limit + 1)
        start, stop = first + before, last - after + 1
        # mirrored, what was cut off behind comes first
        offset = _round((after if mirrored else before) * scale)
        return Span(start, stop, offset, min(_round((stop - start) * scale), self.size - offset))

    def cut(self, image: np.ndarray, window: tuple[int, ...], mirrored: bool, out: np.ndarray) -> list[int]:
        """Fill `out` (C, size, size) from `image` (C, H, W); which part it filled: top, bottom, left, right."""
        rows, columns = self.place(window, image.shape[1], image.shape[2], mirrored)
        if (rows.length, columns.length) != out.shape[1:]:
            # memory is used again, and the rest shows an older image
            out[:] = 0
        if rows.length and columns.length:
            part = image[:, rows.start : rows.stop, columns.start : columns.stop]
            # resized before it is mirrored, as Caffe does
            part = resize(part, rows.length, columns.length)
            to = out[:, rows.offset : rows.offset + rows.length, columns.offset : columns.offset + columns.length]
            to[:] = part[:, :, ::-1] if mirrored else part
        return [rows.offset, rows.offset + rows.length, columns.offset, columns.offset + columns.length]


@dataclass(frozen=True)
class Span:
    """[start, stop) of one axis of the image, resized to `length` pixels at `offset` of the crop."""

    start: int
    stop: int
    offset: int
    length: int


def _round(value: float) -> int:
    """To the nearest integer, halves away from zero, as C does."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))
