"""How large an error of a weight is, where that isn't the sum of its squares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-6
"""Of the mean input power: directions that the batches never showed still count a little."""


@dataclass(frozen=True, eq=False)
class Metric:
    """The squared size of an error E (N, K) of a weight's rows: trace(A E M E^T).

    outputs: A (N, N), inputs: M (K, K), symmetric without negative eigenvalues, float64; None: the identity. With
    M = E[x x^T] it is the mean square of the responses' error E x; with projections it leaves directions out.
    """

    outputs: Tensor | None = None
    inputs: Tensor | None = None

    def size(self, error: Tensor) -> float:
        """Of an error (N, ...)."""
        rows = error.flatten(1)
        return float((self.left(rows) * self.right(rows)).sum())

    def left(self, rows: Tensor) -> Tensor:
        """A times rows (N, n)."""
        return rows if self.outputs is None else self.outputs @ rows

    def right(self, rows: Tensor) -> Tensor:
        """Rows (n, K) times M."""
        return rows if self.inputs is None else rows @ self.inputs

    def negligible(self, weight: Tensor) -> float:
        """The size of what is next to nothing of a weight (N, ...), in float64's rounding."""
        power = 1.0 if self.inputs is None else float(self.inputs.diagonal().mean())
        return 1e-12 * power * float(weight.square().sum())


def regularised(moments: Tensor) -> Tensor:
    """Second moments (K, K) of inputs, none of whose directions counts for nothing: M + RIDGE tr(M) / K I.

    That is all that a rank-deficient M needs: sizes take M as it is, neither its root nor its inverse.
    """
    return moments + RIDGE * moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)


def without(direction: Tensor, kernel: int = 1) -> Tensor:
    """The projection I - d d^T that leaves a unit vector d (n,) out; each entry of it stands for `kernel` values."""
    projection = torch.eye(len(direction), dtype=direction.dtype) - torch.outer(direction, direction)
    return torch.kron(projection, torch.eye(kernel, dtype=direction.dtype))
