"""Image files -> pixels: the one place where they are opened, by a fixed list of formats and in bounded memory.

Their content is anybody's. Pillow left to itself tries every format that it knows, one of which starts Ghostscript.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from forcereg.data.budget import DECODING
from forcereg.errors import ForceregError

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

Color = Literal["native", "color", "gray"]
Change = Callable[[np.ndarray], np.ndarray]

FORMATS = {"JPEG": "Jpeg", "PNG": "Png", "BMP": "Bmp", "GIF": "Gif", "TIFF": "Tiff", "WEBP": "WebP", "PPM": "Ppm"}
"""What Caffe's OpenCV reads, by Pillow's names, and the modules that do; PPM is all of PNM."""

# Pillow mode -> mode whose channels Caffe (OpenCV, unchanged) would deliver.
_NATIVE = {"1": "L", "L": "L", "RGB": "RGB", "RGBA": "RGBA", "LA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB"}
_CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
_DEEP = {("PNG", "I"), ("PNG", "I;16"), ("PNG", "I;16B"), ("TIFF", "I;16"), ("TIFF", "I;16B"), ("PPM", "I")}
"""Formats and Pillow's modes of 16-bit grey images; colour ones Pillow reduces to 8 bits itself."""
_WORK = {"WEBP": 14, "PPM": 8, "BMP": 2, "GIF": 2}
"""Bytes for each pixel that a format's decoder takes beside the image."""
_STRIP = 1 << 18
"""Pixels of a large image that are converted at a time."""
_STRIP_MEMORY = 12 * _STRIP


def decode_image(data: bytes, color: Color = "native", change: Change | None = None, deep: bool = False) -> np.ndarray:
    """(C, H, W) uint8, a view, of an image file: B, G, R[, A] or one grey channel; or what `change` makes of it.

    Of 16 bits the high byte counts, whatever the largest value, as in OpenCV (whose `imread` Caffe calls); or if `deep`
    grey images of 16 bits are uint16.
    Raises ForceregError, without the file's name. Waits while other threads use the memory that is needed.
    """
    return Picture(data, color, deep).decode(change)


class Picture:
    """An image file of which only the header was read.

    `mode` is Pillow's name for its kind of pixels, `deep` whether they have 16 bits each (PNG, and grey ones of all
    formats), `memory` what decoding takes; `whole`: all 16 bits of grey ones are kept. Raises ForceregError, without
    the file's name, for whatever goes wrong, and where decoding would take more memory than is allowed.
    """

    def __init__(self, data: bytes, color: Color, whole: bool = False) -> None:
        try:
            image = self._image = _open(data)
            self.mode = image.mode
            # Pillow's mode says nothing of a colour PNG's depth: byte 24 of the file, in its first chunk, does
            self.deep = _is_deep(image) or (image.format == "PNG" and data[24] == 16)
            self._target = _target_mode(image, color)
            self._bytes = 2 if whole and _is_deep(image) else 1
            self.memory = _memory(image, self._target, self._bytes)
            self.shape = (_CHANNELS[self._target], image.height, image.width)
            if self.memory > DECODING.limit:
                DECODING.refuse(self.memory, f"decoding the image inside, {image.width}x{image.height},", "shrink it")
        except Exception as error:
            raise _failure(error) from error

    def decode(self, change: Change | None = None) -> np.ndarray:
        """As `decode_image`; once only."""
        DECODING.take(self.memory)
        try:
            pixels = _pixels(self._image, self._target, self._bytes)
            # before `change` takes memory of its own
            del self._image
            # as OpenCV has them: B, G, R, and alpha last
            if self._target == "RGBA":
                pixels = pixels[:, :, [2, 1, 0, 3]]
            image = pixels[None] if self._target == "L" else pixels.transpose(2, 0, 1)
            image = image[::-1] if self._target == "RGB" else image
            return image if change is None else change(image)
        except Exception as error:
            raise _failure(error) from error
        finally:
            DECODING.give(self.memory)


