"""How coordinated a layer's filters are, for curves during training (a few small products per test)."""

from __future__ import annotations

from collections.abc import Sequence
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


def force_report(
    names: Sequence[str], weights: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor]
) -> list[dict[str, Any]]:
    """Per layer its rank at 5 % error, mean pairwise cosine and ||force|| / ||gradient||.

    `before` and `after` are the layers' gradients (with decay) without and with the force.
    """
    return [
        {
            "layer": name,
            "rank": smallest_rank(spectrum(weight), ERROR),
            "cosine": float(mean_cosine(weight)),
            "ratio": float((with_force - gradient).norm() / gradient.norm().clamp(min=1e-30)),
        }
        for name, weight, gradient, with_force in zip(names, weights, before, after, strict=True)
    ]
