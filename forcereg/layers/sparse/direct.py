"""Direct sparse convolution (Park et al., ICLR 2017, section 2): no matrix of what lies under the kernel is made."""

from __future__ import annotations

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
        """As `Form`; also of weights that aren't on the CPU."""
        on = weight.device.type
        return super().refusal(weight, geometry) or ("" if on == "cpu" else f"it runs on the CPU, here is {on}")

    def __init__(self, weight: Tensor, geometry: Geometry, group: int) -> None:
        super().__init__(weight, geometry, group)
        self._places = weight.nonzero(as_tuple=True)
        self._found = weight[self._places]

    def _place(self, layout: Layout) -> None:
        from forcereg.layers.sparse.kernel import tiling

        item = self._found.itemsize
        tiles = tiling((layout.out[0] - 1) * layout.row + layout.out[1], item)
        # blocks of channels of which a tile's part stays near
        size = max(FEWEST, NEAR // (layout.seen(tiles.size) * item))
        f, c, r, s = self._places
        key = c // size * self._filters + f
        # by blocks, in these by filters, in these as they are
        order = key.argsort(stable=True)
        counts = key.bincount(minlength=ceil(self._channels / size) * self._filters)
        # a filter's channels are those of its group
        offsets = layout.offsets(c + f // (self._filters // self._group) * self._channels, r, s)
        starts = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        self._weights = self._found[order].numpy(), offsets[order].int().numpy(), starts.numpy()
        self._read = tiles.count * tiles.size

    def _run(self, x: Tensor, bias: Tensor | None, layout: Layout) -> Tensor:
        from forcereg.layers.sparse.kernel import run

        y = x.new_empty((len(x), self._filters, *layout.out))
        added = x.new_zeros(self._filters) if bias is None else bias
        laid = layout.fill(x, self._read)
        run(y.numpy(), laid.numpy(), *self._weights, added.numpy(), layout.row, torch.get_num_threads())
        return y
