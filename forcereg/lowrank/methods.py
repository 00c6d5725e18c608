"""The decomposition methods in closed form, and filter sharing. Add one here: a class and its decorator."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.lowrank.factor import Method, Rank, Slot, leading, left_axes, square_tails, tail_sums
from forcereg.lowrank.metric import RIDGE, Metric, regularised, without
from forcereg.registry import factorizer


class Spectral(Method):
    """Methods whose ranks are the singular values of one matrix of the weight, largest first."""

    @cached_property
    def _tails(self) -> list[float]:
        return tail_sums(self.energies()).tolist()

    @abstractmethod
    def energies(self) -> Tensor:
        """The squared singular values, descending."""

    @property
    def full_rank(self) -> int:
        """The smaller side of the matrix."""
        return len(self._tails) - 1

    def squared_error(self, rank: Rank) -> float:
        """The sum of the squared singular values that are left out."""
        return self._tails[single(rank)]

    @abstractmethod
    def products(self, metric: Metric) -> Tensor:
        """Inner products (m, m), in a metric, of the terms of rank 1 that make up the weight, leading ones first."""

    def losses(self, metric: Metric) -> Callable[[Rank], float]:
        """Of all ranks at once: what is left out is a sum of terms, whose squared size their products add up to."""
        tails = square_tails(self.products(metric)).tolist()
        return lambda rank: tails[single(rank)]


@factorizer("pca")
class Pca(Spectral):
    """The best approximation of a given rank: uncentred PCA of the filters (Wen et al., ICCV 2017, section 3).

    The combining columns are orthonormal. With `moments`, the best for the responses: the same of W L, L L^T = moments.
    """

    data_aware = matrix_rank = True

    def __init__(self, weight: Tensor, moments: Tensor | None = None, seed: int = 0) -> None:
        super().__init__(weight, moments, seed)
        rows = weight.flatten(1)
        if moments is not None:
            # L = V sqrt(values): ||W L|| is the size of the responses W x
            values, vectors = torch.linalg.eigh(moments)
            # moments have no negative eigenvalues but by rounding
            floor = RIDGE * values.clamp(min=0).mean()
            rows = rows @ (vectors * (values.clamp(min=0) + floor).sqrt())
            self.scale = float(rows.square().sum())
        self._rows = rows

    @cached_property
    def _axes(self) -> tuple[Tensor, Tensor]:
        return left_axes(self._rows)

    def energies(self) -> Tensor:
        """Eigenvalues of W W^T, or of W L (W L)^T."""
        return self._axes[1]

    def products(self, metric: Metric) -> Tensor:
        """Of u_i (u_i^T W)."""
        axes = self._axes[0]
        terms = axes.T @ self.weight.flatten(1)
        return (axes.T @ metric.left(axes)) * (metric.right(terms) @ terms.T)

    def behind(self) -> Metric:
        """As of every method, of the responses with `moments`."""
        inputs = None if self.moments is None else regularised(self.moments)
        return Metric(None if len(self.weight) == 1 else without(self._axes[0][:, 0]), inputs)

    def tensors(self, rank: Rank) -> tuple[Tensor, ...]:
        """Basis (R, C, *kernel) and combining weights (N, R, 1...)."""
        combine = self._axes[0][:, : single(rank)]
        # of W, also with moments: a basis of W L would have to be turned back, and L may be nearly singular
        basis = combine.T @ self.weight.flatten(1)
        return basis.reshape(-1, *self.weight.shape[1:]), with_kernel(combine, self.weight)

    def sizes(self, rank: Rank) -> list[tuple[int, ...]]:
        """As of every pair."""
        return pair_sizes(self.weight, rank)


@factorizer("svd")
class Svd(Pca):
    """The same approximation with the singular values' roots in both parts, so that both learn at like rates."""

    def tensors(self, rank: Rank) -> tuple[Tensor, ...]:
        """U sqrt(S) and sqrt(S) V^T (with `moments`: each basis filter's own norm for its singular value)."""
        combine = self._axes[0][:, : single(rank)]
        basis = combine.T @ self.weight.flatten(1)
        roots = basis.norm(dim=1, keepdim=True).sqrt()
        # of a singular value of 0 the filter is zero, and 0 / 0 would be NaN
        basis = torch.where(roots > 0, basis / roots, 0.0)
        return basis.reshape(-1, *self.weight.shape[1:]), with_kernel(combine * roots.T, self.weight)


