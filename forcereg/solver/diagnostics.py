"""How coordinated a layer's filters are, for curves during training (a few small products per test)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from forcereg.lowrank.factor import smallest_rank

ERROR = 0.05
"""The relative squared error at which ranks are reported."""
Ranks = dict[str, tuple[int, int]]
"""Layer -> its rank at that error, its full rank."""
SMALLEST = 1e-30
"""A gradient's norm where it has none."""


def mean_cosine(weight: Tensor) -> Tensor:
    """Mean cosine over all pairs of different filters (rows) of `weight`, 0-d float64; 0 for a single filter."""
    rows = weight.detach().flatten(1).double()
    count = rows.shape[0]
    # the sum over pairs is |sum of units|^2 less the units' own squares: no n x n matrix
    unit = torch.nn.functional.normalize(rows, dim=1)
    pairs = unit.sum(0).square().sum() - unit.square().sum()
    return pairs / max(1, count * (count - 1))


@torch.no_grad()
def forced_ranks(layers: Mapping[str, Tensor]) -> Ranks:
    """Rank at 5 % error and full rank of each weight that is finite, as a matrix whose rows lie along axis 0.

    From the eigenvalues of the smaller Gram matrix, float64, on the weights' device, which is read for each.
    """
    found: Ranks = {}
    for name, weight in layers.items():
        if not weight.isfinite().all():  # the loss tells, an iteration later
            continue
        rows = weight.flatten(1).double()
        wide = rows if len(rows) <= rows.shape[1] else rows.T
        energies = torch.linalg.eigvalsh(wide @ wide.T).flip(0).clamp_(min=0)
        found[name] = smallest_rank(energies, ERROR), len(wide)
    return found


def coordination(layers: Mapping[str, Tensor], ranks: Ranks) -> list[dict[str, Any]]:
    """Rank and mean pairwise cosine of each layer that `ranks`, its `forced_ranks`, has."""
    return [
        {"layer": name, "rank": rank, "cosine": float(mean_cosine(layers[name]))} for name, (rank, _) in ranks.items()
    ]


@torch.no_grad()
def force_norms(before: list[Tensor], after: list[Tensor]) -> Tensor:
    """||gradient|| and ||force|| of each weight, (2, weights), from gradients (with decay) before and after the force.

    Without waiting for the device; a CUDA graph may hold it.
    """
    # what was added, whatever it is added by: an adaptive force is only known then
    forces = torch._foreach_sub(after, before)
    return torch.stack([*torch._foreach_norm(before), *torch._foreach_norm(forces)]).reshape(2, -1)


def ratios_of(layers: Iterable[str], norms: Tensor) -> tuple[list[dict[str, Any]], float]:
    """||force|| / ||gradient|| of each layer, and of all together, from their `force_norms`. Reads the device."""
    # the only read; squares of float32 norms may overflow in float32
    gradients, forces = norms.double().tolist()
    rows = [
        {"layer": name, "ratio": force / max(gradient, SMALLEST)}
        for name, gradient, force in zip(layers, gradients, forces, strict=True)
    ]
    return rows, math.hypot(*forces) / max(math.hypot(*gradients), SMALLEST)


def force_ratios(layers: Iterable[str], before: list[Tensor], after: list[Tensor]) -> list[dict[str, Any]]:
    """||force|| / ||gradient|| of each layer from its gradients (with decay) `before` and `after` the force."""
    return ratios_of(layers, force_norms(before, after))[0]
