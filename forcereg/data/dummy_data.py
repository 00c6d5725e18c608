"""The DummyData layer: tops of any declared shape, filled with constants or fresh random values."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

import forcereg.registry as registry
from forcereg.data.feed import Feed, FeedContext, LabelRange, seed_of, seeded
from forcereg.data.fillers import fill
from forcereg.registry import source
from forcereg.schema.spec import LayerSpec

LEGACY = ("num", "channels", "height", "width")


@source("DummyData", "dummy_data_param")
class DummyFeed(Feed):
    """Values of `data_filler` (none: zeros), one for all tops or one each; random ones are drawn anew each time.

    Shapes are `shape`, or the older num, channels, height and width, likewise once or per top. The values of one
    forward depend on the seed, the layer and the number of the forward alone, so that resuming is exact.
    Raises ForceregError for counts that don't fit the tops, empty or too large tops, bad fillers.
    """

    def __init__(self, spec: LayerSpec, ctx: FeedContext) -> None:
        self.spec, self.device, self.tops = spec, ctx.device, spec.tops
        self.shard = ctx.shard
        self.shapes = tuple((ctx.shard.batch(spec, shape[0]), *shape[1:]) if shape else () for shape in _shapes(spec))
        self.fillers = _fillers(spec)
        self.random = any(filler is not None and filler.type != "constant" for filler in self.fillers)
        self.seed = seed_of(ctx)
        self.forwards = 0
        for top, shape, filler in zip(self.tops, self.shapes, self.fillers, strict=True):
            spec.check_size(f"top '{top}'", shape)
            if min(shape, default=1) < 1:
                raise spec.fail(f"top '{top}' would have shape {list(shape)}; expected sizes of at least 1")
            with torch.device("meta"):  # checks the filler's settings, takes no memory
                fill(filler, shape, None, spec)

    def next(self) -> tuple[Tensor, ...]:
        """The tops, float32 on the device. Raises ForceregError if they don't fit in memory."""
        generator = None
        if self.random:
            # by name, too: two such layers of one net must not give the same values
            # not hash(), which differs from one process to the next
            name = zlib.crc32(self.spec.name.encode())
            # the rank adds to the seed, as in Caffe, and so ranks draw different values
            generator = seeded(self.device, self.seed + self.shard.rank, name, self.spec.phase, self.forwards)
            self.forwards += 1
        try:
            # filled where they are used: a generator draws on its own device only
            with self.device:
                return tuple(
                    fill(filler, shape, generator, self.spec)
                    for shape, filler in zip(self.shapes, self.fillers, strict=True)
                )
        # PyTorch's own kind for memory that there isn't, on either device
        except RuntimeError as error:
            size = sum(4 * int(np.prod(shape)) for shape in self.shapes) / 2**30
            raise self.spec.fail(
                f"its tops need {size:.1f} GiB, more memory than there is ({str(error).splitlines()[0]}); "
                "use smaller sizes"
            ) from error

    def skip(self, batches: int) -> None:
        """See Feed."""
        self.forwards += batches * self.random

    def limit_labels(self, count: int, ignore: int | None, consumer: str, top: str = "") -> None:
        """See Feed. What the filler can give is known, so nothing has to be checked later."""
        filler = self.fillers[self.tops.index(top or self.tops[-1])]
        labels = LabelRange(count, ignore, consumer)
        kind = "constant" if filler is None else filler.type
        if kind == "constant":
            ends = [0.0 if filler is None else filler.value]
        elif kind == "uniform":
            # the largest float32 below max: uniform_ never reaches it
            ends = [filler.min, max(filler.min, float(np.nextafter(np.float32(filler.max), -np.float32(np.inf))))]
        else:
            raise self.spec.fail(f"top '{top}' holds labels, but its filler is {kind}; use constant or uniform")
        bad = labels.first_bad(np.array(ends))
        if bad is not None:
            raise self.spec.fail(f"top '{top}' may be filled with label {ends[bad]:g}, expected {labels}")

    def state_dict(self) -> dict[str, Any]:
        """The seed and the number of forwards so far."""
        return {"seed": self.seed, "forwards": self.forwards}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Feed."""
        self.seed, self.forwards = int(state["seed"]), int(state["forwards"])


def _shapes(spec: LayerSpec) -> tuple[tuple[int, ...], ...]:
    param, tops = spec.message.dummy_data_param, len(spec.tops)
    if not tops:
        raise spec.fail("has no tops; expected at least one")
    legacy = {field: list(getattr(param, field)) for field in LEGACY}
    if not any(legacy.values()):
        shapes = [tuple(shape.dim) for shape in param.shape]
        return tuple(_per_top(spec, "shape", shapes))
    if param.shape:
        raise spec.fail("has shape and num/channels/height/width; give one kind, shape is the newer")
    # each of the four may be given once or per top, by itself
    return tuple(zip(*(_per_top(spec, field, sizes) for field, sizes in legacy.items()), strict=True))


def _fillers(spec: LayerSpec) -> list[Any]:
    fillers = list(spec.message.dummy_data_param.data_filler)
    for filler in fillers:
        registry.filler.get(filler.type, spec.where)
    return _per_top(spec, "data_filler", fillers) if fillers else [None] * len(spec.tops)


def _per_top(spec: LayerSpec, field: str, entries: list[Any]) -> list[Any]:
    tops = len(spec.tops)
    if len(entries) not in (1, tops):
        raise spec.fail(
            f"has {len(entries)} dummy_data_param.{field} entries for {tops} tops; give one, or one for each top"
        )
    return entries * tops if len(entries) == 1 else entries
