"""Feeds whose batches follow from a seed and a position alone, prepared ahead in the background."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from forcereg.data.buffers import Pinned, Recycled
from forcereg.data.feed import Feed, FeedContext, LabelRange, batches_ahead, seed_of
from forcereg.data.prefetch import Prefetch
from forcereg.errors import ForceregError

if TYPE_CHECKING:
    from forcereg.schema.spec import LayerSpec


class PlannedFeed(Feed):
    """A feed of tops data and label with `position` (records handed out so far) and `seed` as its whole state.

    All randomness comes from generators `seeded` with both, so resuming is exact whatever was prepared ahead. As in
    Caffe, data_param.prefetch says how many batches that may be.
    """

    def __init__(self, spec: LayerSpec, ctx: FeedContext, written: int, shape: tuple[int, ...]) -> None:
        batch = ctx.shard.batch(spec, written)
        self.where, self.tops, self.batch, self.shard = spec.where, spec.tops, batch, ctx.shard
        self.shapes = ((batch, *shape), (batch,))
        self.device, self.budget, self.workers = ctx.device, ctx.budget, ctx.workers
        self.ahead = batches_ahead(spec.message.data_param.prefetch, self.shapes[0], ctx.budget)
        self.seed = seed_of(ctx)
        self.position = 0
        self._prefetch: Prefetch | None = None
        self._pinned: Pinned | None = None

    @abstractmethod
    def _start(self, empty: Callable[[], Tensor]) -> Prefetch:
        """Batches from `position` on; what works on them must not hold this feed, so that it can be dropped.

        `empty` gives the memory for one batch's images, uint8 of the first top's shape.
        """

    @abstractmethod
    def _bad_label(self, limit: LabelRange) -> str | None:
        """Where a label out of `limit` stands and which one, None if there is none."""

    def _fetch(self) -> Any:
        """The result of the next job, which becomes the position."""
        try:
            if self._prefetch is None:
                shape, ahead = self.shapes[0], self.ahead
                self._pinned = Pinned(shape, torch.uint8, ahead) if self.device.type == "cuda" else None
                self._prefetch = self._start((self._pinned or Recycled(shape, torch.uint8, ahead)).empty)
            if self._pinned is not None:
                # in this thread (see Pinned), one for each batch that is handed out
                self._pinned.add()
            job = self._prefetch.next()
        except ForceregError as error:
            self.close()
            raise ForceregError(f"{self.where}: {error}") from error
        self.position = job.after
        return job.result

    def skip(self, batches: int) -> None:
        """See Feed; nothing is read."""
        if batches:
            self.close()
            self.position += batches * self.batch * self.shard.size

    def limit_labels(self, count: int, ignore: int | None, consumer: str, top: str = "") -> None:
        """See Feed; the source lists all labels, so that they are checked at once."""
        limit = LabelRange(count, ignore, consumer)
        if top != self.tops[0] and (found := self._bad_label(limit)):
            raise ForceregError(f"{self.where}: {found} found, expected {limit}")

    def state_dict(self) -> dict[str, Any]:
        """The position and the seed."""
        return {"position": self.position, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Feed."""
        self.close()
        self.position, self.seed = int(state["position"]), int(state["seed"])

    def close(self) -> None:
        """See Feed."""
        if self._prefetch is not None:
            self._prefetch.close()
            self._prefetch = self._pinned = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prefetch": None, "_pinned": None}
