"""Caffe's data transform, batched: crop, mirror, mean and scale of whole batches on their device.

value = (pixel - mean) * scale. Per image Caffe draws mirror, then the row, then the column of the
crop; a mean image belongs to the uncropped, unmirrored position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcereg.data.datum import shape_text
from forcereg.data.feed import Shard
from forcereg.data.mean import read_mean
from forcereg.errors import ForceregError
from forcereg.schema import TRAIN
from forcereg.schema.spec import LayerSpec
from forcereg.system.paths import resolve


@dataclass(frozen=True)
class Transform:
    """A transform_param checked against the images it is for.

    `mean`: None, (C, 1, 1) or the mean image (C, H, W), on the batches' device. `crop`: output rows and
    columns, 0 for all. `random_crop`: anywhere (TRAIN) instead of the centre. `mirror`: every second image.
    Calling it is draw, place, crop and finish in one; a stream crops elsewhere.
    """

    scale: float = 1.0
    mean: Tensor | None = None
    crop: int = 0
    random_crop: bool = False
    mirror: bool = False

    @property
    def random(self) -> bool:
        """Whether batches depend on a generator."""
        return self.mirror or self.random_crop

    def least(self, batch: int) -> int:
        """Rows and columns that images of any size must have in batches of so many; 0 if all must be of one size.

        As in Caffe each batch takes its image's size where it has only one; a mean image fits one size only.
        """
        if self._mean_image:
            return 0
        return self.crop or (1 if batch == 1 else 0)

    @property
    def one_size(self) -> str:
        """What to do where images must be of one size and aren't."""
        if self._mean_image:
            return "subtract mean_value in place of mean_file"
        return "set crop_size, or batch_size: 1, with which each batch takes its image's size"

    @property
    def _mean_image(self) -> bool:
        return self.mean is not None and self.mean.shape[1:] != (1, 1)

    def shape(self, image: tuple[int, ...]) -> tuple[int, ...]:
        """(C, H, W) before -> after."""
        return (image[0], self.crop, self.crop) if self.crop else image

    def __call__(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        out: Tensor | None = None,
        shard: Shard = Shard(),  # noqa: B008  (it is frozen)
    ) -> Tensor:
        """Images (N, C, H, W), uint8 or float32 -> a new float32 tensor, or `out`; `generator` (CPU) if `random`.

        Draws for the images of all processes of `shard`, so that those of one image do not depend on their number.
        """
        height, width = images.shape[2:]
        _, rows, columns = self.shape((0, height, width))
        places = None
        if self.random:
            draws = shard.of(self.draw(len(images) * shard.size, generator))
            places = torch.stack(self.place(draws.unbind(1), height, width))
            images = crop_and_mirror(images, places, rows, columns, out)
        elif self.crop:
            images = centre_crop(images, self.crop)
        return self.finish(images, places, out)

    def draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        """What decides the crops of `count` images, int64 (count, 3), for `place`; nothing is drawn unless `random`."""
        if not self.random:
            return torch.zeros((count, 3), dtype=torch.int64)
        # A fixed number of draws per image: the sequence does not depend on how images are batched.
        # so many that remainders are as good as even whatever the size they are taken by
        return torch.randint(1 << 62, (count, 3), generator=generator)

    def place(self, draw: Sequence[Any], height: int, width: int) -> tuple[Any, Any, Any]:
        """Top, left and mirrored (0 or 1) of the crop of a height x width image, all ints or all tensors as `draw`."""
        mirrored, top, left = draw
        _, rows, columns = self.shape((0, height, width))
        if self.random_crop:
            top, left = top % (height - rows + 1), left % (width - columns + 1)
        else:
            # % 1: zero, but of the draw's kind, an int or a tensor
            top, left = top % 1 + (height - rows) // 2, left % 1 + (width - columns) // 2
        return top, left, mirrored % (2 if self.mirror else 1)

    def finish(self, images: Tensor, places: Tensor | None, out: Tensor | None = None) -> Tensor:
        """Subtracts and scales images (N, C, rows, columns), cropped at `places` (3, N) or, if None, in the centre.

        Returns a new float32 tensor, or `out`, which `images` may already be.
        """
        mean = self.mean
        if mean is None and out is None:
            # new and float32 also where the scale is 1 and images are bytes
            return images * self.scale
        if images is not out:
            # A subtraction of mixed types would be thirty times slower on the CPU.
            images = images.to(torch.float32, copy=True) if out is None else out.copy_(images)
        if mean is not None and self._mean_image and places is not None:
            subtract_crops(images, mean, places)
        elif mean is not None:
            images.sub_(centre_crop(mean, self.crop) if self._mean_image and self.crop else mean)
        return images if self.scale == 1 else images.mul_(self.scale)


def centre_crop(images: Tensor, size: int) -> Tensor:
    """The middle size x size of images (..., H, W), rounded towards the top left; a view."""
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size]


