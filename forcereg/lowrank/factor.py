"""Decompositions of a weight: chains of small convolutions in place of one (pure functions on tensors).

A method is one class, registered by its name; `ladder.Ladder` runs it over the groups of a weight.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from forcereg.lowrank.metric import Metric, without
from forcereg.system.arguments import checked

NOISE = 1e-12  # relative; an error bound met but for the rounding of float64 counts as met

Rank = int | tuple[int, ...]
"""The total over the groups; one for each of its ranks for a method of several (tucker2: outputs, inputs)."""


def each_of(rank: Rank) -> tuple[int, ...]:
    """The one number or the several."""
    return rank if isinstance(rank, tuple) else (rank,)


def rank_text(rank: Rank) -> str:
    """12, or 8-12 for a pair."""
    return "-".join(map(str, each_of(rank)))


@dataclass(frozen=True)
class Slot:
    """One layer of the chain that a method makes: its name's ending, and the kernel axes that are its own.

    `axes`: which spatial axes of the kernel it covers (with their stride, pad and dilation), None for all of them.
    """

    suffix: str
    axes: tuple[int, ...] | None = ()

    def owns(self, axis: int) -> bool:
        """Whether the spatial axis is this layer's."""
        return self.axes is None or axis in self.axes


IN, LOWRANK, LINEAR = Slot("in"), Slot("lowrank", None), Slot("linear")
PAIR = (LOWRANK, LINEAR)


class Method(ABC):
    """How one weight (N, C, *kernel), float64, can be approximated at ranks 1 to `full_rank`.

    `moments` (K, K), K = C * prod(kernel): E[x x^T] of the inputs, for methods that can minimise the error of
    the responses; None minimises the weights' own. `seed` makes what is random repeatable.
    """

    slots: ClassVar[tuple[Slot, ...]] = PAIR
    data_aware: ClassVar[bool] = False
    """Whether `moments` may be given."""
    matrix_rank: ClassVar[bool] = False
    """Whether its ranks are those of the weight as a matrix (N, K)."""
    chained: ClassVar[bool] = False
    """Whether it gets at a rank only through all lower ones."""
    scale: float
    """||weight||^2, or the responses' mean square."""

    def __init__(self, weight: Tensor, moments: Tensor | None = None, seed: int = 0) -> None:
        self.weight, self.moments, self.seed = weight, moments, seed
        self.scale = float(weight.square().sum())

    @staticmethod
    def misfit(kernel: Sequence[int]) -> str | None:
        """Why a weight with such a kernel can't be decomposed like this; None if it can."""
        return None

    @property
    @abstractmethod
    def full_rank(self) -> int:
        """The rank from which on the approximation is exact; the first of several."""

    @property
    def full_ranks(self) -> tuple[int, ...]:
        """That of every rank that the method has; its ranks are numbers if it has one, tuples if it has several."""
        return (self.full_rank,)

    @abstractmethod
    def squared_error(self, rank: Rank) -> float:
        """||weight - approximation||^2 (of the responses with `moments`), non-increasing in each rank."""

    def bounds(self) -> tuple[Tensor, Tensor]:
        """For methods of several ranks: `squared_error` is at least the first, at most the second.

        Both (*full_ranks,), float64, for ranks from 1 on. Exact here; methods whose errors take long give bounds that
        don't.
        """
        every = itertools.product(*(range(1, full + 1) for full in self.full_ranks))
        found = torch.tensor([self.squared_error(rank) for rank in every], dtype=torch.float64)
        found = found.reshape(self.full_ranks)
        return found, found

    def is_quick(self, rank: Rank) -> bool:
        """Whether the error at a rank is known, or takes next to no time."""
        return True

    @abstractmethod
    def tensors(self, rank: Rank) -> tuple[Tensor, ...]:
        """The weights of the chain, one a slot."""

    @abstractmethod
    def sizes(self, rank: Any) -> list[tuple[Any, ...]]:
        """Their shapes, without computing them; with arrays for numbers where the rank has arrays."""

    def losses(self, metric: Metric) -> Callable[[Rank], float]:
        """Rank -> the size, in a metric, of what its approximation leaves out of the weight.

        Each by its chain here; methods that get at all of them at once do so.
        """

        @cache
        def loss(rank: Rank) -> float:
            tensors = self.tensors(rank)
            groups = groups_of([tuple(one.shape) for one in tensors], self.weight.shape[1])
            return metric.size(self.weight - compose(tensors, groups))

        return loss

    def behind(self) -> Metric:
        """The size of what lies behind the leading direction of each mode that the method cuts: here of the outputs."""
        return Metric() if len(self.weight) == 1 else Metric(without(leading(self.weight.flatten(1))))

    def smallest_rank(self, error: float) -> int:
        """The smallest rank whose error, relative to `scale`, is at most `error`; the full rank for 0."""
        if error == 0:  # full, even if float64 sees a lower rank
            return self.full_rank
        bound = error * (1 + NOISE) * self.scale
        low, high = 0, 1
        # doubling, since most ranks are far below the full one; one by one where a rank comes only after all lower ones
        while high < self.full_rank and self.squared_error(high) > bound:
            low, high = high, min(high + 1 if self.chained else 2 * high, self.full_rank)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.squared_error(middle) <= bound else (middle, high)
        return high


