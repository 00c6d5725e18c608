"""What a data layer needs and offers: the context it is built in, the feed that supplies its tops."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from forcereg.errors import ForceregError, UsageError

if TYPE_CHECKING:
    from forcereg.schema.spec import LayerSpec

T = TypeVar("T", bound=Sequence[Any] | np.ndarray | Tensor)

DEFAULT_BUDGET = 2 << 30
FEW, MANY = 4, 1024
"""Batches that may always be prepared in advance (Caffe's default), and those that are never exceeded."""


@dataclass(frozen=True)
class Shard:
    """Which records of the data one of several processes trains on.

    As in Caffe those whose running index modulo `size` is its `rank`. Together the processes take what one would
    with batches `size` times as large, so cursors count the records of all. `divide`: the batch that is written is
    that of all processes, otherwise that of each.
    """

    rank: int = 0
    size: int = 1
    divide: bool = False

    def batch(self, spec: LayerSpec, written: int) -> int:
        """The batch of one process. Raises ForceregError if there is none."""
        if not self.divide:
            return written
        if written % self.size:
            raise spec.fail(
                f"a batch of {written} can't be divided over {self.size} processes; use a multiple of {self.size}, or "
                "leave out --global-batch"
            )
        return written // self.size

    def of(self, records: T) -> T:
        """This process's of consecutive `records` (first axis) of all."""
        return records if self.size == 1 else records[self.rank :: self.size]  # type: ignore[return-value]


@dataclass(frozen=True)
class FeedContext:
    """Where a feed looks for files, where its batches go, and what it may use.

    `root`: relative paths are taken from here. `seed`: of the transform's randomness (None: OS entropy).
    `budget`: bytes that a set may take once decoded; larger sets are streamed. `workers`: threads that decode for
    each feed (0: as many as there are cores, at most 8). `shard`: what of the data it gives.
    """

    root: Path
    device: torch.device
    seed: int | None = None
    budget: int = DEFAULT_BUDGET
    workers: int = 0
    shard: Shard = Shard()

    def __post_init__(self) -> None:
        if self.workers < 0:  # no thread would start, and every batch be waited for
            raise UsageError(f"workers is {self.workers}; expected 0 or more")


def seed_of(ctx: FeedContext) -> int:
    """The context's seed, or one from the system's entropy; fits the int64 of a snapshot."""
    # drawn once and kept in the state, so that also a run without a seed is resumed exactly
    return (int.from_bytes(os.urandom(4), "little") if ctx.seed is None else ctx.seed) % (1 << 63)


def batches_ahead(prefetch: int, shape: Sequence[int], budget: int) -> int:
    """How many batches of images of this shape to prepare in advance: `prefetch`, but no more than fit the budget."""
    # a byte a value, as decoded images wait
    return min(max(1, prefetch), MANY, max(FEW, budget // max(1, prod(shape))))


def seeded(device: torch.device, *numbers: int) -> torch.Generator:
    """A generator on `device` for exactly these numbers, so that a position is all that resuming needs to know."""
    # numpy keeps what comes out of the same numbers from version to version
    words = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(words[0]))


@dataclass(frozen=True)
class LabelRange:
    """Labels that `consumer` (file, line, layer) accepts: 0 to count-1, or `ignore`."""

    count: int
    ignore: int | None
    consumer: str

    def first_bad(self, labels: np.ndarray) -> int | None:
        """Position of the first label out of range, None if all are fine."""
        bad = ~((labels >= 0) & (labels < self.count))  # so that NaN is bad too
        if self.ignore is not None:
            bad &= labels != self.ignore
        return int(bad.argmax()) if bad.any() else None

    def __str__(self) -> str:
        or_ignored = f" or {self.ignore} (ignore_label)" if self.ignore is not None else ""
        return f"0 to {self.count - 1}{or_ignored} for {self.consumer}"


def first_nonfinite(values: np.ndarray) -> int | None:
    """Position, in the flattened `values`, of the first nan or infinite one; None if all are finite."""
    finite = np.isfinite(values)
    return None if finite.all() else int(finite.argmin())


class Feed(ABC):
    """Supplies the tops of one data layer, batch by batch: float32 tensors.

    `shapes` are theirs, but images that come one by one may each be of a size of its own; then they are the first's.

    Feeds can be deep-copied and pickled: handles, threads and decoded data are dropped and come
    back when the next batch is asked for.
    """

    tops: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @abstractmethod
    def next(self) -> tuple[Tensor, ...]:
        """The next batch, one tensor per top. Raises ForceregError for a bad record."""

    def named(self) -> str:
        """Which record the last batch begins with; empty where records have no name."""
        return ""

    def skip(self, batches: int) -> None:
        """Go on as if `batches` had been asked for."""
        for _ in range(batches):
            self.next()

    def size(self, most: int | None = None) -> int | None:
        """Records in one pass over the source; None if there is no such number.

        Also if it is above `most`, where that is faster to find out.
        """
        return None

    def find_nonfinite(self, most: int | None = None) -> str | None:
        """Where the first nan or infinite value is among the source's first `most` records (None: all), and which.

        They are read from the beginning, in the source's order; what comes next stays. None if there is none.
        """
        return None

    def limit_labels(self, count: int, ignore: int | None, consumer: str, top: str = "") -> None:  # noqa: B027
        """Accept only labels in [0, count) or equal to `ignore` in top `top`, checked on the host when decoded.

        An empty `top` means the last one.
        """

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on with exactly the batches that would have come next."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Continue where `state_dict` was taken."""

    def close(self) -> None:  # noqa: B027
        """Stop threads and free memory; the feed can still be used, it starts again by itself."""


class DataError(ForceregError):
    """A batch can't be had: a record is bad, or a source that was fine has changed."""


def supply(feeds: Iterable[Feed], blobs: dict[str, Tensor]) -> None:
    """Adds the next batch of each feed to `blobs`, unless one of its tops is there already. Raises DataError."""
    for feed in feeds:
        if not any(top in blobs for top in feed.tops):
            try:
                batch = feed.next()
            # of a class of its own: training that it ends names the last snapshot
            except ForceregError as error:
                raise DataError(str(error)) from error
            blobs.update(zip(feed.tops, batch, strict=True))
