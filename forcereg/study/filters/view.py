"""What all views of filters have: the numbers as CSV, and a picture; and how a filter becomes an image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from math import ceil, sqrt
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from forcereg.report.plot import rendered
from forcereg.report.table import csv_text

ROOM = 0.14
"""Between the images of filters, in their own sizes."""


class View(ABC):
    """One way to look at a layer's filters in one or several snapshots."""

    columns: ClassVar[tuple[str, ...]]
    """Of its CSV file."""

    @abstractmethod
    def rows(self) -> Iterator[Sequence[Any]]:
        """What the columns hold."""

    @abstractmethod
    def lines(self) -> Iterator[str]:
        """What it comes to, a line for each snapshot."""

    @abstractmethod
    def figure(self) -> Any:
        """The picture as matplotlib's Figure. Raises ForceregError without matplotlib."""

    def csv(self) -> str:
        """The numbers behind the picture."""
        return csv_text(self.columns, self.rows())

    def picture(self, kind: str) -> bytes:
        """The picture as "png", "svg" or "pdf". Raises ForceregError without matplotlib."""
        return rendered(self.figure(), kind)


def images(weight: Tensor) -> np.ndarray:
    """Filters (N, C, *kernel) as images of 0 to 1, (N, H, W) in grey or (N, H, W, 3) in colour; 0.5 is a weight of 0.

    Three channels are red, green and blue; of any other number each is a tile of its own, in rows. Every filter is
    scaled by its own largest weight.
    """
    kernel = (1, 1, *weight.shape[2:])[-2:]
    planes = weight.reshape(len(weight), -1, *kernel)
    scale = planes.abs().amax((1, 2, 3), keepdim=True)
    planes = 0.5 + 0.5 * torch.where(scale > 0, planes / scale, 0.0)
    count = planes.shape[1]
    if count == 3 and weight.dim() > 2:
        return planes.permute(0, 2, 3, 1).numpy()
    across = ceil(sqrt(count))
    down = -(-count // across)
    # a line between tiles that are more than one value
    line = int(max(kernel) > 1 and count > 1)
    padded = torch.ones(len(weight), down * across, kernel[0] + line, kernel[1] + line, dtype=planes.dtype)
    padded[:, :count, : kernel[0], : kernel[1]] = planes
    grid = padded.reshape(len(weight), down, across, *padded.shape[2:]).permute(0, 1, 3, 2, 4)
    grid = grid.reshape(len(weight), down * padded.shape[2], across * padded.shape[3])
    return grid[:, : grid.shape[1] - line, : grid.shape[2] - line].numpy()


def tall(every: np.ndarray) -> float:
    """The height of a row of images with the room around, in the widths of a column."""
    return every.shape[1] / max(every.shape[1:3]) * (1 - ROOM) + ROOM


def put(axes: Any, image: np.ndarray, left: float, top: float) -> None:
    """Draws an image into a column of width 1, `ROOM` around it, its first row on top."""
    down, across = np.array(image.shape[:2]) / max(image.shape[:2]) * (1 - ROOM)
    left, top = left + (1 - across) / 2, top + ROOM / 2
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, extent=(left, left + across, top + down, top), interpolation="none")
