"""Records of a LevelDB, read by plyvel without touching its folder."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from forcereg.data.records import Records, shared_handle
from forcereg.errors import ForceregError
from forcereg.system.files import check_regular

_FILE = re.compile(r"CURRENT|MANIFEST-\d+|\d+\.(?:ldb|sst|log)")
_WRITE_BUFFER = 64 << 20  # the last records may be in a log only, which is read into memory and written as tables


@dataclass(eq=False)
class _Handle:
    """An open LevelDB and, once a reader has come to its end, its number of records."""

    db: Any
    count: int | None = None


class LevelDbRecords(Records):
    """The records of the LevelDB folder `path`.

    Opening a LevelDB locks and rewrites it. So what is opened is a temporary folder of links to its files: the
    database stays as it is, may be read-only, and several processes may read it.
    Raises ForceregError if plyvel isn't installed or the folder is missing, unreadable, damaged or empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            import plyvel
        except ImportError as error:
            raise ForceregError(
                f"{path}: is a LevelDB, which is read by plyvel ({error}); run pip install 'forcereg[leveldb]' or "
                "convert it to LMDB"
            ) from error
        try:
            self.identity = _identity(path)
            self._handle: _Handle = shared_handle(self, self.identity, lambda: _open(path))
        except plyvel.Error as error:
            raise self._damaged(error) from error
        except OSError as error:
            name, reason = error.filename or path, error.strerror or error
            raise ForceregError(f"{name}: cannot be opened ({reason}); check its permissions and free space") from error
        if next(self._keys(), None) is None:
            raise ForceregError(f"{path}: the LevelDB is empty; expected at least one record, write it again")

    def count(self, most: int | None = None) -> int | None:
        """See Records. A LevelDB doesn't know: its keys are counted, up to one more than `most`, and only once."""
        if self._handle.count is None:
            found = sum(1 for _ in islice(self._keys(), None if most is None else most + 1))
            if most is None or found <= most:
                self._handle.count = found
        return self._handle.count

    def read(self, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
        """See Records. Skipping reads, too."""
        if self._handle.count is not None:
            start %= self._handle.count
        reader = self._iterate(True)
        skipped = sum(1 for _ in islice(reader, start))
        first = next(reader, None)
        if first is None:
            # the end came while skipping, and with it the number: begin again behind so many rounds
            self._handle.count, start = skipped, start % skipped
            yield from self.read(start)
            return
        for record in chain([first], reader):
            yield record
            start += 1
        self._handle.count = start

    def _keys(self) -> Iterator[bytes]:
        return self._iterate(False)

    def _iterate(self, values: bool) -> Iterator[Any]:
        import plyvel

        last: bytes | None = None
        try:
            # one pass after another over the set: a cache would hold what isn't asked for again soon
            options = {"include_value": values, "fill_cache": False, "verify_checksums": True}
            with self._handle.db.iterator(**options) as records:
                for record in records:
                    last = record[0] if values else record
                    yield record
        except plyvel.Error as error:
            raise self._damaged(error, last) from error

    def _damaged(self, error: Exception, last: bytes | None = None) -> ForceregError:
        # plyvel hands on what LevelDB said, as bytes
        (found,) = error.args or ("no reason given",)
        text = found.decode("utf-8", "backslashreplace") if isinstance(found, bytes) else str(found)
        text = re.sub(r"/\S*/(?=\d|MANIFEST|CURRENT)", "", " ".join(text.split()))  # of the temporary folder
        after = "" if last is None else f" behind record '{last.decode('utf-8', 'backslashreplace')}'"
        return ForceregError(f"{self.path}: not a readable LevelDB{after} ({text}); copy or write it again")


def _identity(path: Path) -> tuple[Any, ...]:
    """Equal as long as nobody wrote to the database."""
    try:
        names = [name for name in sorted(os.listdir(path)) if _FILE.fullmatch(name)]
        for name in names:
            check_regular(path / name)
        stats = [(name, os.stat(path / name)) for name in names]
    except FileNotFoundError:
        raise ForceregError(f"no LevelDB at {path} (no CURRENT there)") from None
    return tuple((name, stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


def _open(path: Path) -> tuple[_Handle, Callable[[], None]]:
    import plyvel

    folder = tempfile.mkdtemp(prefix="forcereg-leveldb-")
    try:
        # only what a LevelDB consists of: its lock would be taken, its log be moved
        for name in os.listdir(path):
            if _FILE.fullmatch(name):
                # links, not copies: sets are large, and LevelDB writes new files of its own beside them
                os.symlink(os.path.abspath(path / name), os.path.join(folder, name))
        handle = _Handle(plyvel.DB(folder, create_if_missing=False, write_buffer_size=_WRITE_BUFFER))
    except BaseException:
        # BaseException: Ctrl-C leaves no folder behind either
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(handle, shutil.rmtree, folder, True)  # at exit at the latest
    return handle, _nothing  # plyvel closes it itself, behind the last iterator


def _nothing() -> None:
    pass
