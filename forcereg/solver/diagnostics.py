"""How coordinated a layer's filters are, for curves during training (a few small products per test)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from forcereg.lowrank.factor import smallest_rank, spectrum

ERROR = 0.05
"""The relative squared error at which ranks are reported."""


def mean_cosine(weight: Tensor) -> Tensor:
    """Mean cosine over all pairs of different filters (rows) of `weight`, 0-d float64; 0 for a single filter."""
    rows = weight.detach().flatten(1).double()
    count = rows.shape[0]
    unit = torch.nn.functional.normalize(rows, dim=1)
    pairs = unit.sum(0).square().sum() - unit.square().sum()
    return pairs / max(1, count * (count - 1))


def coordination(layers: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Rank at 5 % error and mean pairwise cosine of each layer's weight."""
    return [
        {"layer": name, "rank": smallest_rank(spectrum(weight), ERROR), "cosine": float(mean_cosine(weight))}
        for name, weight in layers.items()
    ]


def force_ratios(layers: Iterable[str], before: Iterable[Tensor], after: Iterable[Tensor]) -> list[dict[str, Any]]:
    """||force|| / ||gradient|| of each layer from its gradients (with decay) `before` and `after` the force."""
    return [
        {"layer": name, "ratio": float((with_force - gradient).norm() / gradient.norm().clamp(min=1e-30))}
        for name, gradient, with_force in zip(layers, before, after, strict=True)
    ]
