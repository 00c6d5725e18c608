"""Reading files without waiting for what isn't one, and writing them so that a reader never sees half of one.

A file is written beside its target, flushed, then renamed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from forcereg.errors import ForceregError

_FIXES = {
    errno.ENOSPC: "free some space or write elsewhere",
    errno.EDQUOT: "free some space or write elsewhere",
    errno.EFBIG: "raise the file size limit (`ulimit -f`) or write elsewhere",
    errno.EACCES: "make its folder writable or write elsewhere",
    errno.EPERM: "make its folder writable or write elsewhere",
    errno.EROFS: "write elsewhere",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENXIO: "have something read it first, or write elsewhere",
}


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_file(path: str | Path) -> BinaryIO:
    """A regular file, or a link to one, open for reading bytes.

    Raises OSError, whose `strerror` says why, for what can't be opened or is a folder, pipe, socket or device (a pipe
    would be waited for, a device may have no end); ValueError for a name that no system has.
    """
    check_regular(path)
    # not blocking: a pipe that has taken the file's place since would be waited for
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        _check_mode(path, os.fstat(descriptor).st_mode)  # it may be another one by now
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_file(path: str | Path, most: int | None = None) -> bytes:
    """The content of a regular file. Raises as `open_file`, and OSError for one of more than `most` bytes."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, expected at most {most:,}", os.fspath(path))
        # as much as it has: the memory for `most` bytes would be taken at once
        return file.read() if most is None else file.read(min(most, max(size, 1 << 20)))


def differs(path: str | Path, data: bytes) -> bool:
    """Whether there is something with other content. Raises ForceregError for what is no file or can't be read."""
    try:
        return read_file(path) != data
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise refused(path, error) from None


@contextlib.contextmanager
def append_text(path: str | Path) -> Iterator[TextIO]:
    """A file open for more lines of text, made if there is none. Raises ForceregError if it can't be written."""
    try:
        if os.path.exists(path):
            check_regular(path)
        with open(path, "a", encoding="utf-8") as file:
            yield file
    except OSError as error:
        # the block is the caller's, and may open files of its own
        if error.filename not in (None, os.fspath(path), os.path.realpath(path)):
            raise  # something else in the block failed
        raise refused(path, error) from None


def check_regular(path: str | Path) -> None:
    """Raises OSError as `open_file`, without opening anything, for a path that a library will open."""
    _check_mode(path, os.stat(path).st_mode)


def _check_mode(path: str | Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, f"it is {kind}, expected a regular file", os.fspath(path))


def _no_folder(path: Path) -> str:
    """Why a path that is no folder isn't one, and what to do."""
    # the nearest that exists, a dead link too, says why the rest can't be
    there = next((one for one in (path, *path.parents) if os.path.lexists(one)), path)
    if os.path.lexists(there) and not there.is_dir():
        return f"{there} is no folder; choose another place"
    return f"there is no folder {path}; make it first"


@contextlib.contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write; it becomes `path` when the block ends, and vanishes if the block fails.

    The old file stays whole until the new one is on disk, and the new one keeps its mode. Only a killed process
    leaves `.<name>.<hex>.tmp`.
    Raises ForceregError for what the system refuses: full disk, file size limit, permission, missing folder.
    """
    target = Path(os.path.realpath(path))  # a link is kept and what it points to is replaced
    # 60 characters of at most 4 bytes and the rest stay below the 255 bytes that a name may have
    temp = target.with_name(f".{target.name[:60]}.{secrets.token_hex(4)}.tmp")
    try:
        # here, or the error would name the temporary file's folder by the system's words alone
        if not target.parent.is_dir():
            raise ForceregError(f"cannot write {path}: {_no_folder(target.parent)}")
        there = _mode(target)
        if there is not None and not stat.S_ISREG(there):
            raise ForceregError(f"cannot write {path}: it is no regular file; choose another name")
        mode = None if there is None else stat.S_IMODE(there)
        # made at once: a folder that may not be written to is told before the work that the block is
        _create(temp, mode)
        yield temp
        if mode is not None:
            os.chmod(temp, mode)
        # before the rename: else a crash may leave the new name with nothing in it
        _sync(temp)
        os.replace(temp, target)
    except OSError as exc:
        if exc.filename not in (None, str(temp), str(target), str(target.parent)):
            raise  # something else in the block failed
        raise refused(path, exc) from exc
    finally:
        with contextlib.suppress(OSError):
            temp.unlink()
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder; the file itself is complete
        _sync(target.parent)


def check_writable(path: str | Path) -> None:
    """Raises ForceregError as `replace_file` for a file there, as far as that is known now, and changes nothing."""
    with contextlib.suppress(_NotMeant), replace_file(path):
        raise _NotMeant


class _NotMeant(Exception):
    """Leaves a block that was to write a file."""


def _mode(path: Path) -> int | None:
    """The mode of what is there, None for nothing. Raises OSError for a name that can't be."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def _create(temp: Path, mode: int | None) -> None:
    """Makes the temporary file, empty; one whose mode will be another's is nobody else's to read until then."""
    os.close(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600))


def write_bytes(path: str | Path, data: bytes | memoryview) -> None:
    """Replace `path` by `data` in one step. Raises ForceregError as `replace_file`."""
    with replace_file(path) as temp:
        temp.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8) in one step. Raises ForceregError as `replace_file`."""
    # as bytes: text files would get line ends of the system's
    write_bytes(path, text.encode("utf-8"))


def write_all(file: io.RawIOBase, data: bytes) -> None:
    """Writes all of it; a disk that fills up takes a part first. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) or 0 :]


def _sync(path: Path) -> None:
    """Force a file or folder to disk; also tells write errors that the system held back."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refused(path: str | Path, exc: OSError) -> ForceregError:
    """The error for a file that the system won't let us write: the path, what it said, what to do."""
    cause = exc.strerror or " ".join(str(exc).split())
    fix = _FIXES.get(exc.errno or 0, "check the disk or write elsewhere")
    return ForceregError(f"cannot write {path}: {cause[:1].lower()}{cause[1:]}; {fix}")


def make_folder(path: Path) -> None:
    """With its parents. Raises ForceregError if the system refuses."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(path, error) from error
