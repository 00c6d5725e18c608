"""The ImageData layer: image files named in a list, in its order or shuffled, wrapping around at the end."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from forcereg.data.buffers import put, tensor_of
from forcereg.data.datum import shape_text
from forcereg.data.decoded import to_device
from forcereg.data.feed import FeedContext, LabelRange, Shard, seeded
from forcereg.data.images import load_image, text_lines
from forcereg.data.planned import PlannedFeed
from forcereg.data.prefetch import Job, Prefetch
from forcereg.data.transform import Transform, crop_view, read_transform, warn_of_old_fields
from forcereg.errors import ForceregError
from forcereg.registry import source
from forcereg.schema.scan import shown
from forcereg.system.device import shapes_change
from forcereg.system.paths import resolve

if TYPE_CHECKING:
    from forcereg.schema.spec import LayerSpec


_CPU = torch.device("cpu")
_SKIP, _SHUFFLE, _TRANSFORM = range(3)  # what a generator is for
_LINE = re.compile(r"(.*\S)[ \t]+(\S+)")
_LABEL = re.compile(r"[+-]?[0-9]{1,10}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_MOST, _LIKELY = 2000, 50  # numbers of a line taken for labels, and those of them of which each may be a path's own
_OTHER = "HDF5Data, or from a second Data layer over an LMDB of labels"
"""Where labels come from that a list can't hold."""


@source(
    "ImageData",
    "image_data_param.source,batch_size,rand_skip,shuffle,new_height,new_width,is_color,root_folder "
    "transform_param data_param.prefetch",
)
def image_feed(spec: LayerSpec, ctx: FeedContext) -> ImageFeed:
    """The feed of an ImageData layer: tops data (batch, C, H, W), B, G, R or grey, and label (batch,).

    Fails before anything is trained if the list is missing or wrong, or its first image does not fit.
    """
    param, transform_param = spec.message.image_data_param, spec.message.transform_param
    if len(spec.tops) != 2:
        raise spec.fail(f"has {len(spec.tops)} tops; expected data and label")
    if param.batch_size == 0:
        raise spec.fail("image_data_param.batch_size is 0; expected at least 1")
    if not param.source:
        raise spec.fail("image_data_param.source is missing; expected a file with lines of an image's path and label")
    if bool(param.new_height) != bool(param.new_width):
        raise spec.fail(f"has new_height {param.new_height} and new_width {param.new_width}; give both or neither")
    _warn(spec)
    size = (int(param.new_height), int(param.new_width))
    spec.check_size("a batch of resized images", (param.batch_size, 3 if param.is_color else 1, *size))
    try:
        listed = read_list(resolve(ctx.root, param.source), param.source)
        files = ImageFiles(listed, ctx.root, param.root_folder, param.is_color, size if any(size) else None)
        files.shape = files.first_shape()
        transform = read_transform(transform_param, spec.phase, files.shape, ctx.root, ctx.device)
    except ForceregError as error:
        raise spec.fail(str(error)) from error
    if param.rand_skip > len(listed.labels):
        raise spec.fail(f"rand_skip {param.rand_skip} exceeds the {len(listed.labels)} images of {param.source}")
    return ImageFeed(spec, ctx, files, transform)


def _warn(spec: LayerSpec) -> None:
    warn_of_old_fields(spec, "image_data_param")
    if spec.message.transform_param.force_color or spec.message.transform_param.force_gray:
        spec.warn("force_color and force_gray have no effect here; use is_color")


@dataclass(frozen=True)
class ImageList:
    """The lines `path label` of the file `name`: parallel paths, labels (int64) and line numbers."""

    name: str
    paths: tuple[str, ...]
    labels: np.ndarray
    lines: np.ndarray


def read_list(path: Path, name: str) -> ImageList:
    """The image list `path`, called `name` in errors; a line's last space or tab splits it, empty lines are skipped.

    Raises ForceregError, with the line's number, for a line without an integer label, or if there is no image.
    """
    paths, labels, lines = [], [], []
    for number, line in text_lines(path, name):
        parts = _LINE.fullmatch(line)
        if parts is None or not _LABEL.fullmatch(parts[2]) or abs(int(parts[2])) >= 1 << 31:
            fix = f"; labels that are no integers come from {_OTHER}" if parts and _NUMBER.fullmatch(parts[2]) else ""
            raise ForceregError(
                f"{name}:{number}: is '{shown(line, 200)}'; expected an image's path, a space or tab and its label, an "
                f"integer{fix}"
            )
        paths.append(parts[1])
        labels.append(int(parts[2]))
        lines.append(number)
    if not paths:
        raise ForceregError(f"{path}: lists no images; expected lines of an image's path and label")
    return ImageList(name, tuple(paths), np.array(labels), np.array(lines))


