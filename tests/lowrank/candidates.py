"""Layers to choose ranks for, without a net around them."""

from __future__ import annotations

import torch
from torch import Tensor

from forcereg.cost import Cost, chain_cost
from forcereg.lowrank.ladder import Ladder
from forcereg.lowrank.ranks import Candidate


def weight(*shape: int, seed: int = 1) -> Tensor:
    """Random, with a spectrum that falls as those of trained filters do."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    left, scales, right = torch.linalg.svd(values.flatten(1), full_matrices=False)
    return ((left * scales * 0.8 ** torch.arange(len(scales))) @ right).reshape(shape)


def candidate(name: str, values: Tensor, groups: int = 1, method: str = "pca", places: int | None = 36) -> Candidate:
    """A convolution (without padding it is) whose every part works at as many places."""
    ladder = Ladder(values, method, groups)
    dense: Cost = chain_cost([values.numel()], [places])
    return Candidate(name, "Convolution", f"layer '{name}'", method, ladder, dense, (places,) * len(ladder.slots))


def total(candidates: list[Candidate]) -> Cost:
    """Of the layers whole."""
    first, *rest = (one.dense for one in candidates)
    return sum(rest, first)
