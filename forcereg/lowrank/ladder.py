"""A weight at every rank of a method: over its groups, rounded, searched; and `factorize`, which users call."""

from __future__ import annotations

import itertools
import operator
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cached_property
from math import nan, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcereg.lowrank import search
from forcereg.lowrank.factor import (
    NOISE,
    Factors,
    Method,
    Part,
    Rank,
    as_tensor,
    blocks_of,
    each_of,
    groups_of,
    rank_text,
)
from forcereg.lowrank.kinds import factorizer
from forcereg.lowrank.metric import Metric
from forcereg.system.arguments import checked


class Ladder:
    """A weight (N, C, *kernel) at every rank of a method; rows in `groups` equal blocks, each decomposed alone.

    All groups have the same ranks. A rank is their total: a number, or a tuple for a method of several ranks.
    `moments` (groups, K, K): see Method. `limit`: the total rank that the weight has as a matrix by construction;
    lowers the `full_rank` of pca and svd. `multiple`: the ranks of a group are multiples of it, or full.
    Raises ValueError for weights that the method can't take or that aren't finite, ForceregError for an unknown
    method.

    >>> import torch
    >>> ladder = forcereg.lowrank.Ladder(torch.randn(16, 8, 3, 3))
    >>> ladder.full_rank, [round(ladder.error(rank)) for rank in (1, 16)]
    (16, [1, 0])
    >>> ladder.factors(4).rank
    4
    """

    @checked
    def __init__(
        self,
        weight: Any,
        method: str = "pca",
        groups: int = 1,
        moments: Any = None,
        seed: int = 0,
        limit: int | None = None,
        multiple: int = 1,
    ) -> None:
        kind = factorizer.get(method)
        weight, blocks = blocks_of(weight, groups)
        if reason := kind.misfit(weight.shape[2:]):
            raise ValueError(f"{method} {reason}")
        if moments is not None and not kind.data_aware:
            raise ValueError(f"{method} minimises the weights' error only; data-aware are {', '.join(aware())}")
        self.dtype, self.groups, self.slots, self.multiple = weight.dtype, groups, kind.slots, multiple
        metrics = [None] * groups if moments is None else metrics_of(moments)
        self._methods = [kind(block, metric, seed) for block, metric in zip(blocks, metrics, strict=True)]
        each: tuple[int, ...] = self._methods[0].full_ranks
        if limit is not None and kind.matrix_rank:
            # a chain of rank 8 composed has no rank 9: beyond it there is only float64's rounding
            each = (min(each[0], max(1, limit // groups)),)
        self.full_ranks = tuple(groups * one for one in each)
        self.steps = tuple(_steps(one, groups, multiple) for one in each)
        """For each rank that the method has, the totals that can be chosen, rising."""
        self._scale = sum(one.scale for one in self._methods)
        self._measured: dict[Any, Ladder] = {}

    @property
    def full_rank(self) -> int:
        """The first of `full_ranks`."""
        return self.full_ranks[0]

    @property
    def several(self) -> bool:
        """Whether the method has several ranks."""
        return len(self.full_ranks) > 1

    # -- ranks

    def rounded(self, rank: Rank) -> Rank:
        """The rank that is taken for `rank`: down to equal ranks of the groups, at least 1, then up to a step.

        One number for a method of several ranks is the first; the others are the same shares of their full ones,
        rounded up. Raises ValueError for a rank out of range.
        """
        full, groups = self.full_ranks, self.groups
        if isinstance(rank, tuple | list):
            values = [operator.index(one) for one in rank]
            if not self.several:
                raise ValueError(f"rank is {values}; expected one number (only tucker2 takes a pair)")
            if len(values) != len(full) or not all(1 <= one <= most for one, most in zip(values, full, strict=True)):
                raise ValueError(f"rank is {values}; expected one number, or {len(full)} up to {list(full)}")
            each = [max(1, one // groups) for one in values]
        else:
            if not 1 <= operator.index(rank) <= self.full_rank:
                raise ValueError(f"rank is {rank}; expected 1 to {self.full_rank}")
            # down, so that the groups' total isn't above what was asked for; a step may take it up again
            first = max(1, rank // groups)
            each = [first, *(-(-first * one // full[0]) for one in full[1:])]
        taken = tuple(steps[bisect_left(steps, one * groups)] for steps, one in zip(self.steps, each, strict=True))
        return taken if self.several else taken[0]

    def rounding(self, rank: Rank) -> str:
        """What is taken for `rank` and why, where that is another rank; or empty. Raises ValueError as `rounded`."""
        taken = self.rounded(rank)
        if rank == (taken[0] if isinstance(taken, tuple) and not isinstance(rank, tuple) else taken):
            return ""
        why = [f"a multiple of {self.multiple}"] * (self.multiple > 1)
        why += [f"the same in each of the {self.groups} groups"] * (self.groups > 1)
        return f"rank {rank_text(rank)} was asked for, {rank_text(taken)} is taken: {', '.join(why)}"

    def _each(self, rank: Rank) -> Rank:
        """The rank of a group."""
        rounded = self.rounded(rank)
        if isinstance(rounded, tuple):
            return tuple(one // self.groups for one in rounded)
        return rounded // self.groups

    @cached_property
    def alike(self) -> Sequence[Rank]:
        """All ranks, rising; of a method of several those that are about equal shares of the full ones."""
        return [self.rounded(one) for one in self.steps[0]] if self.several else self.steps[0]

    # -- errors

    def error(self, rank: Rank) -> float:
        """The relative squared error at a rank, over all groups; 0 for weights of zeros."""
        each = self._each(rank)
        return sum(one.squared_error(each) for one in self._methods) / self._scale if self._scale else 0.0

    def smallest_rank(self, error: float, places: Sequence[int] | None = None) -> Rank:
        """The smallest rank at which every group meets the bound on its relative squared error; the full one for 0.

        Of several ranks the cheapest combination found, by the chain's values times their `places` (None: once each);
        never dearer than the first of `alike` that meets the bound. Raises ValueError unless 0 <= error <= 1.
        """
        if not 0 <= error <= 1:
            raise ValueError(f"error is {error}; expected 0 <= error <= 1")
        if not self.several:
            # the methods don't know the `limit`
            rank = min(self.full_rank, self.groups * max(one.smallest_rank(error) for one in self._methods))
            return self.rounded(rank)
        if error == 0:  # full, even if float64 sees lower ranks
            return self.full_ranks
        # bounds decide most combinations; the search asks for exact errors only where they leave it open
        lower, upper = self._bounds
        costs = self.costs(places or [1] * len(self.slots)).ravel()
        first = [self._place(rank) for rank in self.alike]
        return self._rank(search.cheapest(costs, lower, upper, error * (1 + NOISE), self._worst, first))

    # -- combinations of several ranks

    def costs(self, places: Sequence[int]) -> np.ndarray:
        """The chain's values at all combinations of `steps`, each part's times its place: (len(step) of each,)."""
        grid = np.ix_(*(np.asarray(steps, np.int64) // self.groups for steps in self.steps))
        numels = [self.groups * prod(size) for size in self._methods[0].sizes(grid)]
        return np.asarray(sum(place * numel for place, numel in zip(places, numels, strict=True)))

    def efficient(self, places: Sequence[int], limit: int) -> list[Rank]:
        """Combinations that cost less than `limit`, by rising cost: those of `alike` and of the efficient ones many."""
        also = [self._place(rank) for rank in self.alike]
        return [self._rank(at) for at in search.efficient(self.costs(places).ravel(), self._most, limit, also)]

    def estimate(self, rank: Rank) -> float:
        """The error at a rank where that takes little time, or else the least upper bound on it that does."""
        each = self._each(rank)
        if not self.several or all(one.is_quick(each) for one in self._methods):
            return self.error(rank)
        return float(self._most[self._place(rank)])

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounds on each group's squared error at all combinations of steps: (groups, combinations) each."""
        chosen = np.ix_(*(np.asarray(steps) // self.groups - 1 for steps in self.steps))
        found = [[one.numpy()[chosen].ravel() for one in of.bounds()] for of in self._methods]
        return np.stack([one[0] for one in found]), np.stack([one[1] for one in found])

    @cached_property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounds on the worst group's relative squared error."""
        # a group of zeros has no error at any rank
        scales = np.array([[one.scale or np.inf] for one in self._methods])
        lower, upper = ((of / scales).max(0) for of in self._tables)
        return lower, upper

    @cached_property
    def _most(self) -> np.ndarray:
        """Upper bounds on `error`."""
        return self._tables[1].sum(0) / (self._scale or np.inf)

    def _worst(self, at: int) -> float:
        """The worst group's relative squared error."""
        each = self._each(self._rank(at))
        return max(one.squared_error(each) / (one.scale or np.inf) for one in self._methods)

    def _rank(self, at: int) -> Rank:
        """Of a combination by its place."""
        indices = np.unravel_index(at, [len(steps) for steps in self.steps])
        return tuple(steps[int(index)] for steps, index in zip(self.steps, indices, strict=True))

    def _place(self, rank: Rank) -> int:
        """Of a combination that can be chosen."""
        indices = [bisect_left(steps, one) for steps, one in zip(self.steps, each_of(rank), strict=True)]
        return int(np.ravel_multi_index(indices, [len(steps) for steps in self.steps]))

    def measured(self, key: Any, metric: Callable[[Method, int], Metric]) -> Ladder:
        """The same, but its errors in a metric for the method of each group, known by its number.

        Worked out once for each key.
        """
        if key not in self._measured:
            metrics = [metric(one, group) for group, one in enumerate(self._methods)]
            self._measured[key] = Measured(self, metrics)
        return self._measured[key]

    # -- chains

    def sizes(self, rank: Rank) -> list[tuple[int, ...]]:
        """The shapes of the chain's weights at a rank, (M, channels per group, *kernel), without computing them."""
        own = self._methods[0].sizes(self._each(rank))
        return [(self.groups * rows, *rest) for rows, *rest in own]

    def factors(self, rank: Rank) -> Factors:
        """The approximation at a rank. Raises ValueError for a rank out of range."""
        each = self._each(rank)
        # parts of all groups behind each other: what a grouped convolution's weight is
        blocks = zip(*(zeros_kept(one.weight, one.tensors(each)) for one in self._methods), strict=True)
        return self._chain(rank, [torch.cat(same).to(self.dtype) for same in blocks], self.error(rank))

    def outline(self, rank: Rank) -> Factors:
        """The same without computing it: weights without values, on the meta device, and an error of NaN."""
        return self._chain(rank, [torch.empty(size, device="meta") for size in self.sizes(rank)], nan)

    def _chain(self, rank: Rank, weights: Sequence[Tensor], error: float) -> Factors:
        groups = groups_of(self._methods[0].sizes(self._each(rank)), self._methods[0].weight.shape[1])
        whole = zip(self.slots, weights, groups, strict=True)
        parts = tuple(Part(slot, weight, self.groups * own) for slot, weight, own in whole)
        return Factors(each_of(self.rounded(rank)), error, self.full_ranks, self.groups, parts)


def zeros_kept(weight: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """A chain in which the filters (N) and input channels (C) of a weight (N, C, *kernel) that are zero are just that.

    Rounding leaves 1e-17 there, of which nothing could be cut.
    """
    first, *rest = tensors
    first = first * weight.ne(0).transpose(0, 1).flatten(1).any(1).reshape(1, -1, *(1,) * (first.dim() - 2))
    chain = [first, *rest]
    chain[-1] = chain[-1] * weight.ne(0).flatten(1).any(1).reshape(-1, *(1,) * (chain[-1].dim() - 1))
    return chain


def _steps(full: int, groups: int, multiple: int) -> Sequence[int]:
    """The totals of one rank that can be chosen, given the `full` rank of a group."""
    if multiple == 1:
        return range(groups, groups * full + 1, groups)
    return [groups * each for each in (*range(multiple, full, multiple), full)]


class Measured(Ladder):
    """A ladder whose errors are measured by metrics, one a group.

    Its chains, and the smallest ranks at an error, are those of its method.
    """

    def __init__(self, ladder: Ladder, metrics: Sequence[Metric]) -> None:
        self.__dict__.update(ladder.__dict__)
        self.__dict__.pop("_most", None)  # may be known of the other's errors
        each = list(zip(self._methods, metrics, strict=True))
        self._losses = [one.losses(metric) for one, metric in each]
        sizes = [(metric.size(one.weight), metric.negligible(one.weight)) for one, metric in each]
        self._scale = sum(size for size, nothing in sizes if size > nothing)

    def error(self, rank: Rank) -> float:
        """As of every ladder, but by the metrics; it may rise with the rank."""
        return self._loss(self._each(rank))

    def estimate(self, rank: Rank) -> float:
        """The same."""
        return self.error(rank)

    @cached_property
    def _most(self) -> np.ndarray:
        each = itertools.product(*([step // self.groups for step in steps] for steps in self.steps))
        return np.array([self._loss(rank) for rank in each])

    def _loss(self, each: Rank) -> float:
        return sum(loss(each) for loss in self._losses) / self._scale if self._scale else 0.0


class Watched(Ladder):
    """A ladder that says when the work is done that takes long: what is known of all ranks, and each chain."""

    def __init__(self, ladder: Ladder, tell: Callable[[str], None]) -> None:
        # the same methods: nothing is computed twice for being watched
        self.__dict__.update(ladder.__dict__)
        self._tell: Callable[[str], None] | None = tell
        self._chains = tell

    def _known(self) -> None:
        # once: errors of all other ranks come out of the same work
        tell, self._tell = self._tell, None
        if tell is not None:
            tell("errors of its ranks")

    def error(self, rank: Rank) -> float:
        found = super().error(rank)
        self._known()
        return found

    def smallest_rank(self, error: float, places: Sequence[int] | None = None) -> Rank:
        found = super().smallest_rank(error, places)
        self._known()
        return found

    def factors(self, rank: Rank) -> Factors:
        found = super().factors(rank)
        self._chains(f"rank {rank_text(rank)}")
        return found


def metrics_of(moments: Any) -> list[Tensor]:
    """Second moments by group. Raises ValueError for what isn't (groups, K, K)."""
    found = as_tensor("moments", moments).double()
    if found.dim() != 3:
        raise ValueError(f"moments have shape {tuple(found.shape)}; expected (groups, K, K)")
    return list(found)


@checked
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
    Frobenius error (the smallest rank that meets it, of several ranks those with the fewest values; 0 gives the full
    rank), and `rank`, the total (rounded down to a multiple of groups, but at least one each). `moments`
    (groups, K, K): the inputs' second moments, to bound the error of the responses instead (pca and svd). Computed in
    float64. Raises ValueError for anything else, and for weights that are not finite; UsageError for an argument of
    another kind.

    >>> import torch
    >>> forcereg.lowrank.factorize(torch.randn(16, 8, 3, 3), rank=4, method="svd").rank
    4
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