@dataclass(frozen=True, eq=False)
class Part:
    """One convolution of the chain: weight (M, channels per group, *kernel), kernel 1 on axes that aren't its own."""

    slot: Slot
    weight: Tensor
    groups: int


@dataclass(frozen=True, eq=False)
class Factors:
    """What takes the place of a weight (N, C, *kernel): convolutions in a chain, in the weight's dtype.

    >>> import torch
    >>> factors = forcereg.lowrank.pca(torch.eye(4).reshape(4, 4, 1, 1), rank=3)
    >>> factors.ranks, factors.full_ranks, round(factors.error, 6)
    ((3,), (4,), 0.25)
    >>> factors.reconstruct().shape
    torch.Size([4, 4, 1, 1])
    """

    ranks: tuple[int, ...]
    """Totals over the groups: one, or as many as the method has (tucker2: of the outputs, of the inputs)."""
    error: float
    """||weight - reconstruct()||^2 / ||weight||^2 (of the responses if data-aware), in exact arithmetic."""
    full_ranks: tuple[int, ...]
    """The largest ranks of the method, over all groups."""
    groups: int
    parts: tuple[Part, ...]

    @property
    def rank(self) -> int:
        """R, the first of `ranks`."""
        return self.ranks[0]

    @property
    def full_rank(self) -> int:
        """The first of `full_ranks`."""
        return self.full_ranks[0]

    @property
    def basis(self) -> Tensor:
        """(R, C, *kernel): the filters of the first layer."""
        return self.parts[0].weight

    @property
    def combine(self) -> Tensor:
        """(N, coefficients): the last layer's; row n uses the basis filters of n's group."""
        return self.parts[-1].weight.flatten(1)

    def reconstruct(self) -> Tensor:
        """The approximated weight, (N, C, *kernel)."""
        return composed([part.weight for part in self.parts], [part.groups for part in self.parts], self.groups)


