"""Texts of any length in an HDF5 file, read from its bytes.

HDF5 itself reserves what such a text says its length is, up to 4 GB, before it looks whether the file holds that, and
goes round for ever in some damaged heaps. A text's value is a reference: its length (4 bytes), the place of the heap
that holds it (8) and its number there (4).
"""

from __future__ import annotations

import struct
from typing import BinaryIO

REFERENCE = 16
"""Bytes of a reference."""
_CONTINUED, _ATTRIBUTE = 16, 12  # messages of an object's header
_BLOCKS, _BLOCK = 1000, 1 << 20  # of a header, and bytes of one that are looked at; a message has at most 64 KiB


class Texts:
    """Those of one open file with addresses of 8 bytes from its start; its first `size` bytes are looked at."""

    def __init__(self, raw: BinaryIO, size: int) -> None:
        self._raw, self._size = raw, size
        self._heap: tuple[int, bytes] = (-1, b"")

    def at(self, place: int, length: int) -> bytes:
        """Bytes of the file, fewer at its end."""
        # a place of 64 bits may be more than the system can seek to
        self._raw.seek(min(place, self._size))
        return self._raw.read(min(length, self._size))

    def attributes(self, place: int) -> dict[bytes, bytes]:
        """Attribute -> what its value begins with, of an object whose header is of the oldest form (as all of ours)."""
        found = {}
        blocks = [(place + 16, int.from_bytes(self.at(place + 8, 4), "little"))]
        for start, length in blocks:  # which grow: a header goes on elsewhere
            block, position = self.at(start, min(length, _BLOCK)), 0
            while position + 8 <= len(block):
                kind, size = struct.unpack_from("<HH", block, position)
                body = block[position + 8 : position + 8 + size]
                position += 8 + size
                if kind == _CONTINUED and len(body) >= 16 and len(blocks) < _BLOCKS:
                    blocks.append(struct.unpack_from("<QQ", body))
                elif kind == _ATTRIBUTE and len(body) >= 9:
                    version, _, *sizes = struct.unpack_from("<BBHHH", body)
                    begin, unit = (9, 1) if version == 3 else (8, 8 if version == 1 else 1)
                    value = begin + sum(-(-size // unit) * unit for size in sizes)
                    name = body[begin : begin + sizes[0]].partition(b"\0")[0]
                    found[name] = body[value : value + REFERENCE]
        return found

    def text(self, reference: bytes) -> bytes:
        """What a reference leads to. Raises ValueError if that isn't in the file."""
        if len(reference) < REFERENCE:
            raise ValueError("a text is cut off")
        length, place, number = struct.unpack_from("<IQI", reference)
        if not length:
            return b""
        heap, position = self._heap_at(place), 16
        while position + 16 <= len(heap):
            found, _, size = struct.unpack_from("<HH4xQ", heap, position)
            if found == number:
                text = heap[position + 16 : position + 16 + length]
                # the reference and the heap each say a length: both have to be true
                if len(text) == length <= size:
                    return text
                break
            position += 16 + (size + 7) // 8 * 8
        raise ValueError(f"a text of {length:,} bytes isn't in the heap that it should be in")

    def _heap_at(self, place: int) -> bytes:
        if self._heap[0] != place:
            mark, version, size = struct.unpack("<4sB3xQ", self.at(place, 16).ljust(16, b"\0"))
            if (mark, version) != (b"GCOL", 1):
                raise ValueError("a text's heap isn't where it should be")
            self._heap = place, self.at(place, size)
        return self._heap[1]
