"""How zeros are spread over layers: by magnitude over all, alike in each, or so that each costs the same accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from forcereg.lowrank.rewrite import Weights
from forcereg.solver.sparsity.pruning import kept, smallest

MAGNITUDE, UNIFORM, SENSITIVITY = SPREADS = ("magnitude", "uniform", "sensitivity")
SHARES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
"""Of zeros, at which a layer alone is scored."""
NEAR, MOST = 0.002, 10
"""How near the largest share is searched, and by how many nets."""


@dataclass(frozen=True)
class Bearing:
    """What a layer of `size` weights bears: (share of zeros, drop of the net's accuracy) with it alone pruned."""

    size: int
    points: Sequence[tuple[float, float]]

    def share(self, drop: float) -> float:
        """The share of zeros up to which no more than `drop` is lost, straight between the points."""
        shares, drops = map(np.array, zip(*self.points, strict=True))
        # one that scores better than one with fewer zeros was lucky
        return float(np.interp(drop + 1e-8, np.maximum.accumulate(drops) + 1e-9 * np.arange(len(drops)), shares))


def bearings(
    weights: Weights, layers: Sequence[str], accuracy: Callable[[Mapping[str, int]], float], whole: float
) -> Iterator[tuple[str, Bearing]]:
    """Scores the net with each layer pruned alone; `accuracy` of a net with so many zeros, `whole` without any."""
    for name in layers:
        size = int(weights[name][0].size)
        found = [(share, max(0.0, whole - accuracy({name: round(share * size)}))) for share in SHARES]
        # with none of its weights left a layer says nothing
        yield name, Bearing(size, [(0.0, 0.0), *found, (1.0, max(whole, 1e-6))])


def by_sensitivity(known: Mapping[str, Bearing], target: float) -> dict[str, float]:
    """The share of zeros of each layer, `target` of all of them, by which each alone would lose as much accuracy."""
    total = sum(one.size for one in known.values())
    low, high = 0.0, max(drop for one in known.values() for _, drop in one.points) + 1e-6
    for _ in range(50):
        drop = (low + high) / 2
        enough = sum(one.size * one.share(drop) for one in known.values()) >= target * total
        low, high = (low, drop) if enough else (drop, high)
    found = {name: one.share(high) for name, one in known.items()}
    # where curves are steep shares jump: what is too much is taken from all alike
    return {name: share * min(1.0, target * total / _zeros(known, found)) for name, share in found.items()}


def _zeros(known: Mapping[str, Bearing], shares: Mapping[str, float]) -> float:
    return max(1e-9, sum(one.size * shares[name] for name, one in known.items()))


def largest(accuracy: Callable[[float], float], least: float) -> float:
    """The largest share of zeros found at which the accuracy is at least `least`, 0 if none is."""
    low, high = 0.0, 1.0
    for _ in range(MOST):
        if high - low <= NEAR:
            break
        share = (low + high) / 2
        low, high = (share, high) if accuracy(share) >= least else (low, share)
    return low


def counts_of(
    weights: Weights, layers: Sequence[str], target: float, shares: Mapping[str, float] | None
) -> dict[str, int]:
    """How many zeros each layer gets: by its share, or the smallest magnitudes of all of them together."""
    own = {name: torch.from_numpy(np.asarray(weights[name][0])) for name in layers}
    if shares is not None:
        return {name: round(shares[name] * weight.numel()) for name, weight in own.items()}
    return smallest(own, round(target * sum(weight.numel() for weight in own.values())))


def without(weights: Weights, counts: Mapping[str, int]) -> dict[str, Mapping[int, Any]]:
    """The weights, with the smallest so many of each layer zero."""
    made: dict[str, Mapping[int, Any]] = dict(weights)
    for name, count in counts.items():
        weight = torch.from_numpy(np.array(weights[name][0]))
        made[name] = {**weights[name], 0: weight.masked_fill_(~kept(weight, count), 0).numpy()}
    return made