def composed(tensors: Sequence[Tensor], groups: Sequence[int], outer: int) -> Tensor:
    """Weights of a chain, with the groups of each, as the one weight of `outer` groups, (N, C / outer, *kernel)."""
    own = [count // outer for count in groups]
    split = [tensor.chunk(outer) for tensor in tensors]
    return torch.cat([compose(blocks, own) for blocks in zip(*split, strict=True)])


def rank_limit(shapes: Sequence[Sequence[int]]) -> int:
    """A bound on the rank of a chain's weight as a matrix (N, C * prod(kernel)), by the shapes of its parts.

    What one layer hands to the next are its filters, at as many places as the later kernels reach.
    """
    bounds, reach = [], 1
    for rows, _, *kernel in reversed(shapes):
        bounds.append(rows * reach)
        reach *= prod(kernel)
    return min(bounds[1:])


def compose(tensors: Sequence[Tensor], groups: Sequence[int]) -> Tensor:
    """Weights of convolutions in a chain, each (M, channels per group, *kernel) -> the one that equals them all.

    No two may have a kernel larger than 1 on the same axis.
    """
    whole = ungrouped(tensors[0], groups[0])
    for weight, count in zip(tensors[1:], groups[1:], strict=True):
        outer = ungrouped(weight, count)
        dims = outer.dim() - 2
        product = outer.movedim(1, -1).reshape(-1, outer.shape[1]) @ whole.flatten(1)
        product = product.reshape(len(outer), *outer.shape[2:], *whole.shape[1:])
        # the product has outer axes, then inner ones; a kernel's two halves have to lie side by side to be one axis
        order = [0, dims + 1]  # then each axis of the outer kernel beside the same of the inner one
        order += [axis for spatial in range(dims) for axis in (1 + spatial, dims + 2 + spatial)]
        kernel = [a * b for a, b in zip(outer.shape[2:], whole.shape[2:], strict=True)]
        whole = product.permute(order).reshape(len(outer), whole.shape[1], *kernel)
    return whole


def groups_of(sizes: Sequence[Sequence[int]], channels: int) -> list[int]:
    """The groups of convolutions in a chain, from their weights' shapes and the channels of its input."""
    found = []
    for count, own, *_ in sizes:
        # CP's middle parts work on each channel alone: as many groups as channels
        found.append(channels // own)
        channels = count
    return found


def ungrouped(weight: Tensor, groups: int) -> Tensor:
    """A grouped convolution's weight (M, C / groups, ...) with its zeros: (M, C, ...)."""
    if groups == 1:
        return weight
    rows, channels = len(weight) // groups, weight.shape[1]
    whole = weight.new_zeros(groups, rows, groups, channels, *weight.shape[2:])
    index = torch.arange(groups)
    whole[index, :, index] = weight.reshape(groups, rows, *weight.shape[1:])
    return whole.reshape(len(weight), groups * channels, *weight.shape[2:])


@checked
def spectrum(weight: Any, groups: int = 1) -> Tensor:
    """Eigenvalues of W W^T, descending, float64: (min(N, K),), with groups (groups, min(N / groups, K)).

    K = C * kh * kw. Raises ValueError as `factorize`.

    >>> import torch
    >>> forcereg.lowrank.spectrum(torch.diag(torch.tensor([2.0, 1.0, 0.0])))
    tensor([4., 1., 0.], dtype=torch.float64)
    """
    energies = torch.stack([torch.linalg.svdvals(block.flatten(1)).square() for block in blocks_of(weight, groups)[1]])
    return energies if groups > 1 else energies[0]


def relative_errors(energies: Tensor) -> Tensor:
    """(..., m) eigenvalues, descending -> (..., m + 1): the relative squared error at ranks 0 to m."""
    tails = tail_sums(energies)
    total = tails[..., :1]
    # a weight of zeros is approximated exactly at every rank
    return torch.where(total > 0, tails / total, 0.0)


def tail_sums(energies: Tensor) -> Tensor:
    """(..., m) -> (..., m + 1): what is left out when the first 0 to m are kept."""
    # from the smallest on: the total less what is kept would cancel
    tails = energies.flip(-1).cumsum(-1).flip(-1)
    return torch.cat([tails, torch.zeros_like(tails[..., :1])], -1)


def square_tails(products: Tensor) -> Tensor:
    """(m, m) inner products of m terms -> (m + 1,): the squared size of the sum of the terms left out, as above."""
    # the rows of what is left out: twice what lies right of the diagonal
    return tail_sums(products.diagonal() + 2 * products.triu(1).sum(1)).clamp(min=0)


def left_axes(rows: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """Left singular vectors (N, m) and squared singular values (m,) of rows (N, K), descending.

    m is the smaller side, N if `count` is more than that.
    """
    if len(rows) <= max(rows.shape[1], count):
        # the Gram matrix is as exact as errors need, which are squares, and many times faster for long filters
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        return vectors.flip(1), values.flip(0).clamp(min=0)
    left, singular, _ = torch.linalg.svd(rows, full_matrices=False)
    return left, singular.square()


def leading(rows: Tensor) -> Tensor:
    """The first left singular vector (N,) of rows (N, K)."""
    return left_axes(rows)[0][:, 0]


def smallest_rank(energies: Tensor, error: float) -> int:
    """The smallest rank, at least 1, at which every row of eigenvalues (..., m) meets `error`; m for 0."""
    if error == 0:  # full, even if float64 sees a lower rank
        return energies.shape[-1]
    missed = relative_errors(energies) > error * (1 + NOISE)
    return max(1, int(missed.sum(-1).max()))


def as_tensor(name: str, given: Any) -> Tensor:
    """What is given as a Tensor. Raises ValueError for what holds no numbers."""
    try:
        return given if isinstance(given, Tensor) else torch.tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} is a {type(given).__name__}; expected a Tensor or an array of numbers") from None


def blocks_of(weight: Any, groups: int) -> tuple[Tensor, Tensor]:
    """The weight as a floating-point Tensor, and its blocks (groups, N / groups, C, *kernel) in float64.

    Raises ValueError for fewer than two axes, none, NaN or infinite values, and groups that don't divide the rows.
    """
    weight = as_tensor("weight", weight).detach()
    weight = weight if weight.is_floating_point() else weight.double()
    if weight.dim() < 2 or not weight.numel():
        raise ValueError(f"weight has shape {tuple(weight.shape)}; expected two axes or more, none empty")
    if groups < 1 or len(weight) % groups:
        raise ValueError(f"weight has {len(weight)} rows; groups = {groups} does not divide them")
    if not weight.isfinite().all():
        raise ValueError("weight has NaN or infinite entries")
    # float64: bounds are met to NOISE, far below what float32 tells apart
    return weight, weight.double().reshape(groups, len(weight) // groups, *weight.shape[1:])
