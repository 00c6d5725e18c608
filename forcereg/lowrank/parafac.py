"""The decomposition of the weight as a sum of products of vectors: CP by tensorly (the extra `lowrank`)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.lowrank.factor import IN, LINEAR, Method, Rank, Slot, leading
from forcereg.lowrank.methods import single
from forcereg.lowrank.metric import Metric
from forcereg.lowrank.tucker import behind_both
from forcereg.registry import factorizer

SWEEPS = 3  # alternating least squares at each rank of CP, which starts from the rank before


def tensorly(module: str) -> Any:
    """A module of tensorly. Raises ForceregError without it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise ForceregError('cp needs tensorly; install it with pip install "forcereg[lowrank]"') from None


@factorizer("cp")
class Cp(Method):
    """A sum of products of vectors: 1x1 in, kh x 1 and 1 x kw for each channel alone, 1x1 out (Lebedev et al., 2015).

    Alternating least squares; every rank starts from the one before and the best single product for what is left,
    so the error never rises with the rank. The full rank, where it is exact, costs more than the weight itself.
    """

    slots = (IN, Slot("v", (0,)), Slot("h", (1,)), LINEAR)
    chained = True

    def __init__(self, weight: Tensor, moments: Tensor | None = None, seed: int = 0) -> None:
        super().__init__(weight, moments, seed)
        self._whole = weight.numpy()
        self._chain: list[tuple[float, list[np.ndarray]]] = []  # by rank: the error, and a matrix (size, R) an axis

    @staticmethod
    def misfit(kernel: Sequence[int]) -> str | None:
        """Only kernels of two axes have a vertical and a horizontal one."""
        return None if len(kernel) == 2 else f"needs a kernel of two axes; this weight's has {len(kernel)}"

    @cached_property
    def full_rank(self) -> int:
        """The product of all sizes but the largest."""
        return self._whole.size // max(self._whole.shape)

    def squared_error(self, rank: Rank) -> float:
        """0 at the full rank."""
        return 0.0 if single(rank) == self.full_rank else self._grown(single(rank))[0]

    def tensors(self, rank: Rank) -> tuple[Tensor, ...]:
        """(R, C, 1, 1), (R, 1, kh, 1), (R, 1, 1, kw), (N, R, 1, 1)."""
        # never grown: it would take every rank below
        matrices = self._exact() if single(rank) == self.full_rank else self._grown(single(rank))[1]
        out, into, vertical, horizontal = (torch.from_numpy(np.ascontiguousarray(one)) for one in matrices)
        return (
            into.T[:, :, None, None].contiguous(),
            vertical.T[:, None, :, None].contiguous(),
            horizontal.T[:, None, None, :].contiguous(),
            out[:, :, None, None],
        )

    def behind(self) -> Metric:
        """Of the outputs and of the inputs; kernels are too small to leave a direction of theirs out."""
        return behind_both(
            self.weight, leading(self.weight.flatten(1)), leading(self.weight.transpose(0, 1).flatten(1))
        )

    def sizes(self, rank: Rank) -> list[tuple[int, ...]]:
        """As `tensors`."""
        (count, channels, height, width), one = self._whole.shape, single(rank)
        return [(one, channels, 1, 1), (one, 1, height, 1), (one, 1, 1, width), (count, one, 1, 1)]

    def _exact(self) -> list[np.ndarray]:
        """One product for every place on all axes but the longest."""
        # the longest axis holds the values, all others unit vectors: the fewest products that are exact
        longest = int(np.argmax(self._whole.shape))
        others = [size for axis, size in enumerate(self._whole.shape) if axis != longest]
        places = iter(np.indices(others).reshape(len(others), -1))
        return [
            np.moveaxis(self._whole, longest, 0).reshape(size, -1) if axis == longest else np.eye(size)[:, next(places)]
            for axis, size in enumerate(self._whole.shape)
        ]

    def _grown(self, rank: int) -> tuple[float, list[np.ndarray]]:
        while len(self._chain) < rank:
            self._chain.append(self._next())
        return self._chain[rank - 1]

    def _next(self) -> tuple[float, list[np.ndarray]]:
        """One product more than the chain's last, then all of them together."""
        before = self._chain[-1][1] if self._chain else [np.zeros((size, 0)) for size in self._whole.shape]
        left = self._whole - product(before)
        more = [np.column_stack(pair) for pair in zip(before, single_product(left), strict=True)]
        best = distance(self._whole, more), more
        if self._chain and best[0] > self._chain[-1][0]:  # nothing but rounding is left
            more = [np.column_stack([one, np.zeros(len(one))]) for one in before]
            return self._chain[-1][0], more
        # for one product alternating least squares are the power iterations that it comes from
        if len(more[0].T) == 1:
            return best
        tuned = self._swept(more)
        return min(best, (distance(self._whole, tuned), tuned), key=lambda pair: pair[0]) if tuned else best

    def _swept(self, matrices: list[np.ndarray]) -> list[np.ndarray] | None:
        """After SWEEPS of alternating least squares; None where its equations are singular."""
        tl, parafac = tensorly("tensorly"), tensorly("tensorly.decomposition").parafac
        start = tl.cp_tensor.CPTensor((None, matrices))
        rank = len(matrices[0].T)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            # of singular equations, which show in the numbers that are looked at below
            warnings.simplefilter("ignore")
            try:
                weights, tuned = parafac(self._whole, rank, init=start, n_iter_max=SWEEPS, tol=0)
            except np.linalg.LinAlgError:
                return None
        tuned = [np.asarray(one) for one in tuned]
        # tensorly keeps lengths apart; `balanced` shares them out anew
        tuned[0] = tuned[0] * weights
        return balanced(tuned) if all(np.isfinite(one).all() for one in tuned) else None


