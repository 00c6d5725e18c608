"""What a database is to its readers: key/value pairs in the byte order of the keys; opened once per process."""

from __future__ import annotations

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


def record_name(source: str, key: bytes) -> str:
    """One record in an error: source and key."""
    return f"{source}: record '{key.decode('utf-8', 'backslashreplace')}'"


def record_error(source: str, key: bytes, text: str) -> ForceregError:
    """The error about one record: its name, then `text`."""
    return ForceregError(f"{record_name(source, key)}: {text}")
