"""The smoothed loss: the mean over the last average_loss iterations."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

FIRST = 1024
"""Losses that a window holds at first, if it is larger."""


class LossWindow:
    """The last `size` losses, on `device`. Memory for them is taken as they come, whatever the size.

    `values` are kept in a ring, `count` is how many there have been. Where `put` is in a CUDA graph, `advance` goes
    before each replay; `values` stays the same tensor while its length does.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size, self.count = size, 0
        self.values = torch.zeros(min(size, FIRST), device=device)
        self._place = torch.zeros(1, dtype=torch.int64, device=device)

    def add(self, loss: Tensor) -> None:
        """Takes in a 0-d loss without waiting for it."""
        self.advance()
        self.put(loss)

    def advance(self) -> None:
        """Counts a loss that `put` is given next, and makes room for it."""
        # doubled as it fills: average_loss may be any number, and memory for it hardly ever needed
        if self.count == len(self.values) < self.size:
            more = min(self.size, 2 * self.count) - self.count
            self.values = torch.cat((self.values, self.values.new_zeros(more)))
            self._place.fill_(self.count)
        self.count += 1

    def put(self, loss: Tensor) -> None:
        """Writes a 0-d loss to its place in the ring, all on the device."""
        self.values.index_copy_(0, self._place, loss.reshape(1).to(self.values))
        self._place.add_(1).remainder_(len(self.values))

    def mean(self) -> Tensor:
        """The mean, 0-d; NaN before the first loss."""
        filled = min(self.count, len(self.values))
        return self.values[:filled].mean() if filled else self.values.new_tensor(float("nan"))

    def clear(self) -> None:
        """Begins anew."""
        self.count = 0
        self._place.zero_()

    def load(self, values: np.ndarray, count: int) -> None:
        """Takes over another window's `values` and `count`; begins anew if that one's size was another."""
        # a window that hasn't reached its size yet is as long as the losses that came
        growing = FIRST <= len(values) < self.size and count <= len(values)
        self.count = count if len(values) == self.size or growing else 0
        if self.count:
            loaded = torch.from_numpy(np.array(values)).to(self.values)
            self.values = self.values.copy_(loaded) if len(loaded) == len(self.values) else loaded
        self._place.fill_(self.count % len(self.values))
