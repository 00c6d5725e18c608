"""Images of 16 bits a value, written by hand: Pillow writes grey ones only."""

from __future__ import annotations

import struct
import zlib

import numpy as np

KINDS = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG's colour type by the number of channels."""


def deep_png(values: np.ndarray) -> bytes:
    """The PNG of values (H, W, channels) of 16 bits: grey, grey and alpha, R, G, B, or these and alpha."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, KINDS[channels], 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def deep_pgm(values: np.ndarray, largest: int, plain: bool = False) -> bytes:
    """The PGM of values (H, W) up to `largest`, which is more than 255; as text if `plain`."""
    height, width = values.shape
    head = b"P%d %d %d %d\n" % (2 if plain else 5, width, height, largest)
    return head + (" ".join(map(str, values.flat)).encode() if plain else values.astype(">u2").tobytes())


def deep_tiff(values: np.ndarray, order: str) -> bytes:
    """The TIFF of values (H, W) of 16 bits, in byte order `<` or `>`."""
    height, width = values.shape
    data = values.astype(f"{order}u2").tobytes()
    tags = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data))
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
