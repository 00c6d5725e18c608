"""Small files that would be large."""

from __future__ import annotations

import struct
import zlib


def png(width: int, height: int) -> bytes:
    """A grey PNG, all black, whose rows are all there."""
    pixels = zlib.compressobj(9)
    row = bytes(width + 1)
    data = b"".join(pixels.compress(row) for _ in range(height)) + pixels.flush()
    return png_header(width, height) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def png_header(width: int, height: int, kind: int = 0) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))


def png_text(size: int) -> bytes:
    """A PNG with `size` bytes of compressed text and as large a colour profile."""
    packed = zlib.compress(bytes(size), 9)
    chunks = [_chunk(b"zTXt", b"key\0\0" + packed), _chunk(b"iCCP", b"profile\0\0" + packed)] * 3
    return png_header(4, 4) + b"".join(chunks) + png(4, 4)[33:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(width: int, height: int, tile: int = 0) -> bytes:
    """A grey TIFF, of one strip or of tiles, that holds next to nothing."""
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1}
    tags |= {322: tile, 323: tile, 324: 8, 325: 8} if tile else {273: 8, 278: height, 279: 8}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8 + 8) + bytes(8) + struct.pack("<H", len(tags)) + entries + bytes(4)


HUGE = {
    "jpeg": b"\xff\xd8\xff\xc0\0\x11\x08" + struct.pack(">HH", 65500, 65500) + b"\3\1\x22\0\2\x11\1\3\x11\1"
    + b"\xff\xda\0\x0c" + bytes(10),
    "png": png_header(60_000, 60_000, 2) + _chunk(b"IDAT", b"") + _chunk(b"IEND", b""),
    "bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + b"," + bytes(4)
    + struct.pack("<HHB", 65535, 65535, 0) + b"\2\1\x44\0;",
    "tiff": tiff(60_000, 60_000),
    "tiff-tile": tiff(8, 8, 60_000),
    "ppm": b"P6 60000 60000 255\n" + bytes(9),
    "plain ppm": b"P3 60000 60000 255\n1 2 3",
}  # fmt: skip
"""Of each format one that says it has billions of pixels."""
