"""Key/value pairs of an LMDB in the byte order of their keys, read-only."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forcereg.errors import ForceregError

FileId = tuple[int, int]


@dataclass
class _Open:
    """An environment and how many `LmdbRecords` read it."""

    env: Any
    users: int = 0


_open: dict[FileId, _Open] = {}
_lock = threading.RLock()  # reentrant: the collector may end one reader while the same thread makes another


class LmdbRecords:
    """The records of the LMDB folder `path`; `len()` is their number.

    Raises ForceregError if the folder is missing, unreadable, damaged or empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        key, self._env = _acquire(path)
        # not at exit: a decoding thread may still be inside the environment then
        weakref.finalize(self, _release, key).atexit = False
        self._count = int(self._env.stat()["entries"])
        if self._count == 0:
            raise ForceregError(f"{path}: the LMDB is empty; expected at least one record, write it again")

    def __len__(self) -> int:
        return self._count

    def read(self, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of record `start` and all that follow."""
        import lmdb

        try:
            with self._env.begin() as txn, txn.cursor() as cursor:
                found = cursor.first()
                for _ in range(start):
                    found = cursor.next()
                if found:
                    yield from cursor.iternext()
        except lmdb.Error as error:
            raise _damaged(self.path, str(error)) from error

    def key(self, index: int) -> bytes:
        """The key of record `index`."""
        return next(self.read(index))[0]


def _acquire(path: Path) -> tuple[FileId, Any]:
    """The open environment and its key for `_release`; shared, as LMDB refuses to open a file twice in a process."""
    import lmdb

    file = path / "data.mdb"
    try:
        stat = os.stat(file)
        key = stat.st_dev, stat.st_ino
        with _lock:
            if key not in _open:
                _open[key] = _Open(lmdb.open(str(path), readonly=True, lock=False, readahead=True, max_spare_txns=4))
            _open[key].users += 1
            env = _open[key].env
    except FileNotFoundError:
        raise ForceregError(f"no LMDB at {path} (no data.mdb there)") from None
    except OSError as error:
        raise ForceregError(f"{path}: cannot be opened ({error.strerror}); check its permissions") from error
    except lmdb.Error as error:
        if not os.access(file, os.R_OK):
            raise ForceregError(f"{path}: no permission to read data.mdb; check its owner and mode") from error
        raise _damaged(path, str(error)) from error
    # Reading mapped pages beyond the file's end would kill the process, so a cut file must be found here.
    promised = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if stat.st_size < promised:
        _release(key)
        raise _damaged(path, f"data.mdb has {stat.st_size} bytes, its header promises {promised}")
    return key, env


def _release(key: FileId) -> None:
    """One user less; the last one closes, under the lock, so that nobody opens what is still half open."""
    with _lock:
        _open[key].users -= 1
        if not _open[key].users:
            _open.pop(key).env.close()


def _damaged(path: Path, found: str) -> ForceregError:
    return ForceregError(f"{path}: not a readable LMDB ({found}); copy or write it again")