def crop_view(image: np.ndarray, top: int, left: int, mirrored: int, rows: int, columns: int) -> np.ndarray:
    """The crop of `image` (C, H, W) that begins at `top`, `left`, mirrored or not; a view."""
    view = image[:, top : top + rows, left : left + columns]
    return view[:, :, ::-1] if mirrored else view


def crop_and_mirror(images: Tensor, places: Tensor, rows: int, columns: int, out: Tensor | None = None) -> Tensor:
    """Image n of images (N, C, H, W) from places[0, n], places[1, n] on, mirrored where places[2, n] is 1.

    `places` is int64 (3, N), on the CPU: top, left, mirrored. Returns (N, C, rows, columns) of the images' type,
    or `out`, of any type, if given.
    """
    if images.device.type != "cpu":
        # on a GPU an operation for each image would cost a launch each
        found = gather_crops(images, places.to(images.device, non_blocking=True), rows, columns)
        return found if out is None else out.copy_(found)
    if out is None:
        out = images.new_empty((*images.shape[:2], rows, columns))
    # Image by image is four times faster than one gather by computed positions.
    for image, (top, left, mirrored), target in zip(images.numpy(), places.t().tolist(), out.numpy(), strict=True):
        target[:] = crop_view(image, top, left, mirrored, rows, columns)
    return out


def subtract_crops(images: Tensor, mean: Tensor, places: Tensor) -> None:
    """Subtracts from each of images (N, C, rows, columns), float32, the crop of `mean` (C, H, W) at its place."""
    rows, columns = images.shape[2:]
    if images.device.type != "cpu":
        # a view, though there are as many as images
        means = mean.expand(len(images), -1, -1, -1)
        images.sub_(gather_crops(means, places.to(images.device, non_blocking=True), rows, columns))
        return
    mean_image = mean.numpy()
    for image, (top, left, mirrored) in zip(images.numpy(), places.t().tolist(), strict=True):
        image -= crop_view(mean_image, top, left, mirrored, rows, columns)


def gather_crops(images: Tensor, places: Tensor, rows: int, columns: int) -> Tensor:
    """As `crop_and_mirror`, in a few operations on the images' device, where `places` must be too."""
    count, channels, height, width = images.shape
    top, left, mirrored = places.unsqueeze(2)
    row = top + torch.arange(rows, device=images.device)
    column = torch.arange(columns, device=images.device)
    column = left + torch.where(mirrored.bool(), columns - 1 - column, column)
    position = (row[:, :, None] * width + column[:, None, :]).view(count, 1, rows * columns)
    flat = images.reshape(count, channels, height * width)
    return flat.gather(2, position.expand(-1, channels, -1)).view(count, channels, rows, columns)


def warn_of_old_fields(spec: LayerSpec, param: str) -> None:
    """Warns of fields of the layer's own message that Caffe reads from transform_param only."""
    for name in ("scale", "mean_file", "crop_size", "mirror"):
        if getattr(spec.message, param).HasField(name):
            spec.warn(f"{param}.{name} has no effect; write it in transform_param")


def read_transform(param: Any, phase: int, image: tuple[int, ...], root: Path, device: torch.device) -> Transform:
    """The Transform of a TransformationParameter for images of shape (C, H, W).

    Relative mean files are taken from `root`. Raises ForceregError (without the layer's name).
    """
    for name, value in (("scale", param.scale), *(("mean_value", value) for value in param.mean_value)):
        if not math.isfinite(value):
            raise ForceregError(f"{name} is {value:g}; expected a number")
    crop = int(param.crop_size)
    # by the first image; others of a set of several sizes are looked at as they come
    if crop > min(image[1:]):
        raise ForceregError(
            f"crop_size {crop} does not fit {shape_text(image)} images; expected at most {min(image[1:])}"
        )
    random_crop = bool(crop) and phase == TRAIN
    mean = _mean(param, image, root)
    return Transform(
        scale=param.scale,
        mean=mean.to(device) if mean is not None else None,
        crop=crop,
        random_crop=random_crop,
        mirror=param.mirror,
    )


def _mean(param: Any, image: tuple[int, ...], root: Path) -> Tensor | None:
    if param.mean_file and param.mean_value:
        raise ForceregError("has mean_file and mean_value; give one kind")
    if param.mean_file:
        path = resolve(root, param.mean_file)
        mean = read_mean(path)
        if mean.shape != image:
            found = f"mean_file {path} is {shape_text(mean.shape)}, the uncropped images are {shape_text(image)}"
            fix = "resize the images to it, as by new_height and new_width"
            if mean.shape[0] != image[0]:
                fix = "read them in its colours (force_color, force_gray, is_color)"
            raise ForceregError(f"{found}; {fix}, or make it anew with `forcereg data mean`")
        return torch.from_numpy(mean)
    values = list(param.mean_value)
    if not values:
        return None
    if len(values) not in (1, image[0]):
        raise ForceregError(f"has {len(values)} mean_value entries for {image[0]} channels; give one or {image[0]}")
    return torch.tensor(values, dtype=torch.float32).expand(image[0]).reshape(-1, 1, 1).clone()
