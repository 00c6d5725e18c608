"""Sets that fit memory: decoded once and for all in the background, shared by feeds over the same records."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from forcereg.data.buffers import put
from forcereg.data.datum import Layout
from forcereg.data.feed import Shard
from forcereg.data.prefetch import Job, Prefetch, again
from forcereg.data.records import Records
from forcereg.data.transform import Transform, crop_view
from forcereg.errors import ForceregError
from forcereg.system.background import Worker

CHUNK = 256  # records per step of the background threads
RAW = 256  # records without an image file inside that a thread decodes at a time: each takes a microsecond only
Check = Callable[[np.ndarray, Callable[[int], bytes]], None]  # (labels, the key of one by its row) -> raises


class Source(Protocol):
    """Batches from a position on."""

    def take(self, cursor: int, generator: torch.Generator, check: Check) -> tuple[Tensor, Tensor, int]:
        """Images, transformed, and float32 labels of the batch that begins with record `cursor`, and the cursor behind.

        Labels not yet seen by this source go through `check` first. Both tensors are the caller's own.
        """

    def close(self) -> None:
        """Stop working in the background."""


@dataclass(eq=False)
class Rows:
    """Records, read, and the arrays that they are decoded into: images (n, C, H, W) and labels (n,).

    One image of another size than the array's gets one of its own, see `put`.
    """

    images: np.ndarray
    labels: np.ndarray
    records: list[tuple[bytes, bytes]]
    draws: Sequence[Sequence[int]] | None = None

    def items(self, encoded: bool) -> list[tuple[Rows, range]]:
        """The work on them, in pieces for `Decoder`."""
        count, step = len(self.records), 1 if encoded else RAW
        return [(self, range(first, min(first + step, count))) for first in range(0, count, step)]


@dataclass(frozen=True)
class Decoder:
    """Decodes records into their rows, which are crops if there is a transform."""

    layout: Layout
    transform: Transform | None = None

    def __call__(self, item: tuple[Rows, range]) -> None:
        """Raises ForceregError naming a damaged record."""
        rows, span = item
        part = slice(span.start, span.stop)
        # records without image files inside, all alike: one pass over all of them
        if self.transform is None and (alike := self.layout.decode_alike([value for _, value in rows.records[part]])):
            rows.images[part], rows.labels[part] = alike
            return
        for row in span:
            key, value = rows.records[row]
            image, rows.labels[row] = self.layout.decode(key, value)
            if self.transform is not None and rows.draws is not None:
                top, left, mirrored = self.transform.place(rows.draws[row], *image.shape[1:])
                image = crop_view(image, top, left, mirrored, *self.transform.shape(image.shape)[1:])
            rows.images = put(rows.images, row, image)
            # its bytes are done with, its key may be wanted for an error
            rows.records[row] = (key, b"")


@dataclass(eq=False)
class _Progress:
    """How far the threads of a set have come, which hold this and not the set."""

    count: int
    ready: int = 0
    error: Exception | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)


class DecodedSet:
    """All `count` records of a set as one tensor, filled by threads that end when nobody holds the set."""

    def __init__(self, records: Records, count: int, layout: Layout, device: torch.device, workers: int) -> None:
        self.count = count
        self.device = device
        # bytes stay bytes, a quarter of the memory; they become floats batch by batch
        dtype = torch.uint8 if layout.dtype == np.uint8 else torch.float32
        self.images = torch.empty((count, *layout.shape), dtype=dtype)
        self.labels = np.empty(count, np.int64)
        self.float_labels = torch.empty(0)
        self.complete = False
        self._progress = progress = _Progress(count)
        prefetch = Prefetch(_chunks(records, layout, self.images.numpy(), self.labels), Decoder(layout), 4, workers)
        weakref.finalize(self, prefetch.close).atexit = False  # as in Prefetch
        Worker("forcereg-decode", _follow, (prefetch, progress), prefetch.close).start()

    @property
    def ready(self) -> int:
        """How many records are decoded, from the first one on."""
        return self._progress.ready

    @property
    def error(self) -> Exception | None:
        """What the threads ran into."""
        return self._progress.error

    def wait(self, rows: int) -> None:
        """Return when the first `rows` records are decoded; raises what the threads ran into."""
        progress = self._progress
        with progress.changed:
            progress.changed.wait_for(lambda: progress.ready >= rows or progress.error)
            if self.error:
                raise again(self.error) from self.error
            if self.ready == self.count and not self.complete:
                # Here, not in a thread: uploads from another thread would disturb a CUDA graph capture.
                self.float_labels = torch.from_numpy(self.labels.astype(np.float32)).to(self.device)
                self.images = self.images.to(self.device)
                self.complete = True

    def rows(self, start: int, end: int, step: int) -> tuple[Tensor, Tensor]:
        """Images and float32 labels of decoded records start, start+step .. end-1, wrapping; on the device."""
        rows = slice(start, end, step)
        # a view where it needn't wrap, else a copy
        if self.complete and end <= self.count:
            return self.images[rows], self.float_labels[rows]
        if self.complete:
            index = torch.arange(start, end, step, device=self.device).remainder_(self.count)
            return self.images[index], self.float_labels[index]
        # no batch that wraps comes here: it has waited for the whole set, which is complete then
        return to_device(self.images[rows], torch.from_numpy(self.labels[rows]).float(), self.device)


def _chunks(records: Records, layout: Layout, images: np.ndarray, labels: np.ndarray) -> Iterator[Job]:
    reader = records.read()
    for first in range(0, len(images), CHUNK):
        part = slice(first, min(first + CHUNK, len(images)))
        rows = Rows(images[part], labels[part], list(islice(reader, CHUNK)))
        if len(rows.records) < len(rows.labels):
            found = first + len(rows.records)
            raise ForceregError(f"{layout.source}: ends after {found} records, expected {len(images)}; write it again")
        yield Job(rows.items(layout.encoded), None, part.stop)


def _follow(prefetch: Prefetch, progress: _Progress) -> None:
    """Advances `progress` until all is decoded, or the prefetcher closed."""
    while progress.ready < progress.count and progress.error is None:
        ready, error = progress.ready, None
        try:
            ready = prefetch.next().after
        except Exception as caught:
            error = caught.with_traceback(None)  # which would keep this frame, and so itself
        with progress.changed:
            progress.ready, progress.error = ready, error
            progress.changed.notify_all()
    prefetch.close()


class Resident:
    """A feed's view of a DecodedSet that it may share with other feeds; `key` names a record by its index."""

    def __init__(
        self,
        shared: DecodedSet,
        transform: Transform,
        batch: int,
        out: Callable[[], Tensor | None],
        key: Callable[[int], bytes],
        shard: Shard,
    ) -> None:
        self.shared = shared
        self._transform, self._out, self._key, self._shard = transform, out, key, shard
        self._records = batch * shard.size
        self._checked = 0

    def take(self, cursor: int, generator: torch.Generator, check: Check) -> tuple[Tensor, Tensor, int]:
        """See Source."""
        shared, start = self.shared, cursor % self.shared.count
        if not shared.complete:
            shared.wait(min(start + self._records, shared.count))
        if self._checked < shared.count:
            ready, first = shared.ready, self._checked
            # whatever has been decoded by now, not only this batch: each label is looked at once
            check(shared.labels[first:ready], lambda row: self._key(first + row))
            self._checked = ready
        images, labels = shared.rows(start + self._shard.rank, start + self._records, self._shard.size)
        images = self._transform(images, generator, self._out(), self._shard)
        # the set's own labels stay as they are, whatever a layer does to its bottom
        return images, labels.clone(), (start + self._records) % shared.count

    def close(self) -> None:
        """See Source; the set goes with its last holder."""


def to_device(images: Tensor, labels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Both tensors on `device`; to a GPU by page-locked memory, without waiting for the copy."""
    if device.type != "cuda":
        return images.to(device), labels.to(device)
    # from other memory the copy would wait for the device
    images, labels = (x if x.is_pinned() else x.pin_memory() for x in (images, labels))
    return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


_shared: weakref.WeakValueDictionary[tuple, DecodedSet] = weakref.WeakValueDictionary()
# two feeds that begin at the same time would both decode the set
_shared_lock = threading.Lock()


def shared_set(records: Records, count: int, layout: Layout, device: torch.device, workers: int) -> DecodedSet:
    """The decoded set of these records; feeds over the same records, colours and device get the same one."""
    # by content, not by path: TRAIN and TEST nets over one set decode it once
    key = (records.identity, layout.color, str(device))
    with _shared_lock:
        found = _shared.get(key)
        # one that failed is tried again: the file may be whole by now
        if found is None or found.error:
            found = _shared[key] = DecodedSet(records, count, layout, device, workers)
        return found
