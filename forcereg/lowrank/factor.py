"""Decompositions of a weight: a few basis filters, and how they combine to the filters (pure functions).

A method is one function, registered by its name: `method(weight, rank=None, error=None, groups=1) -> Factors`.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forcereg.registry import factorizer

NOISE = 1e-12  # relative; an error bound met but for the rounding of float64 counts as met


@dataclass(frozen=True, eq=False)
class Factors:
    """weight (N, C, ...) ~ combine @ basis, in blocks of rows if there are groups.

    basis (R, C, ...): the filters of the low-rank layer. combine (N, R / groups): the coefficients of its
    outputs; row n uses the basis filters of n's group. Both have the weight's dtype and device.
    """

    rank: int
    """R, the total over the groups."""
    error: float
    """||weight - reconstruct()||^2 / ||weight||^2 in exact arithmetic."""
    basis: Tensor
    combine: Tensor
    groups: int = 1

    @property
    def full_rank(self) -> int:
        """The largest rank, min(N / groups, C * kh * kw) per group."""
        return self.groups * min(len(self.combine) // self.groups, self.basis[0].numel())

    def reconstruct(self) -> Tensor:
        """The approximated weight, (N, C, ...)."""
        combine = self.combine.reshape(self.groups, -1, self.combine.shape[1])
        basis = self.basis.reshape(self.groups, self.rank // self.groups, -1)
        return (combine @ basis).reshape(len(self.combine), *self.basis.shape[1:])


@factorizer("pca")
def pca(weight: Any, rank: int | None = None, error: float | None = None, groups: int = 1) -> Factors:
    """The best approximation of a given rank: uncentred PCA of the filters (Wen et al., ICCV 2017, section 3).

    weight: Tensor or array (N, C, ...), rows in `groups` equal blocks that are decomposed each alone, all at
    the largest rank that any of them needs. Exactly one of: `error`, the bound on the relative squared
    Frobenius error (the smallest rank that meets it; 0 gives the full rank), and `rank`, the total (rounded
    down to a multiple of groups, but at least one each). Computed in float64; the combining columns are
    orthonormal. Raises ValueError for anything else, and for weights that are not finite.
    """
    if (rank is None) == (error is None):
        raise ValueError("give exactly one of rank and error")
    if error is not None and not 0 <= error <= 1:
        raise ValueError(f"error is {error}; expected 0 <= error <= 1")
    weight, blocks = _blocks(weight, groups)
    full = groups * min(blocks.shape[1:])
    if rank is not None and not 1 <= operator.index(rank) <= full:
        raise ValueError(f"rank is {rank}; expected 1 to {full} for a weight of shape {tuple(weight.shape)}")

    left, singular, right = torch.linalg.svd(blocks, full_matrices=False)
    energies = singular.square()
    each = max(1, rank // groups) if rank is not None else smallest_rank(energies, error or 0.0)
    left, singular, right = left[..., :each], singular[:, :each], right[:, :each]
    return Factors(
        rank=each * groups,
        error=float(relative_errors(energies.sum(0))[each]),
        basis=(singular.unsqueeze(-1) * right).reshape(-1, *weight.shape[1:]).to(weight.dtype),
        combine=left.reshape(len(weight), each).to(weight.dtype),
        groups=groups,
    )


def spectrum(weight: Any, groups: int = 1) -> Tensor:
    """Eigenvalues of W W^T, descending, float64: (min(N, K),), with groups (groups, min(N / groups, K)).

    K = C * kh * kw. Raises ValueError as `pca`.
    """
    energies = torch.linalg.svdvals(_blocks(weight, groups)[1]).square()
    return energies if groups > 1 else energies[0]


def relative_errors(energies: Tensor) -> Tensor:
    """(..., m) eigenvalues, descending -> (..., m + 1): the relative squared error at ranks 0 to m."""
    tails = energies.flip(-1).cumsum(-1).flip(-1)
    total = tails[..., :1]
    # a weight of zeros is approximated exactly at every rank
    errors = torch.where(total > 0, tails / total, 0.0)
    return torch.cat([errors, torch.zeros_like(total)], -1)


def smallest_rank(energies: Tensor, error: float) -> int:
    """The smallest rank, at least 1, at which every row of eigenvalues (..., m) meets `error`; m for 0."""
    if error == 0:  # full, even if float64 sees a lower rank
        return energies.shape[-1]
    missed = relative_errors(energies) > error * (1 + NOISE)
    return max(1, int(missed.sum(-1).max()))


def _blocks(weight: Any, groups: int) -> tuple[Tensor, Tensor]:
    """The weight as a floating-point Tensor, and its matrices (groups, N / groups, K) in float64."""
    weight = weight.detach() if isinstance(weight, Tensor) else torch.tensor(weight)
    weight = weight if weight.is_floating_point() else weight.double()
    if weight.dim() < 2 or not weight.numel():
        raise ValueError(f"weight has shape {tuple(weight.shape)}; expected two axes or more, none empty")
    if groups < 1 or len(weight) % groups:
        raise ValueError(f"weight has {len(weight)} rows; groups = {groups} does not divide them")
    if not weight.isfinite().all():
        raise ValueError("weight has NaN or infinite entries")
    return weight, weight.double().reshape(groups, len(weight) // groups, -1)
