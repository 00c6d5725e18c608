"""Sets that don't fit memory: read, decoded and cropped ahead by several threads, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcereg.data.buffers import Pinned, Recycled, tensor_of
from forcereg.data.datum import Layout
from forcereg.data.decoded import Check, Decoder, Rows, to_device
from forcereg.data.feed import Shard
from forcereg.data.prefetch import Job, Prefetch
from forcereg.data.records import Records
from forcereg.data.transform import Transform
from forcereg.system.device import shapes_change

Record = tuple[bytes, bytes]


@dataclass(frozen=True)
class Position:
    """A place in the stream: the index of the next record, and the generator's state if the transform draws."""

    cursor: int
    state: bytes = b""

    @classmethod
    def of(cls, cursor: int, generator: torch.Generator, random: bool) -> Position:
        """The position of a feed."""
        return cls(cursor, generator.get_state().numpy().tobytes() if random else b"")

    def put(self, generator: torch.Generator) -> torch.Generator:
        """Sets the generator to this place."""
        if self.state:
            generator.set_state(torch.frombuffer(bytearray(self.state), dtype=torch.uint8))
        return generator


class Stream:
    """Batches of uint8 or float32 crops prepared up to `ahead` in advance; only the rest of the transform is done here.

    Crops are drawn in the order of the records, so they are those of a set in memory. What was prepared goes if
    the next batch is asked for elsewhere than behind the last one.
    """

    def __init__(
        self,
        records: Records,
        layout: Layout,
        transform: Transform,
        batch: int,
        ahead: int,
        workers: int,
        device: torch.device,
        out: Callable[[], Tensor | None],
        shard: Shard,
    ) -> None:
        self._transform, self._device, self._out = transform, device, out
        self._ahead, self._workers = max(1, ahead), workers
        self._plan = _Plan(records, layout, transform, batch, shard)
        self._prefetch: Prefetch | None = None
        self._pinned: Pinned | None = None
        self._at: Position | None = None

    def take(self, cursor: int, generator: torch.Generator, check: Check) -> tuple[Tensor, Tensor, int]:
        """See Source."""
        at = Position.of(cursor, generator, self._transform.random)
        # by cursor and generator, so that a restored feed, or one that has skipped, throws away what was read ahead
        if self._prefetch is None or at != self._at:
            self._prefetch = self._start(at)
        # unknown until the batch is handed out: after an error the next call starts anew, from its own place
        self._at = None
        if self._pinned is not None:
            self._pinned.add()
        try:
            job = self._prefetch.next()
        except Exception:
            self.close()
            raise
        batch: _Batch = job.result
        # here, not in the threads: errors come with the batch that they are in, in order
        check(batch.rows.labels, lambda row: batch.rows.records[row][0])
        # only now: what fails is asked for again from where it was
        self._at = job.after
        job.after.put(generator)
        images = tensor_of(batch.rows.images, batch.memory)
        out = None
        if images is batch.memory:
            out = self._out()
        else:
            shapes_change(self._device)
        images, labels = to_device(images, torch.from_numpy(batch.rows.labels).float(), self._device)
        places = self._plan.places(batch.draws)
        return self._transform.finish(images, places, out), labels, job.after.cursor

    def _start(self, at: Position) -> Prefetch:
        self.close()
        shape, dtype = self._plan.shape, self._plan.dtype
        if self._device.type == "cuda":
            self._pinned = Pinned(shape, dtype, self._ahead)
        empty = (self._pinned or Recycled(shape, dtype, self._ahead + 2)).empty
        return Prefetch(self._plan.jobs(at, empty), self._plan.work, self._ahead, self._workers)

    def close(self) -> None:
        """See Source."""
        if self._prefetch is not None:
            self._prefetch.close()
        self._prefetch = self._pinned = self._at = None


@dataclass(frozen=True)
class _Batch:
    """The memory that `rows` were given for their crops (batch, C, rows, columns), and what was drawn for them."""

    memory: Tensor
    rows: Rows
    draws: Tensor


@dataclass(frozen=True)
class _Plan:
    """What the threads know."""

    records: Records
    layout: Layout
    transform: Transform
    batch: int
    shard: Shard

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.batch, *self.transform.shape(self.layout.shape))

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8 if self.layout.dtype == np.uint8 else torch.float32

    @property
    def work(self) -> Callable[[Any], None]:
        return Decoder(self.layout, self.transform)

    def jobs(self, at: Position, empty: Callable[[], Tensor]) -> Iterator[Job]:
        """Batches from `at` on for ever; `empty` gives the memory for the crops of one."""
        # one of its own: it runs ahead of the feed's, by as many batches as are prepared
        generator = at.put(torch.Generator())
        reader = self._numbered(at.cursor)
        while True:
            # of all processes, of which each takes its own records: so their cursors agree
            numbered = list(islice(reader, self.batch * self.shard.size))
            yield self._job(self.shard.of(numbered), numbered[-1][0], empty(), generator)

    def _job(self, numbered: list[tuple[int, Record]], cursor: int, images: Tensor, generator: torch.Generator) -> Job:
        # drawn for all processes, too, so that their number changes no crop
        draws = self.shard.of(self.transform.draw(self.batch * self.shard.size, generator))
        records = [record for _, record in numbered]
        rows = Rows(images.numpy(), np.empty(self.batch, np.int64), records, draws.tolist())
        # behind the draws, where the next batch goes on
        after = Position.of(cursor, generator, self.transform.random)
        return Job(rows.items(self.layout.encoded), _Batch(images, rows, draws), after)

    def _numbered(self, index: int) -> Iterator[tuple[int, Record]]:
        """(index of the record behind it, record) from record `index` on, wrapping around."""
        while True:
            reader = self.records.read(index)
            first = next(reader)
            count = self.records.count(0)  # if it is known, maybe from skipping beyond the end just now
            for record in chain([first], reader):
                index = (index + 1) % count if count else index + 1
                yield index, record
            index = 0

    def places(self, draws: Tensor) -> Tensor | None:
        """Where the crops of equally large images are, (3, batch); None if all are in the centre, or nobody asks."""
        if not self.transform.random:
            return None
        return torch.stack(self.transform.place(draws.unbind(1), *self.layout.shape[1:]))
