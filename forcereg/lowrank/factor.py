"""Decompositions of a weight: chains of small convolutions in place of one (pure functions on tensors).

A method is one class, registered by its name; `Ladder` runs it over the groups of a weight and `factorize` is what
users call.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, ClassVar

import torch
from torch import Tensor

from forcereg.registry import factorizer

NOISE = 1e-12  # relative; an error bound met but for the rounding of float64 counts as met

Rank = int | tuple[int, ...]
"""The total over the groups; Tucker-2 also takes a pair, (output rank, input rank)."""


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


LOWRANK, LINEAR = Slot("lowrank", None), Slot("linear")
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
        """The rank from which on the approximation is exact."""

    @abstractmethod
    def squared_error(self, rank: Rank) -> float:
        """||weight - approximation||^2 (of the responses with `moments`), non-increasing in the rank."""

    @abstractmethod
    def tensors(self, rank: Rank) -> tuple[Tensor, ...]:
        """The weights of the chain, one a slot."""

    @abstractmethod
    def sizes(self, rank: Rank) -> list[tuple[int, ...]]:
        """Their shapes, without computing them."""

    def smallest_rank(self, error: float) -> int:
        """The smallest rank whose error, relative to `scale`, is at most `error`; the full rank for 0."""
        if error == 0:  # full, even if float64 sees a lower rank
            return self.full_rank
        bound = error * (1 + NOISE) * self.scale
        low, high = 0, 1
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
    """What takes the place of a weight (N, C, *kernel): convolutions in a chain, in the weight's dtype."""

    rank: int
    """R, the total over the groups."""
    error: float
    """||weight - reconstruct()||^2 / ||weight||^2 (of the responses if data-aware), in exact arithmetic."""
    full_rank: int
    """The largest rank of the method, over all groups."""
    groups: int
    parts: tuple[Part, ...]

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
        split = [part.weight.chunk(self.groups) for part in self.parts]
        own = [part.groups // self.groups for part in self.parts]
        return torch.cat([compose(tensors, own) for tensors in zip(*split, strict=True)])


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
        order = [0, dims + 1]  # then each axis of the outer kernel beside the same of the inner one
        order += [axis for spatial in range(dims) for axis in (1 + spatial, dims + 2 + spatial)]
        kernel = [a * b for a, b in zip(outer.shape[2:], whole.shape[2:], strict=True)]
        whole = product.permute(order).reshape(len(outer), whole.shape[1], *kernel)
    return whole


def ungrouped(weight: Tensor, groups: int) -> Tensor:
    """A grouped convolution's weight (M, C / groups, ...) with its zeros: (M, C, ...)."""
    if groups == 1:
        return weight
    rows, channels = len(weight) // groups, weight.shape[1]
    whole = weight.new_zeros(groups, rows, groups, channels, *weight.shape[2:])
    index = torch.arange(groups)
    whole[index, :, index] = weight.reshape(groups, rows, *weight.shape[1:])
    return whole.reshape(len(weight), groups * channels, *weight.shape[2:])


class Ladder:
    """A weight (N, C, *kernel) at every rank of a method; rows in `groups` equal blocks, each decomposed alone.

    All groups have the same rank: the largest that any of them needs. `moments` (groups, K, K): see Method.
    `limit`: the total rank that the weight has as a matrix by construction; lowers the `full_rank` of pca and svd.
    Raises ValueError for weights that the method can't take or that aren't finite, ForceregError for an unknown
    method.
    """

    def __init__(
        self,
        weight: Any,
        method: str = "pca",
        groups: int = 1,
        moments: Any = None,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        kind = factorizer.get(method)
        weight, blocks = _blocks(weight, groups)
        if reason := kind.misfit(weight.shape[2:]):
            raise ValueError(f"{method} {reason}")
        if moments is not None and not kind.data_aware:
            raise ValueError(f"{method} minimises the weights' error only; data-aware are {', '.join(aware())}")
        self.dtype, self.groups, self.slots = weight.dtype, groups, kind.slots
        metrics = [None] * groups if moments is None else list(torch.as_tensor(moments).double())
        self._methods = [kind(block, metric, seed) for block, metric in zip(blocks, metrics, strict=True)]
        each = self._methods[0].full_rank
        if limit is not None and kind.matrix_rank:
            each = min(each, max(1, limit // groups))
        self.full_rank = groups * each
        self._scale = sum(one.scale for one in self._methods)

    def rounded(self, rank: Rank) -> Rank:
        """The rank that is taken for `rank`: a multiple of the groups, at least one each. Raises ValueError."""
        if isinstance(rank, tuple | list):
            return tuple(self.groups * max(1, operator.index(one) // self.groups) for one in rank)
        if not 1 <= operator.index(rank) <= self.full_rank:
            raise ValueError(f"rank is {rank}; expected 1 to {self.full_rank}")
        return self.groups * max(1, rank // self.groups)

    def _each(self, rank: Rank) -> Rank:
        rounded = self.rounded(rank)
        if isinstance(rounded, tuple):
            return tuple(one // self.groups for one in rounded)
        return rounded // self.groups

    def error(self, rank: Rank) -> float:
        """The relative squared error at a rank, over all groups; 0 for weights of zeros."""
        each = self._each(rank)
        return sum(one.squared_error(each) for one in self._methods) / self._scale if self._scale else 0.0

    def smallest_rank(self, error: float) -> int:
        """The smallest total rank at which every group meets the bound on its relative squared error.

        Raises ValueError unless 0 <= error <= 1.
        """
        if not 0 <= error <= 1:
            raise ValueError(f"error is {error}; expected 0 <= error <= 1")
        return min(self.full_rank, self.groups * max(one.smallest_rank(error) for one in self._methods))

    def sizes(self, rank: Rank) -> list[tuple[int, ...]]:
        """The shapes of the chain's weights at a rank, (M, channels per group, *kernel), without computing them."""
        own = self._methods[0].sizes(self._each(rank))
        return [(self.groups * rows, *rest) for rows, *rest in own]

    def factors(self, rank: Rank) -> Factors:
        """The approximation at a rank. Raises ValueError for a rank out of range."""
        each = self._each(rank)
        blocks = zip(*(one.tensors(each) for one in self._methods), strict=True)
        return self._chain(rank, [torch.cat(same).to(self.dtype) for same in blocks], self.error(rank))

    def outline(self, rank: Rank) -> Factors:
        """The same without computing it: weights without values, on the meta device, and an error of NaN."""
        return self._chain(rank, [torch.empty(size, device="meta") for size in self.sizes(rank)], nan)

    def _chain(self, rank: Rank, weights: Sequence[Tensor], error: float) -> Factors:
        parts = []
        channels = self._methods[0].weight.shape[1]
        for slot, weight in zip(self.slots, weights, strict=True):
            parts.append(Part(slot, weight, self.groups * (channels // weight.shape[1])))
            channels = len(weight) // self.groups
        each = self._each(rank)
        total = self.groups * (each[0] if isinstance(each, tuple) else each)
        return Factors(total, error, self.full_rank, self.groups, tuple(parts))


class Watched(Ladder):
    """A ladder that says when the work is done that takes long: what is known of all ranks, and each chain."""

    def __init__(self, ladder: Ladder, tell: Callable[[str], None]) -> None:
        self.__dict__.update(ladder.__dict__)
        self._tell: Callable[[str], None] | None = tell
        self._chains = tell

    def _known(self) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell("errors of its ranks")

    def error(self, rank: Rank) -> float:
        found = super().error(rank)
        self._known()
        return found

    def smallest_rank(self, error: float) -> int:
        found = super().smallest_rank(error)
        self._known()
        return found

    def factors(self, rank: Rank) -> Factors:
        found = super().factors(rank)
        self._chains(f"rank {found.rank}")
        return found


def factorize(
    weight: Any,
    rank: Rank | None = None,
    error: float | None = None,
    groups: int = 1,
    *,
    method: str = "pca",
    moments: Any = None,
    seed: int = 0,
) -> Factors:
    """Approximates a weight by a chain of smaller ones.

    weight: Tensor or array (N, C, *kernel) or (N, C), rows in `groups` equal blocks that are decomposed each alone,
    all at the largest rank that any of them needs. Exactly one of: `error`, the bound on the relative squared
    Frobenius error (the smallest rank that meets it; 0 gives the full rank), and `rank`, the total (rounded
    down to a multiple of groups, but at least one each). `moments` (groups, K, K): the inputs' second moments, to
    bound the error of the responses instead (pca and svd). Computed in float64. Raises ValueError for anything else,
    and for weights that are not finite.
    """
    if (rank is None) == (error is None):
        raise ValueError("give exactly one of rank and error")
    ladder = Ladder(weight, method, groups, moments, seed)
    if rank is None:
        rank = ladder.smallest_rank(error or 0.0)
    return ladder.factors(rank)


def aware() -> list[str]:
    """The methods that can minimise the error of responses."""
    return [name for name in factorizer if factorizer.get(name).data_aware]


def spectrum(weight: Any, groups: int = 1) -> Tensor:
    """Eigenvalues of W W^T, descending, float64: (min(N, K),), with groups (groups, min(N / groups, K)).

    K = C * kh * kw. Raises ValueError as `factorize`.
    """
    energies = torch.stack([torch.linalg.svdvals(block.flatten(1)).square() for block in _blocks(weight, groups)[1]])
    return energies if groups > 1 else energies[0]


def relative_errors(energies: Tensor) -> Tensor:
    """(..., m) eigenvalues, descending -> (..., m + 1): the relative squared error at ranks 0 to m."""
    tails = tail_sums(energies)
    total = tails[..., :1]
    # a weight of zeros is approximated exactly at every rank
    return torch.where(total > 0, tails / total, 0.0)


def tail_sums(energies: Tensor) -> Tensor:
    """(..., m) -> (..., m + 1): what is left out when the first 0 to m are kept."""
    tails = energies.flip(-1).cumsum(-1).flip(-1)
    return torch.cat([tails, torch.zeros_like(tails[..., :1])], -1)


def smallest_rank(energies: Tensor, error: float) -> int:
    """The smallest rank, at least 1, at which every row of eigenvalues (..., m) meets `error`; m for 0."""
    if error == 0:  # full, even if float64 sees a lower rank
        return energies.shape[-1]
    missed = relative_errors(energies) > error * (1 + NOISE)
    return max(1, int(missed.sum(-1).max()))


def _blocks(weight: Any, groups: int) -> tuple[Tensor, Tensor]:
    """The weight as a floating-point Tensor, and its blocks (groups, N / groups, C, *kernel) in float64."""
    weight = weight.detach() if isinstance(weight, Tensor) else torch.tensor(weight)
    weight = weight if weight.is_floating_point() else weight.double()
    if weight.dim() < 2 or not weight.numel():
        raise ValueError(f"weight has shape {tuple(weight.shape)}; expected two axes or more, none empty")
    if groups < 1 or len(weight) % groups:
        raise ValueError(f"weight has {len(weight)} rows; groups = {groups} does not divide them")
    if not weight.isfinite().all():
        raise ValueError("weight has NaN or infinite entries")
    return weight, weight.double().reshape(groups, len(weight) // groups, *weight.shape[1:])
