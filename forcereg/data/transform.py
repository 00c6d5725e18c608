"""Caffe's data transform, batched: crop, mirror, mean and scale of whole batches on their device.

value = (pixel - mean) * scale. Per image Caffe draws mirror, then the row, then the column of the
crop; a mean image belongs to the uncropped, unmirrored position.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forcereg.data.datum import shape_text
from forcereg.data.mean import read_mean
from forcereg.errors import ForceregError
from forcereg.paths import resolve
from forcereg.schema import TRAIN


@dataclass(frozen=True)
class Transform:
    """A transform_param checked against the images it is for.

    `mean`: None, (C, 1, 1) or the mean image (C, H, W), on the batches' device. `crop`: output rows and
    columns, 0 for all. `random_crop`: anywhere (TRAIN) instead of the centre. `mirror`: every second image.
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

    def shape(self, image: tuple[int, ...]) -> tuple[int, ...]:
        """(C, H, W) before -> after."""
        return (image[0], self.crop, self.crop) if self.crop else image

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images (N, C, H, W), uint8 or float32 -> a new float32 tensor; `generator` (CPU) if `random`."""
        if self.mean is not None and self.mean.shape[1:] != (1, 1):
            images = _float_copy(images).sub_(self.mean)
        if self.random:
            images = self._gather(images, generator)
        elif self.crop:
            images = centre_crop(images, self.crop)
        if self.mean is not None and self.mean.shape[1:] == (1, 1):
            images = _float_copy(images).sub_(self.mean)
        return images * self.scale

    def _gather(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        height, width = images.shape[2:]
        rows, columns = (self.crop, self.crop) if self.crop else (height, width)
        # A fixed number of draws per image: the sequence does not depend on how images are batched.
        mirrored, top, left = torch.randint(1 << 62, (len(images), 3), generator=generator).unbind(1)
        mirrored = mirrored.remainder(2) if self.mirror else torch.zeros_like(mirrored)
        if self.random_crop:
            top, left = top.remainder(height - rows + 1), left.remainder(width - columns + 1)
        else:
            top = torch.full_like(top, (height - rows) // 2)
            left = torch.full_like(left, (width - columns) // 2)
        draws = torch.stack((top, left, mirrored)).to(images.device, non_blocking=True)
        return crop_and_mirror(images, draws, rows, columns)


def _float_copy(images: Tensor) -> Tensor:
    # A subtraction of mixed types would be thirty times slower on the CPU.
    return images.to(torch.float32, copy=True)


def centre_crop(images: Tensor, size: int) -> Tensor:
    """The middle size x size of images (N, C, H, W), rounded towards the top left; a view."""
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    return images[:, :, top : top + size, left : left + size]


def crop_and_mirror(images: Tensor, draws: Tensor, rows: int, columns: int) -> Tensor:
    """Image n of images (N, C, H, W) from draws[0, n], draws[1, n] on, mirrored where draws[2, n] is 1.

    `draws` is int64 (3, N): top, left, mirrored. Returns (N, C, rows, columns) of the images' type.
    """
    count, channels, height, width = images.shape
    top, left, mirrored = draws.unsqueeze(2)
    row = top + torch.arange(rows, device=images.device)
    column = torch.arange(columns, device=images.device)
    column = left + torch.where(mirrored.bool(), columns - 1 - column, column)
    position = (row[:, :, None] * width + column[:, None, :]).view(count, 1, rows * columns)
    flat = images.reshape(count, channels, height * width)
    return flat.gather(2, position.expand(-1, channels, -1)).view(count, channels, rows, columns)


def read_transform(param: Any, phase: int, image: tuple[int, ...], root: Path, device: torch.device) -> Transform:
    """The Transform of a TransformationParameter for images of shape (C, H, W).

    Relative mean files are taken from `root`. Raises ForceregError (without the layer's name).
    """
    crop = int(param.crop_size)
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
            raise ForceregError(
                f"mean_file {path} is {shape_text(mean.shape)}, the uncropped images are {shape_text(image)}"
            )
        return torch.from_numpy(mean)
    values = list(param.mean_value)
    if not values:
        return None
    if len(values) not in (1, image[0]):
        raise ForceregError(f"has {len(values)} mean_value entries for {image[0]} channels; give one or {image[0]}")
    return torch.tensor(values, dtype=torch.float32).expand(image[0]).reshape(-1, 1, 1).clone()