def check_labels(where: str, path: str, full: str) -> None:
    """Raises ForceregError, beginning with `where`, if several labels of a line have become a part of its `path`.

    That is where the file `full`, which ends in `path`, isn't there, but is without the numbers at the end.
    """
    words, end, ends = path.replace("\t", " "), len(path), list[int]()
    while len(ends) < _MOST and (place := words.rfind(" ", 0, end)) > 0 and _NUMBER.fullmatch(path, place + 1, end):
        end = len(words[:place].rstrip())
        ends.append(end)
    if not ends or os.path.exists(full):
        return
    for end in (ends[-1], *ends[:_LIKELY]):
        if os.path.exists(full[: len(full) - len(path) + end]):
            raise ForceregError(
                f"{where}: there is no '{shown(path, 100)}', but '{shown(path[:end], 100)}'; expected one label in a "
                f"line, behind its last space; several labels come from {_OTHER}"
            )


@dataclass
class ImageFiles:
    """The images of a list as arrays; `root_folder` is put before their paths as it is, without a slash.

    `size`: resized to these rows and columns. `shape`: (C, H, W) of the first image, which the others must
    have too; but if `least` is not 0, they may be of any size from `least` x `least` on. `one_size`: what else to do
    about images of several sizes.
    """

    listed: ImageList
    root: Path
    root_folder: str
    color: bool
    size: tuple[int, int] | None
    shape: tuple[int, ...] = ()
    least: int = 0
    one_size: str = ""

    def __len__(self) -> int:
        return len(self.listed.paths)

    def named(self, index: int) -> str:
        """Image `index` of the list as errors name it."""
        return f"{self.listed.name}:{self.listed.lines[index]}: {shown(self.listed.paths[index], 200)}"

    def load(self, index: int) -> np.ndarray:
        """Image `index` of the list, uint8 (C, H, W). Raises ForceregError naming line and path."""
        image, where = self._read(index, self.size)
        # resized ones are of one size whatever they were
        if self.shape and image.shape != self.shape and not self.size:
            self._check(image, where)
        return image

    def first_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the first image, for which it is read but not resized. Raises ForceregError as `load`."""
        # the first alone is looked at: reading all would take as long as an epoch
        channels, *size = self._read(0, None)[0].shape
        return (channels, *(self.size or size))

    def _read(self, index: int, size: tuple[int, int] | None) -> tuple[np.ndarray, str]:
        """The image as its file holds it, or resized, and which one it is."""
        line, listed = f"{self.listed.name}:{self.listed.lines[index]}", self.listed.paths[index]
        try:
            path = resolve(self.root, self.root_folder + listed)
            return load_image(path, self.color, size), f"{line}: {shown(str(path), 200)}"
        except ForceregError as error:
            check_labels(line, listed, os.path.join(self.root, self.root_folder + listed))
            raise ForceregError(f"{line}: {error}") from error

    def _check(self, image: np.ndarray, where: str) -> None:
        text = f"{where}: is {shape_text(image.shape)}"
        if not self.least:
            first = f"{self.listed.name}:{self.listed.lines[0]}"
            fix = f"set new_height and new_width, or {self.one_size}"
            raise ForceregError(f"{text}, expected {shape_text(self.shape)} as {first}; {fix}")
        if min(image.shape[1:]) < self.least:
            raise ForceregError(f"{text}, smaller than crop_size {self.least}; set new_height and new_width")


class ImageFeed(PlannedFeed):
    """Batches of listed images; made by `image_feed`.

    Images that fit the budget are kept as they are first needed, and from then on the set is one tensor on the
    device. A larger set is decoded again and again by the workers.
    """

    def __init__(self, spec: LayerSpec, ctx: FeedContext, files: ImageFiles, transform: Transform) -> None:
        param = spec.message.image_data_param
        super().__init__(spec, ctx, int(param.batch_size), transform.shape(files.shape))
        files.least, files.one_size = transform.least(self.batch), transform.one_size
        self.files, self.transform, self.shuffle = files, transform, bool(param.shuffle)
        if param.rand_skip:
            # Caffe skips a random number below rand_skip; a resumed run has the position in its state instead
            self.position = int(torch.randint(param.rand_skip, (), generator=seeded(_CPU, self.seed, _SKIP)))
        self._given: int | None = None  # the first image of the last batch
        self._kept: _Kept | None = None
        self._resident: Tensor | None = None

    def size(self, most: int | None = None) -> int:
        """See Feed."""
        return len(self.files)

    def named(self) -> str:
        """See Feed."""
        return "" if self._given is None else self.files.named(self._given)

    def next(self) -> tuple[Tensor, ...]:
        """The next batch: images as the transform leaves them and float32 labels."""
        if self._resident is not None:
            records = self.batch * self.shard.size
            index = self.shard.of(order(len(self.files), self.shuffle, self.seed, self.position, records))
            at, labels = to_device(torch.from_numpy(index), self._labels(index), self.device)
            generator = seeded(_CPU, self.seed, _TRANSFORM, self.position)
            data = self.transform(self._resident[at], generator, shard=self.shard)
            self._given = int(index[0])
            self.position += records
            return data, labels
        batch: _Batch = self._fetch()
        self._given = int(batch.index[0])
        if self._kept is not None and self._kept.have.all():
            # all have been decoded once: from here on no thread, no copies, crops on the device
            self._resident = torch.from_numpy(self._kept.images).to(self.device)
            super().close()
            self._kept = None
        images = tensor_of(batch.images, batch.memory)
        if images is not batch.memory:
            shapes_change(self.device)
        images, labels = to_device(images, self._labels(batch.index), self.device)
        places = None
        if self.transform.random:
            places = torch.stack(self.transform.place(batch.draws.unbind(1), *self.files.shape[1:]))
        return self.transform.finish(images, places), labels

    def _labels(self, index: np.ndarray) -> Tensor:
        return torch.from_numpy(self.files.listed.labels[index].astype(np.float32))

    def _start(self, empty: Callable[[], Tensor]) -> Prefetch:
        count, shape = len(self.files), self.files.shape
        # counted uncropped: it is whole images that are kept
        fits = count * int(np.prod(shape)) <= self.budget
        self._kept = _Kept(np.empty((count, *shape), np.uint8), np.zeros(count, bool)) if fits else None
        reader = _Reader(self.files, self.transform, self.shuffle, self.seed, self._kept, self.shard)
        jobs = reader.jobs(self.position, self.batch, empty)
        return Prefetch(jobs, reader.work, self.ahead, self.workers)

    def _bad_label(self, limit: LabelRange) -> str | None:
        listed = self.files.listed
        bad = limit.first_bad(listed.labels)
        return None if bad is None else f"{listed.name}:{listed.lines[bad]}: label {listed.labels[bad]}"

    def close(self) -> None:
        """See Feed."""
        super().close()
        self._kept = self._resident = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_kept": None, "_resident": None}


def order(count: int, shuffle: bool, seed: int, position: int, batch: int) -> np.ndarray:
    """Which of `count` images come at `position` and the `batch` - 1 places behind it.

    If shuffled, every round through the list has an order of its own, decided by `seed`.
    """
    places = np.arange(position, position + batch)
    if not shuffle:
        return places % count
    # a batch may end one round and begin the next, which has another order
    rounds = np.split(places, np.flatnonzero(places[1:] % count == 0) + 1)
    return np.concatenate([_permutation(seed, int(part[0]) // count, count)[part % count] for part in rounds])


@lru_cache(maxsize=4)  # a training and a test set, each while it passes from one round to the next
def _permutation(seed: int, number: int, count: int) -> np.ndarray:
    return torch.randperm(count, generator=seeded(_CPU, seed, _SHUFFLE, number)).numpy()


@dataclass(frozen=True)
class _Kept:
    """Decoded images (N, C, H, W) and which of them are there."""

    images: np.ndarray
    have: np.ndarray


@dataclass(eq=False)
class _Batch:
    """Crops (batch, C, rows, columns), uint8, of the images `index` of the list, and what was drawn for them.

    They lie in `memory`, but for one of another size, see `put`.
    """

    memory: Tensor
    images: np.ndarray
    index: np.ndarray
    draws: Tensor


@dataclass(frozen=True)
class _Item:
    """One crop to be made of image `index` of the list, as a row of its batch."""

    batch: _Batch
    row: int
    index: int
    draw: list[int]


@dataclass(frozen=True)
class _Reader:
    """What the background threads work with."""

    files: ImageFiles
    transform: Transform
    shuffle: bool
    seed: int
    kept: _Kept | None
    shard: Shard

    def jobs(self, position: int, batch: int, empty: Callable[[], Tensor]) -> Iterator[Job]:
        records = batch * self.shard.size
        while True:
            index = self.shard.of(order(len(self.files), self.shuffle, self.seed, position, records))
            # of the position alone, so that a crop doesn't depend on what was prepared ahead or resumed
            draws = self.shard.of(self.transform.draw(records, seeded(_CPU, self.seed, _TRANSFORM, position)))
            position += records
            memory = empty()
            made = _Batch(memory, memory.numpy(), index, draws)
            rows = zip(index.tolist(), draws.tolist(), strict=True)
            yield Job([_Item(made, row, *of) for row, of in enumerate(rows)], made, position)

    def work(self, item: _Item) -> None:
        image = self._image(item.index)
        top, left, mirrored = self.transform.place(item.draw, *image.shape[1:])
        _, *size = self.transform.shape(image.shape)
        crop = crop_view(image, top, left, mirrored, *size)
        item.batch.images = put(item.batch.images, item.row, crop)

    def _image(self, index: int) -> np.ndarray:
        kept = self.kept
        if kept is not None and kept.have[index]:
            return kept.images[index]
        image = self.files.load(index)
        # one of another size has no row there, and is decoded again each time
        if kept is not None and image.shape == self.files.shape:
            kept.images[index] = image
            # behind the image: another thread may look in between
            kept.have[index] = True
        return image
