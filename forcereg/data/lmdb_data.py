"""The Data layer: Datum records of an LMDB, in key order, wrapping around at the end."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from forcereg.data.datum import Color, Layout, SizeDiffers, record_error
from forcereg.data.decoded import Resident, Source, Stream, shared_set
from forcereg.data.feed import Feed, FeedContext, LabelRange
from forcereg.data.records import LmdbRecords
from forcereg.data.transform import Transform, read_transform
from forcereg.errors import ForceregError
from forcereg.paths import resolve
from forcereg.registry import source

if TYPE_CHECKING:
    from forcereg.spec import LayerSpec

_log = logging.getLogger(__name__)


@source("Data", "data_param transform_param")
def lmdb_feed(spec: LayerSpec, ctx: FeedContext) -> LmdbFeed:
    """The feed of a Data layer: tops data (batch, C, H, W) and, if asked for, label (batch,).

    Fails before anything is trained if the LMDB is missing, damaged or does not fit transform_param.
    `rand_skip` is ignored, as in Caffe.
    """
    param, transform_param = spec.message.data_param, spec.message.transform_param
    if not 1 <= len(spec.tops) <= 2:
        raise spec.fail(f"has {len(spec.tops)} tops; expected data, or data and label")
    if param.batch_size == 0:
        raise spec.fail("data_param.batch_size is missing or 0; expected at least 1")
    if not param.source:
        raise spec.fail("data_param.source is missing; expected the path of an LMDB")
    if transform_param.force_color and transform_param.force_gray:
        raise spec.fail("has force_color and force_gray; give one")
    color: Color = "color" if transform_param.force_color else "gray" if transform_param.force_gray else "native"
    path = resolve(ctx.root, param.source)
    try:
        records = _find(path, param.source)
        key, value = next(records.read())
        layout = Layout.of(param.source, key, value, color)
        if color != "native" and not layout.encoded:
            _log.warning("%s: force_color and force_gray have no effect on raw records", spec.where)
        transform = read_transform(transform_param, spec.phase, layout.shape, ctx.root, ctx.device)
    except ForceregError as error:
        raise spec.fail(str(error)) from error
    return LmdbFeed(spec, ctx, path, len(records), layout, transform)


def _find(path: Path, named: str) -> LmdbRecords:
    if os.path.isfile(path):
        raise ForceregError(f"source '{named}' is a file; expected the folder that holds data.mdb")
    if os.path.isfile(path / "CURRENT") and not os.path.exists(path / "data.mdb"):
        raise ForceregError(f"source '{named}' is a LevelDB, which is not read; convert it to LMDB (backend: LMDB)")
    if not os.path.lexists(path):
        maker = "cifar10 SRC" if "cifar" in named else "mnist IDX_DIR"
        raise ForceregError(f"source '{named}': no LMDB at {path}; make one with `forcereg data {maker} {path.parent}`")
    return LmdbRecords(path)


class LmdbFeed(Feed):
    """Batches of one LMDB; made by `lmdb_feed`.

    A set within the budget is decoded once into one tensor (shared by feeds over the same file). A larger one,
    or one of images of several sizes that are cropped, is read ahead by `prefetch` batches. `cursor` counts
    what was handed out, so resuming does not depend on what was decoded ahead.
    """

    def __init__(
        self,
        spec: LayerSpec,
        ctx: FeedContext,
        path: Path,
        count: int,
        layout: Layout,
        transform: Transform,
    ) -> None:
        param = spec.message.data_param
        self.where, self.path, self.layout, self.transform = spec.where, path, layout, transform
        self.batch, self.ahead = int(param.batch_size), int(param.prefetch)
        self.device, self.budget, self.count = ctx.device, ctx.budget, count
        self.cursor = 0
        self.limits: tuple[LabelRange, ...] = ()
        self.tops = spec.tops
        images = (self.batch, *transform.shape(layout.shape))
        self.shapes = (images, (self.batch,))[: len(spec.tops)]
        self._generator = torch.Generator()
        if ctx.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(ctx.seed)
        self._source: Source | None = None

    def next(self) -> tuple[Tensor, ...]:
        """The next batch: images as the transform leaves them and float32 labels, both the caller's own."""
        try:
            if self._source is None:
                self._source = self._start()
            images, labels = self._take(self._source)
        except ForceregError as error:
            raise ForceregError(f"{self.where}: {error}") from error
        self.cursor = (self.cursor + self.batch) % self.count
        if isinstance(images, list):
            images = torch.cat([self.transform(image[None], self._generator) for image in images])
        else:
            images = self.transform(images, self._generator)
        return (images,) if len(self.tops) == 1 else (images, labels.clone())

    def _take(self, source: Source) -> tuple[Tensor | list[Tensor], Tensor]:
        try:
            return source.take(self.cursor, self.batch, self._check_labels)
        except SizeDiffers:
            mean = self.transform.mean
            if not self.transform.crop or (mean is not None and mean.shape[1:] != (1, 1)):
                raise
        # crops of one size, out of images of several: such a set cannot become one tensor
        self.layout = replace(self.layout, least=self.transform.crop)
        source.close()
        self._source = self._start()
        return self._source.take(self.cursor, self.batch, self._check_labels)

    def _start(self) -> Source:
        records = LmdbRecords(self.path)
        self.count = len(records)
        self.cursor %= self.count
        if not self.layout.least and self.count * self.layout.record_bytes <= self.budget:
            return Resident(shared_set(records, self.layout, self.device))
        return Stream(records, self.layout, self.ahead, self.device)

    def limit_labels(self, count: int, ignore: int | None, consumer: str) -> None:
        """See Feed. Several consumers may each set their range."""
        self.limits = (*self.limits, LabelRange(count, ignore, consumer))
        self.close()

    def _check_labels(self, first: int, labels: np.ndarray) -> None:
        for limit in self.limits:
            bad = limit.first_bad(labels)
            if bad is not None:
                key = LmdbRecords(self.path).key((first + bad) % self.count)
                raise record_error(self.layout.source, key, f"label {labels[bad]} found, expected {limit}")

    def state_dict(self) -> dict[str, Any]:
        """The cursor and, if batches are random, the generator's state."""
        state: dict[str, Any] = {"cursor": self.cursor}
        if self.transform.random:
            state["generator"] = self._generator.get_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Feed; tensors may come as arrays."""
        self.cursor = int(state["cursor"]) % self.count
        if "generator" in state:
            self._generator.set_state(torch.as_tensor(state["generator"], dtype=torch.uint8))

    def close(self) -> None:
        """See Feed."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None, "_generator": self._generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._generator = torch.Generator()
        self._generator.set_state(state["_generator"])
