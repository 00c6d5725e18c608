"""Kernels cut to the window that isn't zero, where Caffe's fields can say so (pure functions)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Axis:
    """A convolution along one spatial axis; `transposed`: as Deconvolution works."""

    kernel: int
    stride: int
    pad: int
    dilation: int
    transposed: bool = False

    def out(self, size: int) -> int:
        """Output size, by Caffe's rule."""
        extent = (self.kernel - 1) * self.dilation + 1
        if self.transposed:
            return self.stride * (size - 1) + extent - 2 * self.pad
        return (size + 2 * self.pad - extent) // self.stride + 1

    def cut(self, before: int, behind: int) -> Axis:
        """Without so many taps at each end: what is left sees the same values if there were no end to the input."""
        pad = self.pad - before * self.dilation
        return Axis(self.kernel - before - behind, self.stride, pad, self.dilation, self.transposed)


def window(taps: np.ndarray, axis: Axis, sizes: Iterable[int]) -> tuple[int, int]:
    """How many taps go at each end of a kernel of which only `taps` (bool) aren't zero.

    Caffe pads both ends alike, so that as many go at both, or at one end such that inputs of these `sizes` come to
    outputs of the same size. At least one stays.
    """
    sizes = list(sizes)
    places = np.flatnonzero(taps)
    if len(places):
        most = int(places[0]), axis.kernel - 1 - int(places[-1])
    else:  # nothing is seen: any window is as good
        most = (axis.kernel - 1) // 2, (axis.kernel - 1) // 2
    found = (0, 0)
    for before in range(most[0] + 1):
        for behind in range(most[1] + 1):
            made = axis.cut(before, behind)
            same = made.pad >= 0 and all(made.out(size) == axis.out(size) for size in sizes)
            # of equal ones the one that holds for any size
            if same and (before + behind, before == behind) > (sum(found), found[0] == found[1]):
                found = before, behind
    return found


def seen_everywhere(kernel: Sequence[int], pad: Sequence[int], dilation: Sequence[int]) -> np.ndarray:
    """Which taps of a kernel lie inside the input for every output, whatever the input's size; flat, bool."""
    found = np.ones(1, bool)
    for size, border, step in zip(kernel, pad, dilation, strict=True):
        places = np.arange(size) * step
        inside = (places >= border) & (places <= places[-1] - border)
        found = np.logical_and.outer(found, inside).reshape(-1)
    return found
