"""The angles between filters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.report.plot import COLOURS, STYLES, figure_type, plain
from forcereg.study.filters.bank import Bank
from forcereg.study.filters.view import View

BINS = 180
"""Of one degree each."""
BLOCK = 1024
"""Filters whose angles to all others are computed at once: some ten million numbers of a layer of thousands."""
WIDTH = 5
"""Degrees over which a curve is smoothed, where there are many pairs."""


@dataclass(frozen=True)
class Spread:
    """How many pairs of filters of a snapshot there are at each angle.

    `counts` (180,): of 0 to 1 degree, 1 to 2, ...; `mean`: in degrees.
    """

    label: str
    counts: Tensor
    mean: float
    iteration: int | None = None


@dataclass(frozen=True)
class Angles(View):
    """The distribution of the angles of all pairs of filters, within groups: `found`, a snapshot each."""

    layer: str
    found: tuple[Spread, ...]
    columns = ("snapshot", "degrees", "pairs")

    @classmethod
    def of(cls, layer: str, banks: Sequence[Bank]) -> Angles:
        """Filters of different groups see different inputs and make no pair, filters of zeros have no angle.

        Raises ForceregError for a layer without a pair.
        """
        return cls(layer, tuple(spread(layer, bank) for bank in banks))

    def rows(self) -> Iterator[Sequence[Any]]:
        """How many pairs there are from each whole degree to the next."""
        for one in self.found:
            for degrees, pairs in enumerate(one.counts.tolist()):
                yield one.label, degrees, int(pairs)

    def lines(self) -> Iterator[str]:
        """The means."""
        for one in self.found:
            pairs = int(one.counts.sum())
            yield f"{one.label}: {pairs:,} pair{'s' * (pairs > 1)} of filters, mean angle {one.mean:.1f} degrees"

    def figure(self) -> Any:
        """A curve for each snapshot; those of one run in shades, the later the darker."""
        figure = figure_type()(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        over_time = all(one.iteration is not None for one in self.found)
        for number, one in enumerate(self.found):
            shade = _shade(number, len(self.found)) if over_time else COLOURS[number % len(COLOURS)]
            style = "-" if over_time else STYLES[number % len(STYLES)]
            places, heights = curve(one.counts)
            label = f"{plain(one.label)} (mean {one.mean:.0f}°)"
            axes.plot(places, heights, style, color=shade, label=label, linewidth=1.8)
            axes.axvline(one.mean, color=shade, linestyle=style, linewidth=0.8, alpha=0.6)
        axes.set(
            xlim=(0, BINS), ylim=(0, None), xticks=range(0, BINS + 1, 30),
            xlabel="angle between two filters, degrees (thin: mean)", ylabel="pairs a degree, %",
            title=f"angles between the filters of {plain(self.layer)}",
        )  # fmt: skip
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", ncols=-(-len(self.found) // 12))
        return figure


def spread(layer: str, bank: Bank) -> Spread:
    """The angles of all pairs of a layer's filters, by matrix products. Raises ForceregError where there is none."""
    counts, total = torch.zeros(BINS, dtype=torch.float64), 0.0
    for rows in bank.blocks if bank.blocks.shape[1] > 1 else ():
        norms = rows.norm(dim=1, keepdim=True)
        units = (rows / norms)[norms[:, 0] > 0]
        for first in range(0, len(units), BLOCK):
            cosines = units[first : first + BLOCK] @ units[first:].T
            pairs = torch.ones_like(cosines, dtype=torch.bool).triu(1)
            degrees = cosines[pairs].clamp(-1, 1).acos().rad2deg()
            counts += torch.histc(degrees, BINS, 0, 180)
            total += float(degrees.sum())
    if not counts.sum():
        raise ForceregError(f"{bank.label}: layer '{layer}' has no two filters of a group that aren't zero: no angles")
    return Spread(bank.label, counts, total / float(counts.sum()), bank.iteration)


def curve(counts: Tensor) -> tuple[list[float], list[float]]:
    """Degrees, and at each the share of pairs a degree in percent, a mean over `WIDTH` degrees around."""
    window = torch.ones(1, 1, WIDTH, dtype=torch.float64)
    padded = torch.nn.functional.conv1d(counts[None, None], window, padding=WIDTH // 2)[0, 0]
    # at the ends the window has fewer degrees
    inside = torch.nn.functional.conv1d(torch.ones_like(counts)[None, None], window, padding=WIDTH // 2)[0, 0]
    shares = 100 * padded / inside / counts.sum()
    return [degree + 0.5 for degree in range(BINS)], shares.tolist()


def _shade(number: int, count: int) -> Any:
    """Of a row of colours that all eyes see get darker."""
    from matplotlib import colormaps

    return colormaps["viridis_r"](0.12 + 0.88 * number / max(1, count - 1))
