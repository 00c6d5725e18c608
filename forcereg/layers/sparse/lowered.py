"""Convolution as a product with the values under the kernel, of which zero rows and columns are left out."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import Tensor

from forcereg.layers.convolve import Geometry
from forcereg.layers.sparse.form import Form
from forcereg.layers.sparse.layout import Layout
from forcereg.registry import sparse_form


@dataclass(frozen=True)
class _Group:
    """What is left of a kernel group: of the filters `rows` the columns `places` (channel, r, s), as a `matrix`."""

    matrix: Tensor
    rows: Tensor
    places: tuple[Tensor, ...]


@sparse_form("ccnmm")
class Squeezed(Form):
    """Of each kernel group the rows (filters) and columns that aren't all zero, as one smaller dense product.

    A dropped filter gives its bias. SSL's LOWERED_CCNMM.
    """

    def __init__(self, weight: Tensor, geometry: Geometry, group: int) -> None:
        super().__init__(weight, geometry, group)
        self._groups = []
        for index, part in enumerate(weight.chunk(group)):
            rows = part.flatten(1).any(1).nonzero()[:, 0]
            channel, r, s = part.any(0).nonzero(as_tuple=True)
            # of an all-zero group nothing is left
            if len(rows):
                matrix = self._matrix(part[rows][:, channel, r, s])
                places = (channel.cpu() + index * self._channels, r.cpu(), s.cpu())
                self._groups.append(_Group(matrix, rows + index * len(part), places))

    def _matrix(self, left: Tensor) -> Tensor:
        return left

    def _place(self, layout: Layout) -> None:
        self._offsets = [layout.offsets(*one.places).to(one.rows.device) for one in self._groups]

    def _run(self, x: Tensor, bias: Tensor | None, layout: Layout) -> Tensor:
        height, width = layout.out
        # the last row ends with its last position; where padding is wide others go on into the next one
        wide = (height - 1) * layout.row + width
        y = x.new_zeros((len(x), self._filters, height, width))
        # image by image: what a matrix is multiplied with then stays in the cache
        for laid, top in zip(layout.fill(x, wide), y, strict=True):
            # every piece that a weight may meet, as rows that overlap
            pieces = laid.as_strided((laid.numel() - wide + 1, wide), (1, 1))
            for one, offsets in zip(self._groups, self._offsets, strict=True):
                found = one.matrix @ pieces.index_select(0, offsets)
                top.index_copy_(0, one.rows, found.as_strided((len(found), height, width), (wide, layout.row, 1)))
        return y if bias is None else y.add_(bias[:, None, None])


@sparse_form("csr")
class Rows(Squeezed):
    """The same without the zeros that are left, too: a product of compressed rows. SSL's LOWERED_CSRMM."""

    def _matrix(self, left: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch calls its format a beta
            return left.to_sparse_csr()