def product(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of the outer products of equal columns: (size, R) an axis -> the tensor."""
    return np.einsum("nr,cr,yr,xr->ncyx", *matrices, optimize=True)


def distance(whole: np.ndarray, matrices: Sequence[np.ndarray]) -> float:
    """Squared, of the tensor from the product."""
    return float(np.square(whole - product(matrices)).sum())


def single_product(whole: np.ndarray) -> list[np.ndarray]:
    """The vectors (size,) an axis of about the best outer product: power iterations from the leading directions.

    The longest axis comes first, so that its leading direction, which costs by far the most, isn't needed.
    """
    names = "ncyx"
    axes = sorted(range(whole.ndim), key=lambda axis: -whole.shape[axis])
    vectors = {}
    for axis in axes[1:]:
        unfolded = np.moveaxis(whole, axis, 0).reshape(whole.shape[axis], -1)
        vectors[axis] = np.linalg.eigh(unfolded @ unfolded.T)[1][:, -1]
    for _ in range(SWEEPS):
        for axis in axes:
            others = [other for other in axes if other != axis]
            terms = ",".join(names[other] for other in others)
            vector = np.einsum(f"{names},{terms}->{names[axis]}", whole, *(vectors[o] for o in others), optimize=True)
            length = np.linalg.norm(vector)
            vectors[axis] = vector / length if length else vector
    vectors[axes[-1]] = vectors[axes[-1]] * length
    return balanced([vectors[axis][:, None] for axis in range(whole.ndim)], flat=True)


def balanced(matrices: Sequence[np.ndarray], flat: bool = False) -> list[np.ndarray]:
    """The same products with columns of equal length on every axis."""
    lengths = [np.linalg.norm(one, axis=0) for one in matrices]
    common = np.prod(lengths, 0) ** (1 / len(matrices))
    scaled = [
        one * np.divide(common, size, out=np.zeros_like(common), where=size > 0)
        for one, size in zip(matrices, lengths, strict=True)
    ]
    return [one[:, 0] for one in scaled] if flat else scaled
