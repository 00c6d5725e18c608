"""Compressed streams and tars of anybody's, read in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from forcereg.data.budget import DECODING, MIB, OPTION
from forcereg.errors import ForceregError
from forcereg.system.files import open_file

PIECE = 1 << 20
HEADERS = 1 << 20
"""Bytes that may stand between the contents of two members of a tar."""

Damage = (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error)
"""What reading a damaged one raises."""


@contextmanager
def unpacked(path: Path) -> Iterator[BinaryIO]:
    """`path` as a stream of what its first bytes say is compressed there, or of itself. Raises `Damage`."""
    with open_file(path) as file:
        # by its content: names of downloads say anything
        start = file.read(6)
        file.seek(0)
        if start.startswith(b"\x1f\x8b"):
            yield cast(BinaryIO, gzip.GzipFile(fileobj=file))
        elif start.startswith(b"BZh"):
            yield cast(BinaryIO, bz2.BZ2File(file))
        elif start.startswith(b"\xfd7zXZ\0"):
            yield cast(BinaryIO, io.BufferedReader(_Xz(file), PIECE))
        else:
            yield file


def read_up_to(stream: BinaryIO, size: int) -> bytearray:
    """The next `size` bytes, fewer where the stream ends; no more memory is taken than there are bytes."""
    data = bytearray()
    while piece := stream.read(min(PIECE, size - len(data))):
        data += piece
    return data


def tar_files(path: Path, wanted: Any) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the plain files of a tar whose names `wanted` accepts; nothing is extracted to disk.

    Raises ForceregError and `Damage`, also for a tar that is cut.
    """
    with unpacked(path) as stream:
        forward = _Forward(path, stream)
        with _told():
            tar: Any = tarfile.TarFile(fileobj=cast(Any, forward))
        while True:
            with _told():
                member = tar.next()
            if member is None:
                break
            tar.members.clear()  # it would keep all
            tar.pax_headers.clear()
            forward.headers = HEADERS
            # a sparse one may promise any size and hold nothing
            if member.isreg() and not member.issparse() and wanted(member.name):
                yield member.name, forward.content(member.name, member.size)
        forward.finish()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (ForceregError, *Damage):
        raise
    except Exception as error:  # of a damaged header tarfile raises anything
        raise tarfile.ReadError(str(error) or type(error).__name__) from error


class _Xz(io.RawIOBase):
    """What a file in the xz format holds; one that asks for a huge dictionary is refused."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._decoder = file, self._start()

    def _start(self) -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=max(128 * MIB, DECODING.limit // 2))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            packed = self._file.read(1 << 16) if self._decoder.needs_input else b""
            if self._decoder.eof:  # another stream may follow, behind zeros
                packed = (self._decoder.unused_data + self._file.read(1 << 16)).lstrip(b"\0")
                if not packed:
                    return 0
                self._decoder = self._start()
            elif self._decoder.needs_input and not packed:
                raise EOFError("it ends before its end-of-stream mark")
            data = self._decoder.decompress(packed, len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Forward:
    """A stream with the seeking that tarfile needs to go forward; `headers`: what it may read until a file's content.

    All that is unpacked counts against the budget: what takes more isn't a set of small images.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path, self.stream = path, stream
        self.at, self.headers = 0, HEADERS

    def read(self, size: int) -> bytes:
        """The next `size` bytes of headers."""
        self.headers -= size
        if size < 0 or self.headers < 0:
            raise ForceregError(f"{self.path}: more than {HEADERS // MIB} MiB of headers in a row; not a tar of images")
        return bytes(self._take(size))

    def _take(self, size: int) -> bytearray:
        data = read_up_to(self.stream, size)
        self.at += len(data)
        if self.at > DECODING.limit:
            raise ForceregError(
                f"{self.path}: unpacks to more than {DECODING.limit / MIB:,.0f} MiB; get it again, or raise {OPTION} "
                "if it is meant"
            )
        return data

    def content(self, name: str, size: int) -> bytes:
        """The content of the file whose header was read last."""
        # before anything is read: a header may promise any size
        if size < 0 or self.at + size > DECODING.limit:
            raise ForceregError(
                f"{self.path}: {name} would be {size / MIB:,.0f} MiB, all together may be {DECODING.limit / MIB:,.0f}; "
                f"get it again, or raise {OPTION} if it is meant"
            )
        data = self._take(size)
        if len(data) < size:
            raise EOFError(f"it ends inside {name}")
        return bytes(data)

    def tell(self) -> int:
        return self.at

    def seek(self, position: int) -> None:
        if position < self.at:
            raise tarfile.StreamError("a member lies before the one in front of it")
        while self.at < position and self._take(min(PIECE, position - self.at)):
            pass

    def finish(self) -> None:
        """Reads to the very end: tarfile takes a cut file for a shorter one."""
        while self._take(PIECE):
            pass
