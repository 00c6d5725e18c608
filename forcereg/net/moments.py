"""Second moments of layers' inputs: the metric of their responses, for decompositions and for the force."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.layers import Layer
from forcereg.layers.convolve import Geometry, taps
from forcereg.layers.weighted import Convolution, InnerProduct
from forcereg.net.module import Net
from forcereg.schema.spec import LayerSpec
from forcereg.system.memory import check_room

CHUNK = 1 << 23
"""Values that are unfolded at a time: 64 MiB in float64."""


@dataclass
class Moments:
    """E[x x^T] of the inputs x of one layer, summed up batch by batch."""

    total: Tensor
    count: int = field(default=0)

    @classmethod
    def of(cls, rows: Tensor) -> Moments:
        """Zeros for rows (n, groups, K)."""
        return cls(torch.zeros((*rows.shape[1:], rows.shape[-1]), dtype=torch.float64, device=rows.device))

    def add(self, rows: Tensor) -> None:
        """rows: (n, groups, K)."""
        # float64 before they are multiplied: sums over many batches would lose digits in float32
        each = rows.double().movedim(1, 0)
        self.total += each.mT @ each
        self.count += rows.shape[0]


@torch.no_grad()
def input_moments(net: Net, layers: Collection[str], batches: int) -> dict[str, Tensor]:
    """E[x x^T] of what the weights of each layer named are multiplied with, over batches of the net's own data.

    (groups, K, K) float64 on the CPU, K = C * prod(kernel) with C channels a group, in the weights' order. Zeros that
    pad the input count. The net runs as in its test phase: no dropout, BatchNorm by its statistics. Raises
    ForceregError for inputs that aren't finite, for a name that is no Convolution or InnerProduct of the net.
    """
    found: dict[str, Moments] = {}

    def watch(spec: LayerSpec, module: Layer, bottoms: list[Tensor]) -> Any:
        if spec.name in layers:
            for x in bottoms:
                for rows in inputs_of(module, x):
                    if spec.name not in found:
                        found[spec.name] = started(spec, rows)
                    found[spec.name].add(rows)
        return module(*bottoms)

    net.eval()
    net.around = watch
    try:
        for _ in range(batches):
            net()
    finally:
        net.around = None
    for name in layers:
        if name not in found:
            raise ForceregError(f"{net.spec.filename}: layer '{name}' doesn't run in its train phase")
        # at the end: a sum keeps what isn't finite, and looking waits for the device
        if not found[name].total.isfinite().all():
            raise ForceregError(f"{net.spec.filename}: layer '{name}' has inputs that aren't finite numbers")
    return {name: (one.total / one.count).cpu() for name, one in found.items()}


def started(spec: LayerSpec, rows: Tensor) -> Moments:
    """Zeros for rows (n, groups, K). Raises ForceregError if memory can't hold them."""
    shape = (*rows.shape[1:], rows.shape[-1])
    check_room([(spec, 8 * prod(shape))], "the second moments of its input")
    return Moments.of(rows)


def inputs_of(module: Layer, x: Tensor) -> Iterator[Tensor]:
    """What the weights of a Convolution or InnerProduct are multiplied with for a bottom x: (n, groups, K) in chunks.

    Raises ForceregError for another layer.
    """
    if isinstance(module, InnerProduct):
        yield from rows_of(x.flatten(module.axis))
        return
    if not isinstance(module, Convolution):
        raise module.spec.fail("second moments are known for Convolution and InnerProduct layers only")
    x = x[None] if module.axis == 0 else x.flatten(0, module.axis - 1)
    pad = [pad for pads in reversed(module.geometry.pad) for pad in (pads, pads)]
    yield from windows_of(F.pad(x, pad), module.geometry, module.group)


def rows_of(x: Tensor) -> Iterator[Tensor]:
    """What the weight of a fully connected layer is multiplied with for an input (..., K): (n, 1, K) in chunks."""
    yield from x.reshape(-1, 1, x.shape[-1]).split(max(1, CHUNK // x.shape[-1]))


def windows_of(x: Tensor, g: Geometry, groups: int) -> Iterator[Tensor]:
    """What a convolution's weight is multiplied with for an input (N, C, *spatial) that is padded: (n, groups, K)."""
    for axis, (extent, stride, dilation) in enumerate(zip(g.extent, g.stride, g.dilation, strict=True), 2):
        x = taps(x, axis, extent, stride, dilation)
    dims = len(g.kernel)
    x = x.movedim(1, 1 + dims)  # a view: (N, *output, C, *kernel)
    width = prod(x.shape[1 + dims :])
    places = prod(x.shape[1 : 1 + dims])
    for items in x.split(max(1, CHUNK // (width * places))):
        # by places too: a single large image may be more than a chunk
        rows_at = items.split(max(1, CHUNK * items.shape[1] // (width * places)), 1) if dims else (items,)
        for part in rows_at:
            yield part.reshape(-1, groups, width // groups)
