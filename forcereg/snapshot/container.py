"""Snapshot files from outside: opened, written in one step, with a checksum that tells every damage.

Neither HDF5 nor protobuf notices a changed weight. So our files end in 16 bytes: `forcereg` and the CRC-32 of
all before, in hex. Other readers don't look at them. A file without them, as Caffe's are, is read unchecked.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from forcereg.errors import ForceregError
from forcereg.system.files import open_file, replace_file

FOOTER = 16  # bytes
HDF5 = b"\x89HDF\r\n\x1a\n"
"""What an HDF5 file begins with."""
_ZIPS = (b"PK\3\4", b"PK\5\6")  # the second: one of nothing
_MARK = b"forcereg"
_PIECE = 1 << 20  # bytes


def write(path: str | Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file of these pieces and the checksum, or leave the old one in place.

    Raises ForceregError if the file cannot be written.
    """
    checksum = 0
    # the checksum goes along with the pieces, which may be gigabytes
    with replace_file(path) as temp, temp.open("wb") as file:
        for piece in pieces:
            checksum = zlib.crc32(piece, checksum)
            file.write(piece)
        file.write(_footer(checksum))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file, open for reading. Raises ForceregError if it is empty, or the system can't open or read it."""
    try:
        raw = open_file(path)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        raise _unreadable(path, exc, "check the path") from exc
    try:
        with raw:
            # to protobuf an empty file is a message without fields
            if not raw.read(1):
                raise ForceregError(f"{path}: the file is empty; use another snapshot")
            yield raw
    except OSError as exc:
        raise _unreadable(path, exc, "check the disk or use another snapshot") from exc


def _unreadable(path: Path, exc: OSError | ValueError, fix: str) -> ForceregError:
    reason = (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
    return ForceregError(f"cannot read {path}: {reason.lower()}; {fix}")


def size(raw: BinaryIO) -> int:
    """The file's length in bytes."""
    return raw.seek(0, os.SEEK_END)


def checksum_fits(raw: BinaryIO) -> bool | None:
    """Whether the checksum is right; None if the file doesn't end in one."""
    length = max(size(raw) - FOOTER, 0)
    raw.seek(length)
    footer = raw.read(FOOTER)
    if not footer.startswith(_MARK):
        return None
    raw.seek(0)
    checksum = 0
    # piece by piece: a model needn't fit memory twice
    for start in range(0, length, _PIECE):
        checksum = zlib.crc32(raw.read(min(_PIECE, length - start)), checksum)
    return footer == _footer(checksum)


class Damaged(ForceregError):
    """A file that is not what was written."""


def damaged(path: Path, cause: object) -> Damaged:
    """The error for a file that is not what was written."""
    return Damaged(f"{path}: damaged or truncated ({' '.join(str(cause).split())}); use another snapshot")


def _footer(checksum: int) -> bytes:
    return _MARK + b"%08x" % checksum


def form(raw: BinaryIO) -> str:
    """The format of an open file, by its first bytes: "hdf5", "npz", "safetensors" or, of all else, "binary"."""
    raw.seek(0)
    head = raw.read(9)
    raw.seek(0)
    if head.startswith(HDF5):
        return "hdf5"
    if head.startswith(_ZIPS):
        return "npz"
    # the length of a header in JSON; neither its zeros nor the brace stand there in a model or state of Caffe's
    return "safetensors" if head[4:] == b"\0\0\0\0{" else "binary"


def is_binary(path: str | Path) -> bool:
    """Whether what is there is none of the other formats. Raises ForceregError as `snapshot.read`."""
    with opened(Path(path)) as raw:
        return form(raw) == "binary"
