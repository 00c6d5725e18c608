"""Pruning by magnitude: how many weights of which layers, which ones, and how fast.

cubic       Zhu and Gupta, "To prune, or not to prune" (2017), equation 1: fast at first, slowly at the end
smallest    of several layers together the smallest magnitudes, whose they are
kept        of one layer all but its smallest
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def cubic(done: float) -> float:
    """The part of the final share of zeros that there is when the part `done` (0 to 1) of the pruning is over.

    >>> [cubic(done) for done in (0, 0.5, 1)]
    [0.0, 0.875, 1.0]
    """
    return 1 - (1 - done) ** 3


def order(weight: Tensor) -> Tensor:
    """The places of a weight's values, flat, the smallest magnitude first; of equal ones the first in memory order."""
    return weight.detach().abs().flatten().argsort(stable=True)


def kept(weight: Tensor, count: int) -> Tensor:
    """A mask in the weight's shape: False at its `count` smallest magnitudes.

    >>> kept(torch.tensor([3.0, -1.0, 2.0, 0.5]), 2).int().tolist()
    [1, 0, 1, 0]
    """
    mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[order(weight)[:count]] = False
    return mask.reshape(weight.shape)


def cut_at(weight: Tensor, count: int) -> float:
    """The magnitude below which `count` values lie, fewer where several equal it; infinite if all do."""
    if count >= weight.numel():
        return float("inf")
    return float(weight.detach().abs().flatten().kthvalue(count + 1).values)


def smallest(weights: Mapping[str, Tensor], count: int, most: Mapping[str, int] | None = None) -> dict[str, int]:
    """How many of each are among the `count` smallest magnitudes of all together.

    `most`: of each at most so many; what one can't have more of, the others have. Fewer than `count` if all are full.

    >>> smallest({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, -0.5])}, 2)
    {'a': 1, 'b': 1}
    """
    full: dict[str, int] = {}
    while True:
        free = [name for name in weights if name not in full]
        found = dict.fromkeys(free, 0)
        left = min(count - sum(full.values()), sum(weights[name].numel() for name in free))
        if left > 0:
            flat = torch.cat([weights[name].detach().abs().flatten().cpu() for name in free])
            sizes = torch.tensor([weights[name].numel() for name in free])
            owners = torch.arange(len(free)).repeat_interleave(sizes)[order(flat)[:left]]
            found = dict(zip(free, owners.bincount(minlength=len(free)).tolist(), strict=True))
        over = {name: most[name] for name in free if most is not None and found[name] > most.get(name, found[name])}
        if not over:
            return {name: full[name] if name in full else found[name] for name in weights}
        full |= over
