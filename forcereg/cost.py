"""What layers cost: multiply-accumulates (MACs) for one image, and learned values. Biases cost no MACs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

Shapes = Mapping[str, Sequence[int]]
"""Blob name -> shape."""


def dense_macs(num_output: int, channels_per_group: int, kernel_h: int, kernel_w: int) -> int:
    """MACs of a convolution per output position.

    >>> forcereg.cost.dense_macs(50, 20, 5, 5)  # LeNet's conv2
    25000
    """
    return num_output * channels_per_group * kernel_h * kernel_w


def lowrank_macs(
    num_output: int, channels_per_group: int, kernel_h: int, kernel_w: int, groups: int, rank: int
) -> float:
    """MACs of its low-rank pair per output position; both parts grouped, `rank` the total of all groups.

    >>> forcereg.cost.lowrank_macs(50, 20, 5, 5, groups=1, rank=10)
    5500.0
    """
    # an output combines the filters of its own group
    return dense_macs(rank, channels_per_group, kernel_h, kernel_w) + num_output * rank / groups


def lowrank_speedup(
    num_output: int, channels_per_group: int, kernel_h: int, kernel_w: int, groups: int, rank: int
) -> float:
    """MACs of a convolution over those of its low-rank pair: the theoretical speed-up (Wen et al., table 3).

    >>> round(forcereg.cost.lowrank_speedup(50, 20, 5, 5, groups=1, rank=10), 2)
    4.55
    """
    dense = dense_macs(num_output, channels_per_group, kernel_h, kernel_w)
    return dense / lowrank_macs(num_output, channels_per_group, kernel_h, kernel_w, groups, rank)


@dataclass(frozen=True)
class Cost:
    """MACs for one image (None where shapes are unknown) and learned values, biases among them.

    >>> forcereg.cost.Cost(macs=2592, params=80) + forcereg.cost.Cost(macs=18432, params=1168)
    Cost(macs=21024, params=1248)
    """

    macs: int | None
    params: int

    def __add__(self, other: Cost) -> Cost:
        unknown = self.macs is None or other.macs is None
        return Cost(None if unknown else (self.macs or 0) + (other.macs or 0), self.params + other.params)

    def __sub__(self, other: Cost) -> Cost:
        unknown = self.macs is None or other.macs is None
        return Cost(None if unknown else (self.macs or 0) - (other.macs or 0), self.params - other.params)


def places(layer: Any, shapes: Shapes | None, owned: Sequence[Sequence[int] | None]) -> list[int | None]:
    """Output positions for one image of each convolution of a chain in place of `layer`, over all its tops.

    `owned`: the spatial axes whose window each of them applies, None for all; the others still have their input's
    size or already their output's. For an InnerProduct: its rows an image. None without the shapes.

    >>> net = forcereg.load_net("deploy.prototxt")
    >>> conv1 = next(spec.message for spec in net.spec.layers if spec.name == "conv1")
    >>> forcereg.cost.places(conv1, net.shapes, [None])  # 6 x 6
    [36]
    """
    return positions(extents(layer, shapes), owned)


@dataclass(frozen=True)
class Extent:
    """Where a layer works: the spatial sizes of one item before it and behind it, and how often at each position.

    An InnerProduct has no spatial axes: `rows` are its rows an item. A `transposed` convolution multiplies at the
    positions of its input.

    >>> forcereg.cost.Extent(1, (28, 28), (24, 24))  # a 5 x 5 convolution
    Extent(rows=1, before=(28, 28), after=(24, 24))
    """

    rows: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    transposed: bool = field(default=False, repr=False)


def extents(layer: Any, shapes: Shapes | None) -> list[Extent] | None:
    """Where a Convolution or InnerProduct LayerParameter works, once for each of its tops; None without the shapes.

    >>> net = forcereg.load_net("deploy.prototxt")
    >>> conv1 = next(spec.message for spec in net.spec.layers if spec.name == "conv1")
    >>> [one.after for one in forcereg.cost.extents(conv1, net.shapes)]
    [(6, 6)]
    """
    if shapes is None or any(blob not in shapes for blob in (*layer.bottom, *layer.top)):
        return None
    fully_connected = layer.type == "InnerProduct"
    axis = (layer.inner_product_param if fully_connected else layer.convolution_param).axis
    found = []
    for bottom, top in zip(layer.bottom, layer.top, strict=True):
        axis %= len(shapes[bottom])
        inner = slice(len(shapes[bottom]) if fully_connected else axis + 1, None)
        # axis 0 is the batch, and costs are for one item
        found.append(Extent(prod(shapes[bottom][1:axis]), tuple(shapes[bottom][inner]), tuple(shapes[top][inner])))
    return found


def positions(extents: Sequence[Extent] | None, owned: Sequence[Sequence[int] | None]) -> list[int | None]:
    """Output positions for one image of each convolution of a chain, over all that it works on; `owned` as `places`.

    >>> forcereg.cost.positions([forcereg.cost.Extent(1, (28, 28), (24, 24))], [(0,), (1,)])  # kh x 1, then 1 x kw
    [672, 576]
    """
    if extents is None:
        return [None] * len(owned)
    totals = [0] * len(owned)
    for one in extents:
        sizes = list(one.before)
        for index, axes in enumerate(owned):
            came = prod(sizes)
            for spatial in range(len(sizes)) if axes is None else axes:
                # an InnerProduct has no spatial axes
                if spatial < len(sizes):
                    sizes[spatial] = one.after[spatial]
            totals[index] += one.rows * (came if one.transposed else prod(sizes))
    return list(totals)


def chain_cost(numels: Sequence[int], positions: Sequence[int | None], bias: int = 0) -> Cost:
    """Of convolutions in a chain: values of each weight, times its positions for the MACs.

    >>> forcereg.cost.chain_cost([4 * 9, 8 * 4], [36, 36], bias=8)  # a 3x3 with 4 filters, a 1x1 with 8
    Cost(macs=2448, params=76)
    """
    known = [numel * place for numel, place in zip(numels, positions, strict=True) if place is not None]
    # a sum without the unknown would look like the whole
    return Cost(sum(known) if len(known) == len(numels) else None, sum(numels) + bias)
