"""The basis of the filters: their principal directions, and how many are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from torch import Tensor

from forcereg.lowrank.factor import NOISE
from forcereg.lowrank.ladder import Ladder
from forcereg.report.plot import COLOURS, figure_type, plain
from forcereg.study.filters.bank import Bank
from forcereg.study.filters.view import ROOM, View, images, put, tall

SHOWN, ACROSS = 80, 20
"""Directions of a group that are drawn, of more the first ones; and in a row."""
TEXT = 0.22
"""The height of the text below an image, in the widths of one."""


@dataclass(frozen=True)
class Directions:
    """The principal filters of one group of a layer in one snapshot.

    `filters` (R, C, *kernel), by falling energy; `shares` (R,), of the group's energy, 0 to 1; `needed`: how many hold
    all but the error asked for.
    """

    label: str
    filters: Tensor
    shares: tuple[float, ...]
    needed: int

    @property
    def rank(self) -> int:
        """How many have more than rounding in them: of a decomposed layer as many as it was left."""
        return max(1, sum(share > NOISE for share in self.shares))


@dataclass(frozen=True)
class Basis(View):
    """The principal filters of a layer in each snapshot, group by group: `found`; `error`: the bound, 0 to 1."""

    layer: str
    error: float
    found: tuple[Directions, ...]
    columns = ("snapshot", "filter", "share", "needed")

    @classmethod
    def of(cls, layer: str, banks: Sequence[Bank], error: float) -> Basis:
        """By pca as `decompose` does it, uncentred, each group by itself, of equal rank."""
        return cls(layer, error, tuple(group for bank in banks for group in directions(bank, error)))

    def rows(self) -> Iterator[Sequence[Any]]:
        """Each principal filter's share, and whether it is among those needed, 1 or 0."""
        for one in self.found:
            for number, share in enumerate(one.shares):
                yield one.label, number, share, int(number < one.needed)

    def lines(self) -> Iterator[str]:
        """How many are needed."""
        for one in self.found:
            yield f"{one.label}: {one.needed} of {len(one.shares)} at {100 * self.error:g} % error"

    def figure(self) -> Any:
        """A row for each group of each snapshot, what is needed framed, below each image its share."""
        counts = [min(SHOWN, one.rank) for one in self.found]
        across = min(ACROSS, max(counts))
        tiles = [images(one.filters[:count]) for one, count in zip(self.found, counts, strict=True)]
        framed = max(map(tall, tiles))
        row = framed + TEXT
        heights = [ceil(count / across) * row for count in counts]
        size = max(8.0, 0.7 * across), 0.7 * sum(heights) + 0.35 * len(heights) + 0.3
        figure = figure_type()(figsize=size, layout="constrained")
        from matplotlib.patches import Rectangle

        figure.suptitle(
            f"principal filters of {plain(self.layer)}, and their shares of the energy; "
            f"framed: needed at {100 * self.error:g}% error",
            fontsize="medium",
        )
        every = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        frame: dict[str, Any] = {"fill": False, "edgecolor": COLOURS[2], "linewidth": 2}
        for axes, one, own, height in zip(every, self.found, tiles, heights, strict=True):
            for place, image in enumerate(own):
                column, top = place % across, place // across * row
                put(axes, image, column, top)
                axes.text(
                    column + 0.5, top + framed + 0.02, percent(one.shares[place]), ha="center", va="top", fontsize=7
                )
                if place < one.needed:
                    corner = column + ROOM / 4, top + ROOM / 4
                    axes.add_patch(Rectangle(corner, 1 - ROOM / 2, framed - ROOM / 2, **frame))
            axes.set(xlim=(0, across), ylim=(height, 0), aspect="equal", anchor="W")
            beyond = f", the first {len(own)} drawn" if len(own) < one.rank else ""
            title = f"{plain(one.label)}: {one.needed} of {len(one.shares)}{beyond}"
            axes.set_title(title, fontsize="medium", loc="left")
            axes.axis("off")
        return figure


def directions(bank: Bank, error: float) -> Iterator[Directions]:
    """The principal filters of each group."""
    ladder = Ladder(bank.weight, "pca", bank.groups)
    needed, rank = ladder.smallest_rank(error), ladder.full_rank
    # orthonormal weights: all of a principal filter's energy is in its length
    bases = ladder.factors(rank).basis.chunk(bank.groups)
    for number, (filters, block) in enumerate(zip(bases, bank.blocks, strict=True)):
        whole = float(block.square().sum())
        shares = filters.flatten(1).square().sum(1) / whole if whole else filters.flatten(1).sum(1)
        group = f", group {number}" if bank.groups > 1 else ""
        count = needed // bank.groups if isinstance(needed, int) else len(filters)
        yield Directions(f"{bank.label}{group}", upright(filters), tuple(shares.tolist()), count)


def upright(filters: Tensor) -> Tensor:
    """The filters of either sign such that the largest weight is positive: an eigenvector has none of its own."""
    rows = filters.flatten(1)
    peaks = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return (rows * peaks.sign()).reshape(filters.shape)


def percent(share: float) -> str:
    """A share in two digits, such that a small one doesn't look like none."""
    value = 100 * share
    return f"{value:.0f}%" if value >= 9.5 else f"{value:.1f}%" if value >= 0.05 or not value else "<0.1%"
