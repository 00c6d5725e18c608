"""Direct sparse convolution (Park et al., ICLR 2017, section 2): no matrix of what lies under the kernel is made."""

from __future__ import annotations

from importlib.util import find_spec
from math import ceil

import torch
from torch import Tensor

from forcereg.layers.convolve import Geometry
from forcereg.layers.sparse.form import Form
from forcereg.layers.sparse.layout import Layout
from forcereg.registry import sparse_form

NEAR = 24 * 1024
"""Bytes of the input that stay in the first cache while all filters use them."""
FEWEST = 8
"""Channels of a block at least, so that a filter has some weights there."""


@sparse_form("direct", "numba", 'pip install "forcereg[sparse]"')
class Direct(Form):
    """Each weight that isn't 0 times a piece of the input, for a tile of output positions at once. DIRECT_SCONV."""

    @classmethod
    def refusal(cls, weight: Tensor, geometry: Geometry) -> str:
        """As `Form`; also of weights on a device for which there is no kernel."""
        on = weight.device.type
        known = on == "cpu" or (on == "cuda" and find_spec("triton") is not None)
        why = "" if known else f"it runs on CPUs, and on CUDA devices by triton, here is {on}"
        return super().refusal(weight, geometry) or why

    def __init__(self, weight: Tensor, geometry: Geometry, group: int) -> None:
        super().__init__(weight, geometry, group)
        self._device, values = weight.device, weight.cpu()
        self._places = values.nonzero(as_tuple=True)
        self._found = values[self._places]

    def _place(self, layout: Layout) -> None:
        size, self._read = self._sizes(layout, (layout.out[0] - 1) * layout.row + layout.out[1])
        f, c, r, s = self._places
        key = c // size * self._filters + f
        # by blocks, in these by filters, in these as they are
        order = key.argsort(stable=True)
        counts = key.bincount(minlength=ceil(self._channels / size) * self._filters)
        # a filter's channels are those of its group
        offsets = layout.offsets(c + f // (self._filters // self._group) * self._channels, r, s)
        starts = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        self._weights = [one.to(self._device) for one in (self._found[order], offsets[order].int(), starts)]

    def _sizes(self, layout: Layout, positions: int) -> tuple[int, int]:
        """Channels of a block, of which a tile's part stays near; output positions, whole tiles of them."""
        if self._device.type == "cuda":
            from forcereg.layers.sparse.gpu import TILE

            return self._channels, ceil(positions / TILE) * TILE
        from forcereg.layers.sparse.kernel import tiling

        tiles = tiling(positions, self._found.itemsize)
        return max(FEWEST, NEAR // (layout.seen(tiles.size) * self._found.itemsize)), tiles.count * tiles.size

    def _run(self, x: Tensor, bias: Tensor | None, layout: Layout) -> Tensor:
        y = x.new_empty((len(x), self._filters, *layout.out))
        given = (y, layout.fill(x, self._read), *self._weights, x.new_zeros(self._filters) if bias is None else bias)
        if x.is_cuda:
            from forcereg.layers.sparse import gpu

            gpu.run(*given, row=layout.row)
        else:
            from forcereg.layers.sparse import kernel

            kernel.run(*(one.numpy() for one in given), row=layout.row, threads=torch.get_num_threads())
        return y
