"""Decoding ahead in the background: sets that fit memory once and for all, larger ones as a stream."""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, count, islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from forcereg.data.datum import Layout, Map
from forcereg.data.records import LmdbRecords
from forcereg.errors import ForceregError

CHUNK = 256  # records per step of the background thread
Check = Callable[[int, np.ndarray], None]  # (index of the first record, labels) -> raises
Item = tuple[np.ndarray | list[np.ndarray], np.ndarray] | Exception


class Source(Protocol):
    """Undistorted batches by position."""

    def take(self, start: int, batch: int, check: Check) -> tuple[Tensor | list[Tensor], Tensor]:
        """Records start, start+1, ... (wrapping): images (batch, C, H, W) and float32 labels, on the device.

        Images that may differ in size come as a list. Labels not yet seen by this source go through `check` first.
        """

    def close(self) -> None:
        """Stop working in the background."""


class DecodedSet:
    """All records of a set as one tensor, filled by a thread that ends when nobody holds the set."""

    def __init__(self, records: LmdbRecords, layout: Layout, device: torch.device) -> None:
        self.count = len(records)
        self.device = device
        dtype = torch.uint8 if layout.dtype == np.uint8 else torch.float32
        self.images = torch.empty((self.count, *layout.shape), dtype=dtype)
        self.labels = np.empty(self.count, np.int64)
        self.float_labels = torch.empty(0)
        self.ready = 0
        self.complete = False
        self.error: Exception | None = None
        self.changed = threading.Condition()
        args = (weakref.ref(self), records, layout, self.images.numpy(), self.labels, self.changed)
        threading.Thread(target=_fill, args=args, name="forcereg-decode", daemon=True).start()

    def wait(self, rows: int) -> None:
        """Return when the first `rows` records are decoded; raises what the thread ran into."""
        with self.changed:
            self.changed.wait_for(lambda: self.ready >= rows or self.error)
            if self.error:
                raise _again(self.error)
            if self.ready == self.count and not self.complete:
                # Here, not in the thread: uploads from another thread would disturb a CUDA graph capture.
                self.float_labels = torch.from_numpy(self.labels.astype(np.float32)).to(self.device)
                self.images = self.images.to(self.device)
                self.complete = True

    def rows(self, start: int, batch: int) -> tuple[Tensor, Tensor]:
        """Images and float32 labels of decoded records start .. start+batch-1, wrapping; on the device."""
        if self.complete and start + batch <= self.count:
            return self.images[start : start + batch], self.float_labels[start : start + batch]
        if self.complete:
            index = torch.arange(start, start + batch).remainder_(self.count).to(self.device)
            return self.images[index], self.float_labels[index]
        rows = slice(start, start + batch)
        return to_device(self.images[rows], torch.from_numpy(self.labels[rows]).float(), self.device)


def _fill(
    owner: weakref.ref[DecodedSet],
    records: LmdbRecords,
    layout: Layout,
    images: np.ndarray,
    labels: np.ndarray,
    changed: threading.Condition,
) -> None:
    error: Exception | None = None
    reader = records.read()
    with _mapper(layout) as run:
        for first in range(0, len(images), CHUNK):
            rows = slice(first, min(first + CHUNK, len(images)))
            try:
                layout.fill(list(islice(reader, CHUNK)), images[rows], labels[rows], run)
            except Exception as caught:
                error = caught
            decoded_set = owner()
            if decoded_set is None:
                return
            with changed:
                decoded_set.ready, decoded_set.error = rows.stop, error
                changed.notify_all()
            del decoded_set
            if error:
                return


class Resident:
    """A feed's view of a DecodedSet that it may share with other feeds."""

    def __init__(self, shared: DecodedSet) -> None:
        self.shared = shared
        self._checked = 0

    def take(self, start: int, batch: int, check: Check) -> tuple[Tensor, Tensor]:
        """See Source."""
        shared = self.shared
        if not shared.complete:
            shared.wait(min(start + batch, shared.count))
        if self._checked < shared.count:
            ready = shared.ready
            check(self._checked, shared.labels[self._checked : ready])
            self._checked = ready
        return shared.rows(start, batch)

    def close(self) -> None:
        """See Source; the set goes with its last holder."""


