"""The filters themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from forcereg.report.plot import figure_type, plain
from forcereg.study.filters.bank import Bank
from forcereg.study.filters.view import View, images, put, tall

SHOWN = 128
"""Filters of a snapshot that are drawn; of more the first ones."""
WIDE = 12
"""Inches of a picture of many."""


@dataclass(frozen=True)
class Images(View):
    """Filters as images, in the order that they have in the layer: `banks`, a snapshot each."""

    layer: str
    banks: tuple[Bank, ...]
    columns = ("snapshot", "filter", "norm")

    def rows(self) -> Iterator[Sequence[Any]]:
        """Each filter's length."""
        for bank in self.banks:
            for number, norm in enumerate(bank.weight.flatten(1).norm(dim=1).tolist()):
                yield bank.label, number, norm

    def lines(self) -> Iterator[str]:
        """How many there are."""
        for bank in self.banks:
            count, *shape = bank.weight.shape
            groups = f" in {bank.groups} groups" if bank.groups > 1 else ""
            yield f"{bank.label}: {count:,} filter{'s' * (count > 1)} of {'x'.join(map(str, shape))}{groups}"

    def figure(self) -> Any:
        """A grid of images for each snapshot."""
        counts = [min(SHOWN, len(bank.weight)) for bank in self.banks]
        tiles = [images(bank.weight[:count]) for bank, count in zip(self.banks, counts, strict=True)]
        # a filter of many channels has many small tiles
        side = min(2.0, max(0.7, max(max(own.shape[1:3]) for own in tiles) / 20))
        across = min(int(WIDE / side), max(counts))
        row = max(tall(own) for own in tiles)
        heights = [ceil(count / across) * row for count in counts]
        size = max(6.0, side * across), side * sum(heights) + 0.4 * len(heights)
        figure = figure_type()(figsize=size, layout="constrained")
        every = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, bank, own, height in zip(every, self.banks, tiles, heights, strict=True):
            for place, image in enumerate(own):
                put(axes, image, place % across, place // across * row)
            left = f", the first {len(own)} of {len(bank.weight):,}" if len(own) < len(bank.weight) else ""
            axes.set(xlim=(0, across), ylim=(height, 0), aspect="equal", anchor="W")
            axes.set_title(f"{plain(bank.label)}: filters of {plain(self.layer)}{left}", fontsize="medium", loc="left")
            axes.axis("off")
        return figure
