"""HDF5 files as one image: composed in memory, written in one step with a checksum, checked when read.

HDF5 itself does not notice a changed weight, and some damaged structures make it loop for ever. So 16 bytes
follow what HDF5 looks at: `forcereg` and the CRC-32 of all before, in hex. Other readers ignore them, HDF5
drops them when it edits a file, and a file without them, as Caffe's are, is read unchecked.
"""

from __future__ import annotations

import contextlib
import io
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import h5py

from forcereg.errors import ForceregError
from forcereg.files import write_bytes

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MARK = b"forcereg"
_FOOTER = len(_MARK) + 8  # bytes
_END_OF_CONTENTS = 40  # where the oldest superblock holds it, 8 bytes little-endian
_PIECE = 1 << 20  # bytes
# What h5py raised for files without checksum when bytes in every part of them were changed; a link that leads
# nowhere gives None, hence AttributeError.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)


def write(path: str | Path, fill: Callable[[h5py.File], None]) -> None:
    """Let `fill` compose an HDF5 file in memory (once its size) and write it, or leave the old one in place.

    So all that can fail on disk is one plain write: h5py would tell of a full disk only while closing.
    Raises ForceregError if the file cannot be written.
    """
    image = io.BytesIO()
    with h5py.File(image, "w", libver="earliest") as file:  # earliest: Caffe's HDF5 may be 1.8
        fill(file)
    checksum = zlib.crc32(image.getbuffer())
    image.seek(0, os.SEEK_END)
    image.write(_MARK + b"%08x" % checksum)
    write_bytes(path, image.getbuffer())


@contextlib.contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file; what is wrong with it, found now or in the block, raises ForceregError."""
    try:
        raw = path.open("rb")
    except OSError as exc:
        raise ForceregError(f"cannot read {path}: {(exc.strerror or str(exc)).lower()}; check the path") from exc
    with raw:  # h5py reads through it: no file locks, which read-only and network file systems refuse
        _check_signature(raw.read(4096), path)
        _check_footer(raw, path)
        try:
            with h5py.File(raw, "r") as file:
                yield file
        except _DAMAGE as exc:
            raise _damaged(path, " ".join(str(exc).split())) from exc


def _check_signature(head: bytes, path: Path) -> None:
    if head.startswith(_SIGNATURE):
        return
    if not head:
        raise ForceregError(f"{path}: the file is empty; use another snapshot")
    # a message's first tag, and bytes that text does not have
    if path.suffix in (".caffemodel", ".solverstate") or (head[0] in b"\x08\x0a\xa2" and min(head) < 9):
        raise ForceregError(
            f"{path}: this is a binaryproto file, and only HDF5 is read for now; "
            "write it with `snapshot_format: HDF5` (*.h5)"
        )
    raise ForceregError(f"{path}: this is not an HDF5 file; expected a *.caffemodel.h5 or *.solverstate.h5")


def _check_footer(raw: BinaryIO, path: Path) -> None:
    """Compare the checksum where there is one, and notice a footer that was cut or overwritten."""
    length = raw.seek(0, os.SEEK_END) - _FOOTER
    footer = _read_at(raw, max(length, 0), _FOOTER)
    if footer.startswith(_MARK):
        if footer != _MARK + b"%08x" % _checksum(raw, length):
            raise _damaged(path, "its checksum is wrong")
        return
    end = int.from_bytes(_read_at(raw, _END_OF_CONTENTS, 8), "little")
    if 0 < length + _FOOTER - end <= _FOOTER:
        raise _damaged(path, "its last bytes are missing or overwritten")


def _checksum(raw: BinaryIO, length: int) -> int:
    """CRC-32 of the first `length` bytes, read in pieces."""
    raw.seek(0)
    checksum = 0
    for start in range(0, length, _PIECE):
        checksum = zlib.crc32(raw.read(min(_PIECE, length - start)), checksum)
    return checksum


def _read_at(raw: BinaryIO, offset: int, length: int) -> bytes:
    raw.seek(offset)
    return raw.read(length)


def _damaged(path: Path, cause: str) -> ForceregError:
    return ForceregError(f"{path}: damaged or truncated ({cause}); use another snapshot")
