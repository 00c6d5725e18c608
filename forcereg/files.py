"""Writing files so that a reader never sees half of one: beside the target, flushed, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from forcereg.errors import ForceregError

_FIXES = {
    errno.ENOSPC: "free some space or write elsewhere",
    errno.EDQUOT: "free some space or write elsewhere",
    errno.EFBIG: "raise the file size limit (`ulimit -f`) or write elsewhere",
    errno.EACCES: "make its folder writable or write elsewhere",
    errno.EPERM: "make its folder writable or write elsewhere",
    errno.EROFS: "write elsewhere",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextlib.contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write; it becomes `path` when the block ends, and vanishes if the block fails.

    The old file stays whole until the new one is on disk. Only a killed process leaves `.<name>.<hex>.tmp`.
    Raises ForceregError for what the system refuses: full disk, file size limit, permission, missing folder.
    """
    target = Path(os.path.realpath(path))  # a link is kept and what it points to is replaced
    # 60 characters of at most 4 bytes and the rest stay below the 255 bytes that a name may have
    temp = target.with_name(f".{target.name[:60]}.{secrets.token_hex(4)}.tmp")
    try:
        if not target.parent.is_dir():
            raise ForceregError(f"cannot write {path}: there is no folder {target.parent}; make it first")
        if target.exists() and not target.is_file():
            raise ForceregError(f"cannot write {path}: it is no regular file; choose another name")
        yield temp
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


def write_bytes(path: str | Path, data: bytes | memoryview) -> None:
    """Replace `path` by `data` in one step. Raises ForceregError as `replace_file`."""
    with replace_file(path) as temp:
        temp.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8) in one step. Raises ForceregError as `replace_file`."""
    write_bytes(path, text.encode("utf-8"))


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
