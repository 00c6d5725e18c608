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
"""Layer, with its unfolding unless that is of filters -> its rank at that error, its full rank."""
SMALLEST = 1e-30
"""A gradient's norm where it has none."""


def mean_cosine(matrix: Tensor) -> Tensor:
    """Mean cosine over all pairs of different rows of (..., rows, entries), 0-d float64; 0 for a single row."""
    rows = matrix.detach().double()
    count = rows.shape[-2]
    # the sum over pairs is |sum of units|^2 less the units' own squares: no n x n matrix
    unit = torch.nn.functional.normalize(rows, dim=-1)
    pairs = unit.sum(-2).square().sum(-1) - unit.square().sum((-2, -1))
    return pairs.mean() / max(1, count * (count - 1))


@torch.no_grad()
def forced_ranks(matrices: Mapping[str, Tensor]) -> Ranks:
    """Rank at 5 % error and full rank of each of `matrices`, (..., rows, entries), that is finite.

    Of several, those of groups, it is the largest rank. From the eigenvalues of the smaller Gram matrices, float64, on
    the device that they are on, which is read for each.
    """
    found: Ranks = {}
    for name, matrix in matrices.items():
        if not matrix.isfinite().all():  # the loss tells, an iteration later
            continue
        rows = matrix.double()
        wide = rows if rows.shape[-2] <= rows.shape[-1] else rows.mT
        energies = torch.linalg.eigvalsh(wide @ wide.mT).flip(-1).clamp_(min=0)
        found[name] = smallest_rank(energies, ERROR), wide.shape[-2]
    return found


def coordination(matrices: Mapping[str, Tensor], ranks: Ranks) -> list[dict[str, Any]]:
    """Rank and mean pairwise cosine of each of `matrices` that `ranks`, its `forced_ranks`, has."""
    return [
        {"layer": name, "rank": rank, "cosine": float(mean_cosine(matrices[name]))} for name, (rank, _) in ranks.items()
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
