"""Key/value pairs of databases in the byte order of their keys, read-only; databases are opened once per process."""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forcereg.errors import ForceregError


class Records(ABC):
    """The records of the database folder `path`.

    `identity` is equal for equal content, as far as the file system tells.
    """

    path: Path
    identity: Hashable

    @abstractmethod
    def count(self, most: int | None = None) -> int | None:
        """How many there are; None if more than `most`, where that is faster to find out."""

    @abstractmethod
    def read(self, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of record `start` (modulo their number) and all that follow. Raises ForceregError."""

    def key(self, index: int) -> bytes:
        """The key of record `index`."""
        return next(self.read(index))[0]


class LmdbRecords(Records):
    """The records of the LMDB folder `path`; `len()` is their number.

    Raises ForceregError if the folder is missing, unreadable, damaged or empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._env = _open_lmdb(self, path)
        stat = os.stat(path / "data.mdb")
        self.identity = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)
        self._count = int(self._env.stat()["entries"])
        if self._count == 0:
            raise ForceregError(f"{path}: the LMDB is empty; expected at least one record, write it again")

    def __len__(self) -> int:
        return self._count

    def count(self, most: int | None = None) -> int:
        """See Records; known at once."""
        return self._count

    def read(self, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
        """See Records."""
        import lmdb

        try:
            with self._env.begin() as txn, txn.cursor() as cursor:
                found = cursor.first()
                for _ in range(start % self._count):
                    found = cursor.next()
                if found:
                    yield from cursor.iternext()
        except lmdb.Error as error:
            raise _damaged(self.path, str(error)) from error


def open_records(path: Path, named: str | None = None) -> Records:
    """The records of the LMDB or LevelDB folder `path`, called `named` in errors. Raises ForceregError."""
    named = named or str(path)
    if os.path.isfile(path):
        raise ForceregError(f"source '{named}' is a file; expected the folder that holds data.mdb or CURRENT")
    if not os.path.lexists(path):
        sets = {"mnist": f"mnist IDX_DIR {path.parent}", "cifar": f"cifar10 SRC {path.parent}"}
        maker = next((command for name, command in sets.items() if name in named), f"images LIST {path}")
        raise ForceregError(f"source '{named}': no LMDB at {path}; make one with `forcereg data {maker}`")
    if os.path.isfile(path / "CURRENT") and not os.path.exists(path / "data.mdb"):
        from forcereg.data.leveldb_records import LevelDbRecords

        return LevelDbRecords(path)
    return LmdbRecords(path)


@dataclass
class _Open:
    """An open database, how many readers use it, and how it is closed."""

    handle: Any
    close: Callable[[], None]
    users: int = 0


_open: dict[Hashable, _Open] = {}
_lock = threading.RLock()  # reentrant: the collector may end one reader while the same thread makes another


def shared_handle(user: object, key: Hashable, opener: Callable[[], tuple[Any, Callable[[], None]]]) -> Any:
    """The open database `key`, opened by `opener` (handle and how to close it) unless it is open already.

    It is closed when the last `user` is gone.
    """
    with _lock:
        if key not in _open:
            _open[key] = _Open(*opener())
        _open[key].users += 1
        # not at exit: a decoding thread may still be inside the database then
        weakref.finalize(user, _release, key).atexit = False
        return _open[key].handle


def _release(key: Hashable) -> None:
    """One user less; the last one closes, under the lock, so that nobody opens what is still half open."""
    with _lock:
        _open[key].users -= 1
        if not _open[key].users:
            _open.pop(key).close()


def _open_lmdb(user: object, path: Path) -> Any:
    """The environment; shared, as LMDB refuses to open a file twice in a process."""
    import lmdb

    def opener() -> tuple[Any, Callable[[], None]]:
        env = lmdb.open(str(path), readonly=True, lock=False, readahead=True, max_spare_txns=4)
        return env, env.close

    file = path / "data.mdb"
    try:
        stat = os.stat(file)
        env = shared_handle(user, (stat.st_dev, stat.st_ino), opener)
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
        raise _damaged(path, f"data.mdb has {stat.st_size} bytes, its header promises {promised}")
    return env


def _damaged(path: Path, found: str) -> ForceregError:
    return ForceregError(f"{path}: not a readable LMDB ({found}); copy or write it again")
