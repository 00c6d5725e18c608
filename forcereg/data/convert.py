"""Writing sets: Datum records into an LMDB that appears whole or not at all.

The converters take a `track` function so that callers can show progress; it gets an iterable, a
description and the length (None: unknown) and yields the same items.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forcereg.data.budget import DECODING
from forcereg.data.datum import shape_text
from forcereg.data.prefetch import default_workers
from forcereg.errors import ForceregError
from forcereg.schema import Datum

COMMIT = 1000  # records per transaction, as Caffe's converters,
COMMIT_BYTES = 1 << 26  # unless they are large: a transaction is held in memory
MAP_SIZE = 1 << 36  # address space only, doubled when it is full; the file grows with its records

Record = tuple[bytes, bytes | bytearray]
Track = Callable[[Iterable[Any], str, int | None], Iterable[Any]]


@dataclass(frozen=True)
class Written:
    """A file or LMDB that a converter made."""

    path: Path
    records: int
    shape: tuple[int, ...]


def silent(items: Iterable[Any], description: str, total: int | None) -> Iterable[Any]:
    """A `track` that shows nothing."""
    return items


def write_set(
    path: Path, images: np.ndarray, labels: np.ndarray, digits: int, force: bool, track: Track = silent
) -> Written:
    """Write images (N, C, H, W) uint8 and labels (N,) as LMDB `path`; keys are `digits`-digit indices.

    Raises ForceregError if `path` exists (unless `force` and it is an LMDB) or cannot be written.
    """
    shape = images.shape[1:]
    channels, height, width = (int(size) for size in shape)

    def records() -> Iterator[Record]:
        rows = zip(images, labels.tolist(), strict=True)
        for index, (image, label) in enumerate(track(rows, f"writing {path.name}", len(images))):
            datum = Datum(channels=channels, height=height, width=width, data=image.tobytes(), label=label)
            yield b"%0*d" % (digits, index), datum.SerializeToString()

    write_lmdb(path, records(), force)
    return Written(path, len(images), shape)


def write_lmdb(path: Path, records: Iterable[Record], force: bool) -> None:
    """Write records, in ascending key order, as LMDB folder `path`: built beside it, then renamed.

    One that is replaced passes its modes on. Raises ForceregError if `path` is in the way or the system refuses.
    """
    check_free([path], force)
    # cut: 60 characters of four bytes and what is put around them are a name that any file system takes
    temporary = path.with_name(f".{path.name[:60]}.{secrets.token_hex(4)}.tmp")
    old = temporary.with_suffix(".old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir(0o700 if path.is_dir() else 0o777)  # nobody else's to read until it has the other's mode
        _fill(temporary, records, path)
        if path.is_dir():
            for name in ("data.mdb", "."):
                if (path / name).exists():
                    shutil.copymode(path / name, temporary / name)
        # no folder can be replaced in one step; if the second rename fails, the old one goes back to its place below
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except OSError as error:
        raise ForceregError(f"cannot write {path}: {error.strerror}; check space and permissions") from error
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _fill(folder: Path, records: Iterable[Record], target: Path) -> None:
    import lmdb

    def put(chunk: list[Record]) -> None:
        try:
            with env.begin(write=True) as txn:
                for key, value in chunk:
                    # keys ascend: pages are filled one behind the other, and none is split
                    txn.put(key, value, append=True)
        except lmdb.MapFullError:
            # the transaction was given up with all of its records, so that the whole chunk comes again
            env.set_mapsize(2 * env.info()["map_size"])
            put(chunk)

    try:
        # the lock file would be mapped, and a full disk end the process; nobody else knows of this folder
        with contextlib.closing(lmdb.open(str(folder), MAP_SIZE, sync=False, lock=False, mode=0o666)) as env:
            for chunk in _chunks(records):
                put(chunk)
                chunk.clear()  # before the next one is made
            # once: nobody relies on the folder before it has its name
            env.sync(True)
    except lmdb.Error as error:
        raise ForceregError(f"cannot write {target}: {error}; check space and permissions") from error


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    chunk: list[Record] = []
    size = 0
    for record in records:
        chunk.append(record)
        size += len(record[1])
        # or the last one would stay in memory beside the next chunk
        del record
        if len(chunk) == COMMIT or size >= COMMIT_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def check_free(paths: Iterable[Path], force: bool) -> None:
    """Raise ForceregError if one of `paths` exists, unless `force` and it is a file or an LMDB folder."""
    for path in paths:
        if not path.exists():
            continue
        if not force:
            raise ForceregError(f"{path} exists; give --force to replace it, or another folder")
        if path.is_dir() and not set(os.listdir(path)) <= {"data.mdb", "lock.mdb"}:
            raise ForceregError(f"{path} is not an LMDB (it holds other files); remove it or choose another folder")


def require_same_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...], fix: str = "") -> None:
    """Raise ForceregError, which ends with `fix`, unless the image called `name` has the `expected` shape."""
    if shape != expected:
        raise ForceregError(f"{name}: is {shape_text(shape)}, expected {shape_text(expected)} as the first image{fix}")


def in_order(
    function: Callable[[Any], Any], items: Iterable[Any], weigh: Callable[[Any], int] = lambda item: 0
) -> Iterator[Any]:
    """`function` of each item, in order, worked out by several threads a bounded number of items ahead.

    `weigh`: bytes that an item takes from then on until the result behind its own is asked for; together no more than
    the budget for decoding, or a single item.
    """
    workers = default_workers()
    waiting: deque[tuple[Future[Any], int]] = deque()
    held = 0
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                size = weigh(item)
                while waiting and (len(waiting) > 2 * workers or held + size > DECODING.limit):
                    freed = waiting[0][1]
                    yield waiting.popleft()[0].result()
                    # behind the yield: until the next one is asked for, the caller still has it
                    held -= freed
                waiting.append((pool.submit(function, item), size))
                held += size
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            # whoever asks may have given up midway
            pool.shutdown(cancel_futures=True)