@factorizer("vh")
class Vh(Spectral):
    """Vertical kh x 1 filters, then horizontal 1 x kw ones, the best of their kind (Tai et al., ICLR 2016)."""

    slots = (Slot("v", (0,)), Slot("h", (1,)))

    @staticmethod
    def misfit(kernel: Sequence[int]) -> str | None:
        """Only kernels of two axes have a vertical and a horizontal one."""
        return None if len(kernel) == 2 else f"needs a kernel of two axes; this weight's has {len(kernel)}"

    @cached_property
    def _axes(self) -> tuple[Tensor, Tensor]:
        """Singular vectors of the shorter side of the weight as (C * kh, kw * N), and squared singular values."""
        matrix = self._matrix()
        return left_axes(matrix if len(matrix) <= matrix.shape[1] else matrix.T)

    def _matrix(self) -> Tensor:
        return self.weight.permute(1, 2, 3, 0).flatten(0, 1).flatten(1)

    def energies(self) -> Tensor:
        """Of the weight as (C * kh, kw * N)."""
        return self._axes[1]

    def products(self, metric: Metric) -> Tensor:
        """Of the outer products of vertical and horizontal filters."""
        vertical, horizontal = self.tensors(self.full_rank)
        tall, wide = vertical.flatten(1), horizontal.squeeze(2)  # (m, C * kh), (N, m, kw)
        scaled = metric.left(wide.flatten(1)).reshape(wide.shape)
        side, width = tall.shape[1], wide.shape[2]
        if metric.inputs is None:
            return (tall @ tall.T) * sum(wide[..., x].T @ scaled[..., x] for x in range(width))
        moments = metric.inputs.reshape(side, width, side, width)
        places = itertools.product(range(width), repeat=2)
        found = [(wide[..., x].T @ scaled[..., z]) * (tall @ moments[:, x, :, z] @ tall.T) for x, z in places]
        return torch.stack(found).sum(0)

    def behind(self) -> Metric:
        """Of the weight as (C * kh, kw * N), which is what is cut."""
        if self.full_rank == 1:
            return Metric()
        return Metric(inputs=without(leading(self._matrix()), self.weight.shape[3]))

    def tensors(self, rank: Rank) -> tuple[Tensor, ...]:
        """(R, C, kh, 1) and (N, R, 1, kw), the singular values' roots in both."""
        count, channels, height, width = self.weight.shape
        # only the shorter side's axes are computed; the other side follows from them
        matrix, axes = self._matrix(), self._axes[0][:, : single(rank)]
        wide = len(matrix) <= matrix.shape[1]
        others = (matrix.T if wide else matrix) @ axes
        roots = others.norm(dim=0).sqrt()
        axes, others = axes * roots, torch.where(roots > 0, others / roots, 0.0)
        left, right = (axes, others) if wide else (others, axes)
        vertical = left.T.reshape(-1, channels, height, 1)
        horizontal = right.reshape(width, count, -1).permute(1, 2, 0)
        return vertical, horizontal.unsqueeze(2)

    def sizes(self, rank: Rank) -> list[tuple[int, ...]]:
        """As `tensors`."""
        count, channels, height, width = self.weight.shape
        return [(single(rank), channels, height, 1), (count, single(rank), 1, width)]


