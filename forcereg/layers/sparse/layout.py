"""How an input lies in memory so that what a weight meets, for all output positions, is one piece of it.

Output rows are as far apart as the padded input's, so a weight's place in the kernel is an offset into that, and
what lies between the rows' ends and starts is never looked at (Park et al., ICLR 2017, section 2). Where the kernel
moves by more than 1 there is a plane for each remainder of the coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from forcereg.layers.convolve import Geometry


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a convolution's input.

    `size`: of the input; `out`: of the output; `taps`: where the kernel reaches from its first value; `planes`: the
    remainders modulo `stride` of the padded coordinates that it meets; `length`: of a plane.
    """

    size: int
    out: int
    stride: int
    pad: int
    taps: tuple[int, ...]
    planes: tuple[int, ...]
    length: int

    @classmethod
    def of(cls, geometry: Geometry, axis: int, size: int, behind: bool) -> Axis:
        """The axis of an input of that size, padded in front, and `behind` it if nothing else is there."""
        stride, pad = geometry.stride[axis], geometry.pad[axis]
        out = (size + 2 * pad - geometry.extent[axis]) // stride + 1
        taps = tuple(k * geometry.dilation[axis] for k in range(geometry.kernel[axis]))
        planes = tuple(sorted({tap % stride for tap in taps}))
        return cls(size, out, stride, pad, taps, planes, ceil((size + pad * (1 + behind)) / stride))

    def pieces(self) -> list[tuple[slice, slice]]:
        """For each plane which of the input's coordinates are in it, and where."""
        found = []
        for plane in self.planes:
            first = (plane - self.pad) % self.stride
            begin, count = (first + self.pad) // self.stride, len(range(first, self.size, self.stride))
            found.append((slice(first, None, self.stride), slice(begin, begin + count)))
        return found

    def places(self) -> tuple[Tensor, Tensor]:
        """For each of the kernel's values which plane has what it meets, and where the first output finds it there."""
        plane = torch.tensor([self.planes.index(tap % self.stride) for tap in self.taps])
        return plane, torch.tensor(self.taps) // self.stride


class Layout:
    """Of inputs (N, C, *size): channels, planes by rows' and columns' remainders, rows `row` apart."""

    def __init__(self, geometry: Geometry, size: tuple[int, int]) -> None:
        self.size = size
        # the padding behind a row is that in front of the next
        self.rows, self.columns = Axis.of(geometry, 0, size[0], True), Axis.of(geometry, 1, size[1], False)
        self.row = self.columns.length
        # what the last row lacks is behind it
        self._plane = self.rows.length * self.row + self.columns.pad
        self._planes = len(self.rows.planes) * len(self.columns.planes)

    @property
    def out(self) -> tuple[int, int]:
        """The output's size."""
        return self.rows.out, self.columns.out

    def offsets(self, channel: Tensor, r: Tensor, s: Tensor) -> Tensor:
        """Where what weights of these channels and kernel places meet begins."""
        (row_plane, row), (column_plane, column) = self.rows.places(), self.columns.places()
        plane = (channel * len(self.rows.planes) + row_plane[r]) * len(self.columns.planes) + column_plane[s]
        return plane * self._plane + row[r] * self.row + column[s]

    def seen(self, positions: int) -> int:
        """How many values of a channel a kernel meets from so many output positions in a row, at most."""
        return self._planes * min(self._plane, positions + self.rows.taps[-1] // self.rows.stride * self.row)

    def fill(self, x: Tensor, positions: int) -> Tensor:
        """x (N, C, H, W) so laid out (N, ...), with `positions` values to be read from every offset on."""
        count, channels = x.shape[:2]
        used = channels * self._planes * self._plane
        over = max(0, positions - self.rows.out * self.row) + self.columns.taps[-1]
        laid = x.new_zeros((count, used + over))
        planes = laid[:, :used].view(count, channels, len(self.rows.planes), len(self.columns.planes), self._plane)
        planes = planes[..., : self.rows.length * self.row].unflatten(-1, (self.rows.length, self.row))
        for i, (rows, to_rows) in enumerate(self.rows.pieces()):
            for j, (columns, to_columns) in enumerate(self.columns.pieces()):
                planes[:, :, i, j, to_rows, to_columns] = x[:, :, rows, columns]
        return laid
