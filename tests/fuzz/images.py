"""Image files of every format, damaged: decoded to an array of the right form, or refused in one line."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
from PIL import Image

from forcereg.data.budget import DECODING
from forcereg.data.decoding import Color, Picture
from forcereg.errors import ForceregError
from tests.data.bombs import HUGE, png_text
from tests.fuzz.hostile import mangled

COLORS: tuple[Color, ...] = ("native", "color", "gray")
MARKS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF89a", b"II*\0", b"MM\0*", b"RIFF", b"P6 ", b"P3 ", b"%!PS")


def prepare(folder: Path) -> None:
    """Small files of all formats and kinds of pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (33, 41, 4), np.uint8)
    rgb, rgba = Image.fromarray(noise[:, :, :3]), Image.fromarray(noise, "RGBA")
    files = {
        "jpg": (rgb, "JPEG", {}),
        "progressive.jpg": (rgb, "JPEG", {"progressive": True}),
        "cmyk.jpg": (rgb.convert("CMYK"), "JPEG", {}),
        "exif.jpg": (rgb, "JPEG", {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\3\0\1\0\0\0\6\0\0\0\0\0\0\0"}),
        "mpo": (rgb, "MPO", {"save_all": True, "append_images": [rgb]}),
        "png": (rgb, "PNG", {}),
        "rgba.png": (rgba, "PNG", {}),
        "palette.png": (rgb.convert("P"), "PNG", {"transparency": 3}),
        "bits.png": (rgb.convert("1"), "PNG", {}),
        "animated.png": (rgb, "PNG", {"save_all": True, "append_images": [rgb]}),
        "bmp": (rgb, "BMP", {}),
        "grey.bmp": (rgb.convert("L"), "BMP", {}),
        "gif": (rgb, "GIF", {"save_all": True, "append_images": [rgb]}),
        "tif": (rgb, "TIFF", {}),
        "deflate.tif": (rgb, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "lzw.tif": (rgb, "TIFF", {"compression": "tiff_lzw"}),
        "jpeg.tif": (rgb, "TIFF", {"compression": "jpeg"}),
        "fax.tif": (rgb.convert("1"), "TIFF", {"compression": "group4"}),
        "webp": (rgb, "WEBP", {}),
        "lossless.webp": (rgba, "WEBP", {"lossless": True}),
        "animated.webp": (rgba, "WEBP", {"save_all": True, "append_images": [rgb.convert("RGBA")]}),
        "ppm": (rgb, "PPM", {}),
        "pgm": (rgb.convert("L"), "PPM", {}),
    }
    for name, (image, kind, options) in files.items():
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        (folder / f"0.{name}").write_bytes(buffer.getvalue())
    (folder / "0.plain.ppm").write_bytes(b"P3 3 2 255\n" + b"1 20 255 " * 6)
    for name, content in {**HUGE, "text": png_text(1 << 22)}.items():
        (folder / f"huge.{name}").write_bytes(content)


def attempt(chance: random.Random, folder: Path) -> None:
    DECODING.limit = 64 << 20
    path = chance.choice(sorted(folder.iterdir()))
    content = path.read_bytes()
    if chance.random() < 0.9:
        content = changed(chance, content)
    try:
        image = Picture(content, chance.choice(COLORS)).decode()
    except ForceregError as error:
        assert "\n" not in str(error) and ("cannot be decoded" in str(error) or "the image inside" in str(error))
    else:
        assert image.ndim == 3 and image.dtype == np.uint8 and len(image) in (1, 3, 4)
        assert image.size <= DECODING.limit
    assert DECODING.used == 0


def changed(chance: random.Random, content: bytes) -> bytes:
    """The content with single bits, whole parts or its first bytes others; headers more often than the rest."""
    made = bytearray(content)
    what = chance.randrange(4)
    if what == 0:
        return mangled(chance, content)
    if what == 1:
        return chance.choice(MARKS) + content[chance.choice((0, 2, 8)) :]
    if what == 2:
        return content[: chance.randrange(len(content) + 1)]
    for _ in range(chance.choice((1, 1, 2, 8))):
        most = min(len(made), chance.choice((64, 256, len(made))))
        if most:
            made[chance.randrange(most)] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
    return bytes(made)
