"""The smoothed loss: the mean over the last average_loss iterations."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

FIRST = 1024
"""Losses that a window holds at first, if it is larger."""


class LossWindow:
    """The last `size` losses, on `device`. Memory for them is taken as they come, whatever the size.

    `values` are kept in a ring, `count` is how many there have been.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size, self.count = size, 0
        self.values = torch.zeros(min(size, FIRST), device=device)

    def add(self, loss: Tensor) -> None:
        """Takes in a 0-d loss without waiting for it."""
        if self.count == len(self.values) < self.size:
            more = min(self.size, 2 * self.count) - self.count
            self.values = torch.cat((self.values, self.values.new_zeros(more)))
        self.values[self.count % len(self.values)] = loss
        self.count += 1

    def mean(self) -> Tensor:
        """The mean, 0-d; NaN before the first loss."""
        filled = min(self.count, len(self.values))
        return self.values[:filled].mean() if filled else self.values.new_tensor(float("nan"))

    def load(self, values: np.ndarray, count: int) -> None:
        """Takes over another window's `values` and `count`; begins anew if that one's size was another."""
        growing = FIRST <= len(values) < self.size and count <= len(values)
        self.count = count if len(values) == self.size or growing else 0
        if self.count:
            self.values = torch.from_numpy(np.array(values)).to(self.values)