@factorizer("kmeans")
class Kmeans(Method):
    """Filter sharing: each filter becomes the mean of its cluster (Lloyd's algorithm, from scikit-learn).

    Every number of clusters starts from the clusters of one less and the filter that is farthest from its mean,
    so the error never rises with the rank.
    """

    chained = True

    def __init__(self, weight: Tensor, moments: Tensor | None = None, seed: int = 0) -> None:
        super().__init__(weight, moments, seed)
        self._rows = np.ascontiguousarray(weight.flatten(1).numpy())
        self._chain: list[tuple[float, np.ndarray]] = []  # by clusters: the error, and each filter's cluster

    @property
    def full_rank(self) -> int:
        """One cluster a filter."""
        return len(self._rows)

    def squared_error(self, rank: Rank) -> float:
        """Summed over the filters."""
        return self._grown(single(rank))[0]

    def losses(self, metric: Metric) -> Callable[[Rank], float]:
        """Of rows whose products are those of the filters in the metric: clusters' means are the same of them."""
        rows = self._rows
        if metric.inputs is not None:
            whole = self.weight.flatten(1)
            values, vectors = torch.linalg.eigh(metric.right(whole) @ whole.T)
            rows = (vectors * values.clamp(min=0).sqrt()).numpy()

        @cache
        def loss(rank: Rank) -> float:
            labels = self._grown(single(rank))[1]
            return Metric(metric.outputs).size(torch.from_numpy(rows - means(rows, labels, single(rank))[labels]))

        return loss

    def tensors(self, rank: Rank) -> tuple[Tensor, ...]:
        """The clusters' means, and a 1 for each filter's own."""
        _, labels = self._grown(single(rank))
        centres = torch.from_numpy(means(self._rows, labels, single(rank)))
        chosen = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), single(rank)).double()
        return centres.reshape(-1, *self.weight.shape[1:]), with_kernel(chosen, self.weight)

    def sizes(self, rank: Rank) -> list[tuple[int, ...]]:
        """As of every pair."""
        return pair_sizes(self.weight, rank)

    def _grown(self, rank: int) -> tuple[float, np.ndarray]:
        while len(self._chain) < rank:
            self._chain.append(self._next(len(self._chain)))
        return self._chain[rank - 1]

    def _next(self, count: int) -> tuple[float, np.ndarray]:
        """One cluster more than `count`."""
        if count == 0:
            labels = np.zeros(len(self._rows), np.int64)
            return spread(self._rows, labels, 1), labels
        error, labels = self._chain[-1]
        centres = means(self._rows, labels, count)
        distances = np.square(self._rows - centres[labels]).sum(1)
        # k-means would warn of empty clusters, and there is nothing left to gain
        if error == 0 or not distances.any():
            return 0.0, labels  # fewer filters differ than clusters are asked for
        farthest = int(distances.argmax())
        split = labels.copy()
        split[farthest] = count
        # the split alone never raises the error; Lloyd's algorithm mostly gets below it
        candidates = [split, lloyd(self._rows, np.vstack([centres, self._rows[farthest]]), self.seed)]
        return min(((spread(self._rows, one, count + 1), one) for one in candidates), key=lambda pair: pair[0])


def lloyd(rows: np.ndarray, centres: np.ndarray, seed: int) -> np.ndarray:
    """Each row's cluster after k-means from `centres`. Raises ForceregError without scikit-learn."""
    try:
        # here: an extra that no other method needs
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise ForceregError('kmeans needs scikit-learn; install it with pip install "forcereg[lowrank]"') from None
    with threadpool_limits(1):  # repeatable to the last bit
        return KMeans(len(centres), init=centres, n_init=1, random_state=seed).fit(rows).labels_.astype(np.int64)


def means(rows: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """The clusters' means (count, K); zeros for one that has no rows."""
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, labels, rows)
    return sums / np.maximum(np.bincount(labels, minlength=count), 1)[:, None]


def spread(rows: np.ndarray, labels: np.ndarray, count: int) -> float:
    """The squared distances of all rows from their clusters' means, summed."""
    return float(np.square(rows - means(rows, labels, count)[labels]).sum())


def single(rank: Rank) -> int:
    """A rank that is one number. Raises ValueError for several."""
    if isinstance(rank, tuple):
        raise ValueError(f"rank is {list(rank)}; expected one number (only tucker2 takes a pair)")
    return rank


def with_kernel(matrix: Tensor, weight: Tensor) -> Tensor:
    """(N, R) -> (N, R, 1, ...), as many axes as the weight has."""
    return matrix.reshape(*matrix.shape, *[1] * (weight.dim() - 2))


def pair_sizes(weight: Tensor, rank: Rank) -> list[tuple[int, ...]]:
    """The shapes of a low-rank layer and of the 1x1 layer that combines it."""
    return [(single(rank), *weight.shape[1:]), (len(weight), single(rank), *[1] * (weight.dim() - 2))]