class Stream:
    """Batches decoded up to `ahead` in advance by a thread, in bounded memory."""

    def __init__(self, records: LmdbRecords, layout: Layout, ahead: int, device: torch.device) -> None:
        self._records, self._layout, self._ahead, self._device = records, layout, max(1, ahead), device
        self._position: int | None = None
        self._stop = threading.Event()
        self._queue: queue.Queue[Item] = queue.Queue()

    def take(self, start: int, batch: int, check: Check) -> tuple[Tensor | list[Tensor], Tensor]:
        """See Source."""
        if self._position != start:
            self._restart(start, batch)
        item = self._queue.get()
        if isinstance(item, Exception):
            self.close()
            raise _again(item)
        images, labels = item
        check(start, labels)
        self._position = (start + batch) % len(self._records)
        if isinstance(images, list):
            one_by_one = [torch.tensor(image, device=self._device) for image in images]
            return one_by_one, torch.from_numpy(labels).float().to(self._device)
        return to_device(torch.from_numpy(images), torch.from_numpy(labels).float(), self._device)

    def _restart(self, start: int, batch: int) -> None:
        self.close()
        self._stop = threading.Event()
        self._queue = queue.Queue(self._ahead)
        args = (self._records, self._layout, start, batch, self._queue, self._stop)
        threading.Thread(target=_read_ahead, args=args, name="forcereg-read", daemon=True).start()
        # The thread holds no reference to this object, so it also ends when the feed is just dropped.
        weakref.finalize(self, self._stop.set)

    def close(self) -> None:
        """See Source."""
        self._stop.set()
        self._position = None


def _read_ahead(
    records: LmdbRecords, layout: Layout, start: int, batch: int, out: queue.Queue, stop: threading.Event
) -> None:
    reader = chain.from_iterable(records.read(start if turn == 0 else 0) for turn in count())
    with _mapper(layout) as run:
        while not stop.is_set():
            image = np.empty((0,), layout.dtype)
            images = [image] * batch if layout.least else np.empty((batch, *layout.shape), layout.dtype)
            labels = np.empty(batch, np.int64)
            item: Item = (images, labels)
            try:
                layout.fill(list(islice(reader, batch)), images, labels, run)
            except Exception as error:
                item = error
            while not stop.is_set():
                try:
                    out.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(item, Exception):
                return


@contextmanager
def _mapper(layout: Layout) -> Iterator[Map]:
    """`map`, over several threads when records are image files (decoding those frees the interpreter)."""
    if not layout.encoded:
        yield map
        return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield pool.map


def to_device(images: Tensor, labels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Both tensors on `device`; to a GPU by pinned memory, without waiting for the copy."""
    if device.type != "cuda":
        return images.to(device), labels.to(device)
    return tuple(x.pin_memory().to(device, non_blocking=True) for x in (images, labels))  # type: ignore[return-value]


def _again(error: Exception) -> Exception:
    """A fresh exception for one that was caught in a thread, so that its traceback does not grow."""
    return type(error)(str(error)) if isinstance(error, ForceregError) else error


_shared: weakref.WeakValueDictionary[tuple, DecodedSet] = weakref.WeakValueDictionary()
_shared_lock = threading.Lock()


def shared_set(records: LmdbRecords, layout: Layout, device: torch.device) -> DecodedSet:
    """The decoded set of these records; feeds over the same file, colours and device get the same one."""
    stat = os.stat(records.path / "data.mdb")
    key = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size, layout.color, str(device))
    with _shared_lock:
        found = _shared.get(key)
        if found is None or found.error:
            found = _shared[key] = DecodedSet(records, layout, device)
        return found