def _failure(error: Exception) -> ForceregError:
    """Decoders raise anything."""
    if isinstance(error, ForceregError):
        return error
    return ForceregError(f"the image inside cannot be decoded ({str(error) or type(error).__name__})")


def _open(data: bytes) -> ImageFile:
    for factory, accepts in _readers():
        if accepts(data[:16]) is True:  # text: it would be, if Pillow had been built with its library
            image: ImageFile = factory(io.BytesIO(data), "")
            return image
    raise ForceregError("the image inside cannot be decoded (none of JPEG, PNG, BMP, GIF, TIFF, WebP and PNM)")


@cache
def _readers() -> list[tuple[Any, Any]]:
    """What makes an image of a file, and what tells by its first 16 bytes whether it can, of each format."""
    from PIL import Image

    for module in FORMATS.values():
        importlib.import_module(f"PIL.{module}ImagePlugin")
    return [Image.OPEN[name] for name in FORMATS if name in Image.OPEN]


def _is_deep(image: ImageFile) -> bool:
    return (image.format, image.mode) in _DEEP


def _target_mode(image: ImageFile, color: Color) -> str:
    if image.mode != "P" and image.mode not in _NATIVE and not _is_deep(image):
        raise ForceregError(
            f"the image inside is a {image.format} of mode {image.mode}; expected 8 bits per channel, or a grey PNG, "
            "PGM or TIFF of 16"
        )
    if color != "native":
        return "RGB" if color == "color" else "L"
    # OpenCV looks colours of a palette up by itself
    if image.mode == "P":
        return "RGBA" if "transparency" in image.info else "RGB"
    return _NATIVE.get(image.mode, "L")


def _memory(image: ImageFile, mode: str, size: int) -> int:
    """Bytes that decoding takes at most, by the header alone (measured: tests/data/test_decoding.py)."""
    stored = 1 if image.mode in ("1", "L", "P") else 4  # Pillow keeps a pixel of several channels in 4 bytes
    each = stored + _CHANNELS[mode] * (2 if mode == "RGBA" else size) + _WORK.get(image.format or "", 0)
    if "progressive" in image.info:
        each += 8  # its coefficients
    tags = getattr(image, "tag_v2", {})  # of a TIFF, a strip or tile of which is decoded at a time
    # 278: rows of a strip, 322 and 323: width and length of a tile
    rows, tile = int(tags.get(278, image.height)), int(tags.get(322, 0)) * int(tags.get(323, 0))
    piece = max(min(rows, image.height) * image.width, tile) if tags else 0
    return each * image.width * image.height + 8 * piece + _STRIP_MEMORY * (2 if _is_deep(image) else 1)


def _pixels(image: Any, mode: str, size: int) -> np.ndarray:
    """(H, W[, C]) of an opened image, `size` bytes each; a large one is converted strip by strip."""
    rows = max(1, _STRIP // image.width)
    scale = _unscaled(image) if _is_deep(image) else None
    if image.height <= rows:
        return _converted(image, mode, scale, size)
    shape = (image.height, image.width, *[_CHANNELS[mode]][: mode != "L"])
    pixels = np.empty(shape, f"u{size}")
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = _converted(strip, mode, scale, size)
    return pixels


def _unscaled(image: Any) -> float:
    """What turns the values of a deep image into those of its file: Pillow brings those of a PGM to 0 to 65535."""
    kind, _, _, arguments = image.tile[0]
    return arguments[-1] / 65535 if image.format == "PPM" and kind != "raw" else 1.0


def _converted(image: Any, mode: str, scale: float | None, size: int) -> np.ndarray:
    """An image's pixels in `mode`; with a `scale` it is deep; for a `size` of 1 the high byte of its values counts."""
    if scale is not None:
        from PIL import Image

        values = np.asarray(image)
        # rounded: scaled back, Pillow's numbers are the file's own but for their last bits
        values = values if scale == 1 else np.rint(values * np.float32(scale)).astype(np.uint16)
        if size == 2:
            return values.astype(np.uint16)
        image = Image.fromarray((values >> 8).astype(np.uint8))
    return np.asarray(image if image.mode == mode else image.convert(mode))
