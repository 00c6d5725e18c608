"""The Data layer: Datum records of an LMDB or LevelDB, in key order, wrapping around at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from forcereg.data.buffers import Recycled
from forcereg.data.datum import Layout, SizeDiffers
from forcereg.data.decoded import Resident, Source, shared_set
from forcereg.data.decoding import Color
from forcereg.data.feed import Feed, FeedContext, LabelRange, batches_ahead, first_nonfinite
from forcereg.data.opening import open_records
from forcereg.data.records import record_error, record_name
from forcereg.data.stream import Stream
from forcereg.data.transform import Transform, read_transform, warn_of_old_fields
from forcereg.errors import ForceregError
from forcereg.registry import source
from forcereg.system.paths import resolve

if TYPE_CHECKING:
    from forcereg.schema.spec import LayerSpec


@source(
    "Data",
    "data_param.source,batch_size,backend,prefetch,rand_skip transform_param",
    limits="rand_skip has no effect, as in Caffe; LevelDB needs the extra forcereg[leveldb]",
)
def database_feed(spec: LayerSpec, ctx: FeedContext) -> DatabaseFeed:
    """The feed of a Data layer: tops data (batch, C, H, W) and, if asked for, label (batch,).

    Fails before anything is trained if the database is missing, damaged or does not fit transform_param. What is
    found there counts, not `backend`. `rand_skip` is ignored, as in Caffe.
    """
    param, transform_param = spec.message.data_param, spec.message.transform_param
    if not 1 <= len(spec.tops) <= 2:
        raise spec.fail(f"has {len(spec.tops)} tops; expected data, or data and label")
    if param.batch_size == 0:
        raise spec.fail("data_param.batch_size is missing or 0; expected at least 1")
    if not param.source:
        raise spec.fail("data_param.source is missing; expected the path of an LMDB or LevelDB")
    if transform_param.force_color and transform_param.force_gray:
        raise spec.fail("has force_color and force_gray; give one")
    warn_of_old_fields(spec, "data_param")
    # unset both mean the record's own channels, as in Caffe
    color: Color = "color" if transform_param.force_color else "gray" if transform_param.force_gray else "native"
    try:
        path = resolve(ctx.root, param.source)
        # the first record tells the shape, as Caffe takes it
        key, value = next(open_records(path, param.source).read())
        layout = Layout.of(param.source, key, value, color)
        if color != "native" and not layout.encoded:
            spec.warn("force_color and force_gray have no effect on raw records")
        transform = read_transform(transform_param, spec.phase, layout.shape, ctx.root, ctx.device)
    except ForceregError as error:
        raise spec.fail(str(error)) from error
    return DatabaseFeed(spec, ctx, path, layout, transform)


class DatabaseFeed(Feed):
    """Batches of one LMDB or LevelDB; made by `database_feed`.

    A set within the budget is decoded once into one tensor (shared by feeds over the same records). A larger one,
    or one of images of several sizes that are cropped or come one by one, is read ahead by `prefetch` batches.
    `cursor` counts what was handed out, so resuming does not depend on what was decoded ahead.
    """

    def __init__(self, spec: LayerSpec, ctx: FeedContext, path: Path, layout: Layout, transform: Transform) -> None:
        param = spec.message.data_param
        self.where, self.path, self.transform = spec.where, path, transform
        self.shard, self.workers = ctx.shard, ctx.workers
        self.batch = ctx.shard.batch(spec, int(param.batch_size))
        self.layout = replace(layout, least=transform.least(self.batch))
        self.device, self.budget = ctx.device, ctx.budget
        self.cursor = 0
        self._given: int | None = None  # the cursor of the last batch
        self.limits: tuple[LabelRange, ...] = ()
        self.tops = spec.tops
        images = (self.batch, *transform.shape(layout.shape))
        self.shapes = (images, (self.batch,))[: len(spec.tops)]
        self.ahead = batches_ahead(param.prefetch, images, ctx.budget)
        self._generator = torch.Generator()
        if ctx.seed is None:
            # without a seed from the system: two runs shall differ
            self._generator.seed()
        else:
            self._generator.manual_seed(ctx.seed)
        self._several_sizes = False
        self._source: Source | None = None

    def next(self) -> tuple[Tensor, ...]:
        """The next batch: images as the transform leaves them and float32 labels, both the caller's own."""
        self._given = self.cursor
        try:
            images, labels, self.cursor = self._take()
        except ForceregError as error:
            raise ForceregError(f"{self.where}: {error}") from error
        return (images,) if len(self.tops) == 1 else (images, labels)

    def _take(self) -> tuple[Tensor, Tensor, int]:
        self._source = self._source or self._start()
        try:
            # if sizes differ the generator is where it was: the stream draws the same crops from the same cursor
            return self._source.take(self.cursor, self._generator, self._check_labels)
        except SizeDiffers as error:
            if not self.layout.least:
                raise ForceregError(f"{error}, or {self.transform.one_size}") from error
        # such a set cannot become one tensor
        # no way back: the records don't change
        self._several_sizes = True
        self.close()
        return self._take()

    def _start(self) -> Source:
        records = open_records(self.path)
        # counting stops at what fits: a LevelDB has to be walked through for it
        count = None if self._several_sizes else records.count(self.budget // self.layout.record_bytes)
        if count is None or count * self.layout.record_bytes > self.budget:
            out, ahead = self._outputs(), self.ahead
            workers, device = self.workers, self.device
            return Stream(records, self.layout, self.transform, self.batch, ahead, workers, device, out, self.shard)
        # whole images, from which each feed crops its own: so one set serves them all
        # least 0: a record of another size ends the set, which _take answers by a stream
        shared = shared_set(records, count, replace(self.layout, least=0), self.device, self.workers)
        return Resident(shared, self.transform, self.batch, self._outputs(), partial(_key, self.path), self.shard)

    def named(self) -> str:
        """See Feed."""
        if self._given is None:
            return ""
        return record_name(self.layout.source, _key(self.path, self._given + self.shard.rank))

    def skip(self, batches: int) -> None:
        """See Feed; nothing is read."""
        records = batches * self.batch * self.shard.size
        # draws as training would have, so that the crops behind are the same
        self.transform.draw(records, self._generator)
        self.cursor += records
        # none for a LevelDB that nobody has read to the end: then the reader wraps
        count = open_records(self.path).count(0)
        if count:
            self.cursor %= count

    def size(self, most: int | None = None) -> int | None:
        """See Feed."""
        return open_records(self.path).count(most)

    def find_nonfinite(self, most: int | None = None) -> str | None:
        """See Feed; bytes are finite, so that only records of floats are read."""
        if self.layout.dtype.kind != "f":
            return None
        for key, value in islice(open_records(self.path).read(), most):
            image, _ = self.layout.decode(key, value)
            if (bad := first_nonfinite(image)) is not None:
                return str(record_error(self.layout.source, key, f"{image.flat[bad]:g}"))
        return None

    def _outputs(self) -> Callable[[], Tensor | None]:
        """Memory for a batch: on the CPU one that is kept."""
        # on a GPU PyTorch's allocator keeps what is freed
        return Recycled(self.shapes[0], torch.float32).empty if self.device.type == "cpu" else _nothing

    def limit_labels(self, count: int, ignore: int | None, consumer: str, top: str = "") -> None:
        """See Feed. Several consumers may each set their range."""
        if top == self.tops[0]:
            return  # a loss on the images themselves
        self.limits = (*self.limits, LabelRange(count, ignore, consumer))
        # a new source looks at all labels again, with this range
        self.close()

    def _check_labels(self, labels: np.ndarray, key: Callable[[int], bytes]) -> None:
        for limit in self.limits:
            bad = limit.first_bad(labels)
            if bad is not None:
                raise record_error(self.layout.source, key(bad), f"label {labels[bad]} found, expected {limit}")

    def state_dict(self) -> dict[str, Any]:
        """The cursor and, if batches are random, the generator's state."""
        state: dict[str, Any] = {"cursor": self.cursor}
        if self.transform.random:
            state["generator"] = self._generator.get_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Feed; tensors may come as arrays."""
        self.cursor = int(state["cursor"])
        # a snapshot of a net whose transform drew nothing has none
        if "generator" in state:
            self._generator.set_state(torch.as_tensor(state["generator"], dtype=torch.uint8))

    def close(self) -> None:
        """See Feed."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def __getstate__(self) -> dict[str, Any]:
        # threads and handles can't be copied; a torch.Generator can't be pickled
        return {**self.__dict__, "_source": None, "_generator": self._generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._generator = torch.Generator()
        self._generator.set_state(state["_generator"])


def _key(path: Path, index: int) -> bytes:
    return open_records(path).key(index)


def _nothing() -> None:
    return None
