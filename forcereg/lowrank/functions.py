"""The decomposition methods as functions of a weight."""

from __future__ import annotations

from typing import Any

from forcereg.lowrank.factor import Factors, Rank
from forcereg.lowrank.ladder import factorize
from forcereg.system.arguments import checked


@checked
def pca(
    weight: Any, rank: int | None = None, error: float | None = None, groups: int = 1, *, moments: Any = None
) -> Factors:
    """Fewer filters and a 1x1 layer that combines them: the paper's, uncentred PCA (Wen et al., ICCV 2017, section 3).

    weight (N, C, *kernel) or (N, C), Tensor or array -> parts (R, C, *kernel), (N, R, 1...), the columns of the second
    orthonormal; of all pairs of rank R the one of the least error. With `groups` the rows are in that many equal
    blocks, R is their total, and the second part is (N, R / groups, 1...).

    Exactly one of `rank`, 1 to min(N, K) with K = C * prod(kernel) (rounded down to a multiple of groups, at least one
    each), and `error`, 0 to 1: the smallest rank whose relative squared Frobenius error is at most that in every
    group; 0 gives the full rank. `moments` (groups, K, K), E[x x^T] of the inputs: the error is the responses', and
    the approximation the best for them. Computed in float64, given in the weight's type. Raises ValueError for ranks
    and errors out of range, groups that don't divide N, and weights that aren't finite; UsageError for an argument of
    another kind.

    >>> import torch
    >>> weight = torch.randn(16, 8, 3, 3)
    >>> factors = forcereg.lowrank.pca(weight, error=0.5)
    >>> factors.rank < factors.full_rank == 16 and factors.error <= 0.5
    True
    >>> factors.basis.shape, factors.combine.shape == (16, factors.rank)
    (torch.Size([..., 8, 3, 3]), True)
    """
    return factorize(weight, rank, error, groups, method="pca", moments=moments)


@checked
def svd(
    weight: Any, rank: int | None = None, error: float | None = None, groups: int = 1, *, moments: Any = None
) -> Factors:
    """As `pca`, the same approximation, with the roots of the singular values in both parts: both learn at like rates.

    Shapes, arguments and errors raised are those of `pca` (Caffe's fork calls it this).

    >>> import torch
    >>> [tuple(part.weight.shape) for part in forcereg.lowrank.svd(torch.randn(16, 8, 3, 3), rank=4).parts]
    [(4, 8, 3, 3), (16, 4, 1, 1)]
    """
    return factorize(weight, rank, error, groups, method="svd", moments=moments)


@checked
def vh(weight: Any, rank: int | None = None, error: float | None = None, groups: int = 1) -> Factors:
    """Vertical kh x 1 filters, then horizontal 1 x kw ones: the best of their kind (Tai et al., ICLR 2016).

    weight (N, C, kh, kw) -> parts (R, C, kh, 1), (N, R, 1, kw); the full rank is min(C * kh, N * kw), of each group.
    `rank`, `error` and `groups` as in `pca`. Raises ValueError as `pca`, and unless the kernel has two axes.

    >>> import torch
    >>> [tuple(part.weight.shape) for part in forcereg.lowrank.vh(torch.randn(16, 8, 3, 3), rank=4).parts]
    [(4, 8, 3, 1), (16, 4, 1, 3)]
    """
    return factorize(weight, rank, error, groups, method="vh")


@checked
def kmeans(
    weight: Any, rank: int | None = None, error: float | None = None, groups: int = 1, *, seed: int = 0
) -> Factors:
    """Filter sharing: each filter becomes the mean of its cluster (Lloyd's algorithm, from scikit-learn).

    weight (N, C, *kernel) or (N, C) -> parts (R, C, *kernel), the means, and (N, R, 1...) of zeros and ones. `rank`,
    the number of clusters, `error` and `groups` as in `pca`; `seed` makes it repeatable. Raises ValueError as `pca`,
    ForceregError without scikit-learn (the extra `lowrank`).

    >>> import torch
    >>> factors = forcereg.lowrank.kmeans(torch.randn(16, 8, 3, 3), rank=4)
    >>> factors.combine.sum(1).unique()  # each filter is one of the four
    tensor([1.])
    """
    return factorize(weight, rank, error, groups, method="kmeans", seed=seed)


@checked
def tucker2(weight: Any, rank: Rank | None = None, error: float | None = None, groups: int = 1) -> Factors:
    """1x1 into fewer channels, the kernel between fewer channels, 1x1 out (Kim et al., ICLR 2016; HOOI).

    weight (N, C, *kernel) -> parts (S, C, 1...), (R, S, *kernel), (N, R, 1...), the outer two orthonormal; the full
    ranks are min(N, C * K) and min(C, N * K), K = prod(kernel). Exactly one of `rank`, a pair (R, S) or R alone (S is
    then the same share of its full rank, rounded up), and `error`, 0 to 1: of the pairs whose relative squared
    Frobenius error is at most that the one with the fewest values, as far as a search finds it, never more than R
    alone would take; 0 gives the full ranks. `groups` as in `pca`; R and S are totals over them. Raises ValueError as
    `pca`, and for weights without a kernel.

    >>> import torch
    >>> [tuple(part.weight.shape) for part in forcereg.lowrank.tucker2(torch.randn(16, 8, 3, 3), rank=(6, 4)).parts]
    [(4, 8, 1, 1), (6, 4, 3, 3), (16, 6, 1, 1)]
    """
    return factorize(weight, rank, error, groups, method="tucker2")


@checked
def cp(weight: Any, rank: int | None = None, error: float | None = None, groups: int = 1) -> Factors:
    """A sum of R products of vectors (Lebedev et al., ICLR 2015), by alternating least squares from tensorly.

    weight (N, C, kh, kw) -> parts (R, C, 1, 1), (R, 1, kh, 1) and (R, 1, 1, kw) of a group a channel, (N, R, 1, 1);
    the full rank is the product of all sizes but the largest, where it costs more than the weight itself. `rank`,
    `error` and `groups` as in `pca`. Raises ValueError as `pca`, and unless the kernel has two axes; ForceregError
    without tensorly (the extra `lowrank`).

    >>> import torch
    >>> [tuple(part.weight.shape) for part in forcereg.lowrank.cp(torch.randn(16, 8, 3, 3), rank=5).parts]
    [(5, 8, 1, 1), (5, 1, 3, 1), (5, 1, 1, 3), (16, 5, 1, 1)]
    """
    return factorize(weight, rank, error, groups, method="cp")
