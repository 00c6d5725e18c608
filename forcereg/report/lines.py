"""The lines of a log, read piece by piece: of any size, compressed or not, whatever is in it."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forcereg.errors import ForceregError
from forcereg.system.files import open_file

PIECE = 1 << 20
LONGEST = 8 << 20
"""Bytes of a line that is given; of a longer one nothing is."""
UNPACKED = 1 << 30
"""Bytes that a compressed log may come to."""


def lines(path: Path) -> Iterator[str]:
    """Each line without its end; an empty one for one beyond `LONGEST`. A carriage return ends one too.

    Raises ForceregError for a file that can't be read, and for a compressed one that is damaged or has too much in it.
    """
    try:
        with open_file(path) as file:
            # by content: logs that are put away have names of many kinds
            packed = file.peek(2)[:2] == b"\x1f\x8b"  # type: ignore[attr-defined]
            source: Any = gzip.GzipFile(fileobj=file) if packed else file
            yield from _lines(source, path, UNPACKED if packed else None)
    # all that gzip raises for damage
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ForceregError(f"{path}: cannot be read ({reason}); correct the path") from error


def _lines(file: Any, path: Path, most: int | None) -> Iterator[str]:
    read, part, long = 0, b"", False
    while data := file.read(PIECE):
        read += len(data)
        # a few KiB may unpack to anything
        if most is not None and read > most:
            raise ForceregError(f"{path}: unpacked it has more than {most >> 20:,} MiB; give a part of it")
        # progress bars go back to the line's beginning and write on
        *whole, rest = data.replace(b"\r", b"\n").split(b"\n")
        for line in whole:
            yield "" if long or len(part) + len(line) > LONGEST else _text(part + line)
            part, long = b"", False
        # not kept: a line without end would take all memory
        long = long or len(part) + len(rest) > LONGEST
        part = b"" if long else part + rest
    if part:
        yield _text(part)


def _text(line: bytes) -> str:
    return line.decode(errors="replace").removeprefix("\ufeff")
