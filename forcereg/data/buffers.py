"""Memory for batches that is used again.

Large blocks from the system, mapped afresh page by page, cost more than what is computed in them.
"""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor


class Recycled:
    """Uninitialised CPU tensors of one shape and type; the memory of one that nobody holds any more is used again.

    At most `spare` unused ones are kept. Threads may ask and let go at any time.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, spare: int = 2) -> None:
        self.shape, self.dtype = shape, dtype
        # a deque's steps can't be interrupted, so that finalizers, which run anywhere, need no lock
        self._free: deque[Tensor] = deque(maxlen=spare)

    def empty(self) -> Tensor:
        """A tensor of the caller's own."""
        # not looked at first: between a look and the pop another thread may take the last one
        try:
            memory = self._free.pop()
        except IndexError:
            memory = torch.empty(self.shape, dtype=self.dtype)
        array = memory.numpy()  # an object of its own, which every tensor and array made from it keeps alive
        weakref.finalize(array, self._free.append, memory).atexit = False
        return torch.from_numpy(array)


class Pinned:
    """Uninitialised page-locked CPU tensors of one shape and type, made by one thread and used by another.

    PyTorch's allocator keeps page-locked memory, and gives no block again before the copies from it have ended.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, ready: int) -> None:
        self.shape, self.dtype = shape, dtype
        self._ready: deque[Tensor] = deque()
        for _ in range(ready):
            self.add()

    def add(self) -> None:
        """Makes one more; in the thread that launches work on the GPU, because it may capture graphs."""
        self._ready.append(torch.empty(self.shape, dtype=self.dtype, pin_memory=True))

    def empty(self) -> Tensor:
        """The next one; IndexError if more were asked for than made."""
        return self._ready.popleft()


def put(images: np.ndarray, row: int, image: np.ndarray) -> np.ndarray:
    """`images` (N, C, H, W) with `image` as row `row`; where N is 1 an array of its own for one of another size."""
    if len(images) == 1 and image.shape != images.shape[1:]:
        return np.array(image, order="C")[None]
    images[row] = image
    return images


def tensor_of(images: np.ndarray, memory: Tensor) -> Tensor:
    """What `put` made of the array of `memory` as a tensor, which is `memory` itself where all sizes were its own."""
    return memory if images.shape == memory.shape else torch.from_numpy(images)
