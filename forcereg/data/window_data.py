"""The WindowData layer: windows of images, sampled as foreground and background and warped to one size (R-CNN)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from forcereg.data.datum import shape_text
from forcereg.data.decoded import to_device
from forcereg.data.feed import FeedContext, LabelRange, Shard, seeded
from forcereg.data.images import load_image
from forcereg.data.mean import read_mean
from forcereg.data.planned import PlannedFeed
from forcereg.data.prefetch import Job, Prefetch
from forcereg.data.transform import Transform, centre_crop, read_transform
from forcereg.data.windows import Crop, Windows, read_windows
from forcereg.errors import ForceregError
from forcereg.registry import source
from forcereg.schema import TEST, TransformationParameter
from forcereg.schema.scan import shown
from forcereg.system.paths import resolve

if TYPE_CHECKING:
    from pathlib import Path

    from forcereg.schema.spec import LayerSpec


@source(
    "WindowData",
    "window_data_param transform_param data_param.prefetch",
    limits="cache_images has no effect: decoded images are kept as far as the memory budget goes",
)
def window_feed(spec: LayerSpec, ctx: FeedContext) -> WindowFeed:
    """The feed of a WindowData layer: tops data (batch, C, crop_size, crop_size) and label (batch,), 0: background.

    Fails before anything is trained if the window file is missing or wrong, or has no windows to sample from.
    """
    param, options = spec.message.window_data_param, _merged(spec.message)
    _check(spec, param, int(options.crop_size))
    try:
        windows = read_windows(resolve(ctx.root, param.source), param.source, param.fg_threshold, param.bg_threshold)
        transform = _transform(options, windows.channels, ctx)
        crop = Crop(int(options.crop_size), int(param.context_pad), param.crop_mode == "square", options.mirror)
        feed = WindowFeed(spec, ctx, windows, crop, transform)
        # one as a sample: paths that start wrong are told before anything is trained
        feed.images().load(0)
    except ForceregError as error:
        raise spec.fail(str(error)) from error
    for kind, count, rows, least in (
        ("background", feed.background, windows.background, f"overlap < bg_threshold {param.bg_threshold:g}"),
        ("foreground", feed.foreground, windows.foreground, f"overlap >= fg_threshold {param.fg_threshold:g}"),
    ):
        if count and not len(rows):
            raise spec.fail(
                f"{param.source} has no {kind} windows ({least}), but a batch takes {count}; change the threshold "
                "or fg_fraction"
            )
    return feed


def _merged(message: Any) -> Any:
    """transform_param with what only window_data_param sets; for scale that one wins, which is where Caffe reads it."""
    own, merged = message.window_data_param, TransformationParameter()
    merged.CopyFrom(message.transform_param)
    for name in ("scale", "mean_file", "crop_size", "mirror"):
        if own.HasField(name) and (name == "scale" or not merged.HasField(name)):
            setattr(merged, name, getattr(own, name))
    return merged


def _check(spec: LayerSpec, param: Any, crop: int) -> None:
    if len(spec.tops) != 2:
        raise spec.fail(f"has {len(spec.tops)} tops; expected data and label")
    if not param.source:
        raise spec.fail("window_data_param.source is missing; expected a window file")
    if param.batch_size == 0:
        raise spec.fail("window_data_param.batch_size is missing or 0; expected at least 1")
    if crop == 0:
        raise spec.fail("crop_size is missing or 0; set it in transform_param, the windows are resized to it")
    if 2 * param.context_pad >= crop:
        raise spec.fail(f"context_pad {param.context_pad} on both sides leaves nothing of crop_size {crop}; use less")
    if param.crop_mode not in ("warp", "square"):
        raise spec.fail(f"unknown crop_mode {param.crop_mode!r}; expected warp or square")
    if not 0 <= param.fg_fraction <= 1:
        raise spec.fail(f"fg_fraction is {param.fg_fraction:g}; expected 0 to 1")
    spec.check_size("a batch", (param.batch_size, 3, crop, crop))


def _transform(options: Any, channels: int, ctx: FeedContext) -> Transform:
    """Mean and scale of crops; of a mean image the middle, whatever the crop shows, as in Caffe."""
    crop = int(options.crop_size)
    values = TransformationParameter(scale=options.scale, mean_value=options.mean_value)
    # as in testing, because windows are cut and mirrored by `Crop`
    transform = read_transform(values, TEST, (channels, crop, crop), ctx.root, ctx.device)
    if not options.mean_file:
        return transform
    if options.mean_value:
        raise ForceregError("has mean_file and mean_value; give one kind")
    path = resolve(ctx.root, options.mean_file)
    mean = read_mean(path)
    if mean.shape[0] != channels or min(mean.shape[1:]) < crop:
        expected = f"{channels} channels of at least {crop}x{crop}, the crop_size"
        raise ForceregError(f"mean_file {path} is {shape_text(mean.shape)}; expected {expected}")
    return replace(transform, mean=centre_crop(torch.from_numpy(mean)[None], crop)[0].to(ctx.device))


class WindowFeed(PlannedFeed):
    """Batches of `background` windows, then `foreground` ones, sampled with replacement; made by `window_feed`.

    Decoded images are kept as far as the budget goes, with cache_images or without.
    """

    def __init__(self, spec: LayerSpec, ctx: FeedContext, windows: Windows, crop: Crop, transform: Transform) -> None:
        param = spec.message.window_data_param
        super().__init__(spec, ctx, int(param.batch_size), (windows.channels, crop.size, crop.size))
        self.windows, self.crop, self.transform = windows, crop, transform
        self.root, self.root_folder = ctx.root, param.root_folder
        # in float32 as Caffe: 10 * 0.7 is 7 there, although the nearest float32 to 0.7 is below it
        self.foreground = int(np.float32(self.batch) * np.float32(param.fg_fraction))
        self.background = self.batch - self.foreground

    def next(self) -> tuple[Tensor, ...]:
        """The next batch: crops, zero where they show nothing of the image, and float32 labels."""
        batch: _Batch = self._fetch()
        filled, labels = to_device(torch.from_numpy(batch.filled), torch.from_numpy(batch.labels), self.device)
        data = self.transform(batch.images.to(self.device, non_blocking=True))
        if self.transform.mean is not None and (self.crop.pad or self.crop.square):
            top, bottom, left, right = filled[:, :, None].unbind(1)
            pixel = torch.arange(self.crop.size, device=self.device)
            rows, columns = (pixel >= top) & (pixel < bottom), (pixel >= left) & (pixel < right)
            # zero and not minus the mean, as in Caffe
            data.mul_(rows[:, None, :, None] & columns[:, None, None, :])
        return data, labels

    def images(self) -> _Images:
        """The images of the windows, none of them loaded."""
        return _Images(self.windows, self.root, self.root_folder, self.budget)

    def _start(self, empty: Callable[[], Tensor]) -> Prefetch:
        sampler = _Sampler(self.windows, self.crop, self.images(), self.background, self.foreground, self.shard)
        return Prefetch(sampler.jobs(self.seed, self.position, empty), sampler.work, self.ahead, self.workers)

    def _bad_label(self, limit: LabelRange) -> str | None:
        for rows in (self.windows.foreground, self.windows.background):
            bad = limit.first_bad(rows["label"])
            if bad is not None:
                return f"{self.windows.name}:{rows['line'][bad]}: label {rows['label'][bad]}"
        return None


@dataclass(frozen=True)
class _Batch:
    """Crops (batch, C, size, size), uint8; the part of each that is filled: top, bottom, left, right; labels."""

    images: Tensor
    filled: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class _Item:
    """One crop to be made of a window, a `ROW` as a tuple."""

    out: np.ndarray
    filled: np.ndarray
    window: tuple[int, ...]
    mirrored: int


@dataclass(frozen=True)
class _Sampler:
    """What the background threads work with."""

    windows: Windows
    crop: Crop
    images: _Images
    background: int
    foreground: int
    shard: Shard

    def jobs(self, seed: int, position: int, empty: Callable[[], Tensor]) -> Iterator[Job]:
        count = self.background + self.foreground
        while True:
            generator = seeded(torch.device("cpu"), seed, position)
            background = self._sample(self.windows.background, self.background, generator)
            rows = np.concatenate([background, self._sample(self.windows.foreground, self.foreground, generator)])
            draws = torch.randint(2 if self.crop.mirror else 1, (count * self.shard.size,), generator=generator)
            mirrored = self.shard.of(draws)
            batch = _Batch(empty(), np.empty((count, 4), np.int64), rows["label"].astype(np.float32))
            items = zip(batch.images.numpy(), batch.filled, rows.tolist(), mirrored.tolist(), strict=True)
            position += count * self.shard.size
            yield Job([_Item(*item) for item in items], batch, position)

    def _sample(self, rows: np.ndarray, count: int, generator: torch.Generator) -> np.ndarray:
        """`count` of `rows`, after as many have been drawn as all processes take."""
        if not count:
            return rows[:0]
        drawn = torch.randint(len(rows), (count * self.shard.size,), generator=generator)
        return rows[self.shard.of(drawn).numpy()]

    def work(self, item: _Item) -> None:
        index, _, _, *corners = item.window
        item.filled[:] = self.crop.cut(self.images.load(index), tuple(corners), bool(item.mirrored), item.out)


class _Images:
    """The images of a window file; as many of them as fit `room` bytes stay decoded."""

    def __init__(self, windows: Windows, root: Path, folder: str, room: int) -> None:
        self.windows, self.root, self.folder, self.room = windows, root, folder, room
        self.decoded: dict[int, np.ndarray] = {}
        self.lock = Lock()

    def load(self, index: int) -> np.ndarray:
        """Image `index`, uint8 (C, H, W). Raises ForceregError naming line and path."""
        image = self.decoded.get(index)
        if image is not None:
            return image
        listed = self.windows.images[index]
        where = f"{self.windows.name}:{listed.line}"
        try:
            path = resolve(self.root, self.folder + listed.path)
            image = load_image(path, self.windows.channels == 3)
        except ForceregError as error:
            raise ForceregError(f"{where}: {error}") from error
        if image.shape[1:] != (listed.height, listed.width):
            found, expected = shape_text(image.shape[1:]), f"{listed.height}x{listed.width}"
            raise ForceregError(
                f"{where}: {shown(str(path), 200)} is {found}, not {expected} as the window file says; correct one"
            )
        # another thread may have loaded the same one; its bytes count once
        with self.lock:
            if index not in self.decoded and image.nbytes <= self.room:
                self.room -= image.nbytes
                self.decoded[index] = image
        return image
