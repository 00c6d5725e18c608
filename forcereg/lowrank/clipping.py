"""Fewer ranks for a pair of layers in training: new weights, and the map that takes its history along (pure functions).

A pair computes W = C A per group, A (R, K) the first layer's weight, C (N, R) the second's. `cut` finds the smallest r
whose best approximation W_r keeps a share of W's squared norm: the error of what the pair computes, not of A alone
(the fork looked at A, whose filters C may scale by anything). With W = U S V^T, truncated to r,

    left = T U^T C (r, R)    right (R, r) and T (r, r): the QR decomposition of A V / S

so that left @ right = I, C right left A = W_r, and right has orthonormal columns: the new weights A' = left A and
C' = C right are nowhere larger than the old ones (in the spectral norm), so that learning rates and weight decay go on
meaning the same. Where C^T C = A A^T, which training tends to, both maps are one orthogonal projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from forcereg.lowrank.factor import smallest_rank


class Kind(Enum):
    """What a tensor beside a weight holds, hence how it changes when the weight gets other coordinates."""

    WEIGHT = "weight"
    GRADIENT = "gradient"
    SQUARED_GRADIENT = "squared gradient"
    SQUARED_STEP = "squared step"


@dataclass(frozen=True, eq=False)
class Cut:
    """The maps from rank R to r, float64: `left` (groups, r, R), `right` (groups, R, r); see the module.

    `share` of W's squared norm is kept, at least in each group what was asked for.
    """

    left: Tensor
    right: Tensor
    share: float

    @property
    def rank(self) -> int:
        """The new total over the groups."""
        return self.left.shape[0] * self.left.shape[1]

    def project(self, kind: Kind, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Of A's shape (groups, R, K) and C's (groups, N, R): the same for A' and C', float64.

        A gradient is exact where W_r = W: L's by A' is right^T dL/dA, by C' it is dL/dC left^T. Means of squares are
        those of each entry on its own, so they go by the maps' squared entries, as if entries were uncorrelated: what
        is never negative stays so.
        """
        left, right = self.left, self.right
        rows, columns = {
            Kind.WEIGHT: (left, right),
            Kind.GRADIENT: (right.mT, left.mT),
            Kind.SQUARED_GRADIENT: (right.mT.square(), left.mT.square()),
            Kind.SQUARED_STEP: (left.square(), right.square()),
        }[kind]
        return rows @ first.double(), second.double() @ columns


def cut(first: Tensor, second: Tensor, share: float) -> Cut | None:
    """The smallest rank, the same in all groups, at which each keeps `share` of its squared norm, in (0, 1].

    first: A (groups, R, K), second: C (groups, N, R). None if that is R, or if W is zero or not finite. Directions
    that a group lacks, as far as the weights' dtype tells, get zeros in A' and orthonormal columns in `right`.
    """
    # the weights' and not float64's, which takes their rounding for rank
    noise = torch.finfo(first.dtype).eps
    # W's triangular core: the factors' orthonormal sides, which are as large as the layers, aren't needed
    inner, outer = (torch.linalg.qr(one.double(), mode="r").R for one in (first.mT, second))
    core = outer @ inner.mT
    if not bool(core.isfinite().all()) or not bool(core.any()):
        return None
    left, values, right = torch.linalg.svd(core, full_matrices=False)
    energies = values.square()
    # one rank for all groups: a grouped convolution has as many filters in each
    rank = smallest_rank(energies, 1 - share)
    if rank >= first.shape[1]:
        return None
    # directions below the rounding of the weights' dtype are noise: 1 / noise would blow them up
    scale = torch.where(values > noise * values[..., :1], 1 / values, 0.0)[..., None, :rank]
    orthonormal, triangle = torch.linalg.qr(inner.mT @ right.mT[..., :rank] * scale)
    kept = float(energies[..., :rank].sum() / energies.sum())
    return Cut(triangle @ (left.mT[..., :rank, :] @ outer), orthonormal, kept)
