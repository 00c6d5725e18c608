"""Tucker-2: the weight as a smaller core between bases of its outputs and inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from forcereg.lowrank.factor import IN, LINEAR, LOWRANK, Method, Rank, left_axes, tail_sums
from forcereg.lowrank.metric import Metric, without
from forcereg.registry import factorizer

SWEEPS, GAIN = 20, 1e-5
"""At most so many, until one takes less than this share off the error."""
QUICK = 2**15
"""Values of a weight up to which an error takes about a millisecond."""
NEAR = 8
"""Leading directions looked at beyond twice those that are kept."""


@factorizer("tucker2")
class Tucker2(Method):
    """1x1 into fewer channels, the kernel between fewer channels, 1x1 out (Kim et al., ICLR 2016).

    It has two ranks, of the outputs and of the inputs. The weight is turned once into the bases of its two mode
    spectra (HOSVD): the energies of what comes out give the error of all pairs at once for these bases, which
    alternating between outputs and inputs then improves for one pair (HOOI; De Lathauwer et al., 2000).
    """

    slots = (IN, LOWRANK, LINEAR)

    def __init__(self, weight: Tensor, moments: Tensor | None = None, seed: int = 0) -> None:
        super().__init__(weight, moments, seed)
        self._found: dict[Rank, tuple[float, Tensor, Tensor]] = {}

    @staticmethod
    def misfit(kernel: Sequence[int]) -> str | None:
        """A matrix has no core."""
        return None if kernel else "needs a kernel; this weight is a matrix"

    @property
    def full_ranks(self) -> tuple[int, ...]:
        """Of the outputs and of the inputs."""
        count, channels, *kernel = self.weight.shape
        return min(count, channels * prod(kernel)), min(channels, count * prod(kernel))

    @property
    def full_rank(self) -> int:
        """Of the outputs."""
        return self.full_ranks[0]

    @cached_property
    def _turned(self) -> tuple[Tensor, Tensor, Tensor]:
        """The weight in its own bases, outputs, kernel, inputs; these bases: of outputs (N, .) and inputs (C, .).

        In this order neither the outputs nor the inputs have to be moved for a product.
        """
        count, channels = self.weight.shape[:2]
        whole = self.weight.reshape(count, channels, -1).transpose(1, 2).contiguous()
        with one_thread():
            out, _ = left_axes(whole.flatten(1))
            into, _ = left_axes(whole.flatten(0, 1).T)
            return (out.T @ whole.flatten(1)).reshape(-1, *whole.shape[1:]) @ into, out, into

    @cached_property
    def _bounds(self) -> tuple[Tensor, Tensor]:
        energies = self._turned[0].square().sum(1)
        outputs, inputs = tail_sums(energies.sum(1))[1:], tail_sums(energies.sum(0))[1:]
        least, most = torch.maximum(outputs[:, None], inputs), left_out(energies)
        # rounding may leave the upper bound below the lower one
        return least, torch.maximum(least, most)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The larger of the two spectra's tails, and the error for the weight's own bases."""
        return self._bounds

    def losses(self, metric: Metric) -> Callable[[Rank], float]:
        """For the weight's own bases, of all pairs at once, whose shape HOOI changes little.

        In these, with inputs from s on left out of output i and all of it from r on, the error is g_i[s:] for i < r and
        g_i beyond; its size is a sum over i, since `outputs` is diagonal there: it has to be a projection along
        them, as of `behind`. Of g_i[s:]^T M g_i[s:] the terms that s leaves out are M's block of s and what lies right
        of it, twice: summed from the end they give it for every s.
        """
        whole, out, into = self._turned
        count, kernel, channels = whole.shape
        rows = whole.transpose(1, 2).flatten(1)
        moved = rows
        if metric.inputs is not None:
            size = len(into), kernel
            half = torch.einsum("cj,ckdl,di->jkil", into, metric.inputs.reshape(*size, *size), into)
            ones = torch.ones(channels, channels, dtype=whole.dtype)
            twice = ones.triu() + ones.triu(1)
            moved = rows @ (half * twice[:, None, :, None]).reshape(rows.shape[1], -1).T
        shares = (out * metric.left(out)).sum(0)
        terms = (rows * moved).reshape(count, channels, kernel).sum(2)
        table = left_out(shares[:, None] * terms).clamp(min=0).numpy()
        return lambda rank: float(table[tuple(one - 1 for one in _pair(rank))])

    def behind(self) -> Metric:
        """Of the outputs and of the inputs, each where it has more than one direction."""
        _, out, into = self._turned
        return behind_both(self.weight, out[:, 0], into[:, 0])

    def is_quick(self, rank: Rank) -> bool:
        """Known, or of a small weight."""
        return self.weight.numel() <= QUICK or rank in self._found

    def _solved(self, rank: Rank) -> tuple[float, Tensor, Tensor]:
        """The squared error, and bases of outputs (., R) and inputs (., S) in those of `_turned`, orthonormal."""
        if rank not in self._found:
            self._found[rank] = self._best(*_pair(rank))
        return self._found[rank]

    def _best(self, out_rank: int, in_rank: int) -> tuple[float, Tensor, Tensor]:
        """From the leading directions on, in turn those of outputs and inputs that are best for the other's."""
        whole = self._turned[0]
        count, _, channels = whole.shape
        own = torch.eye(count, out_rank, dtype=whole.dtype), torch.eye(channels, in_rank, dtype=whole.dtype)
        most = float(self._bounds[1][out_rank - 1, in_rank - 1])
        # exact by construction: alternating would only add rounding
        if (out_rank, in_rank) == self.full_ranks:
            return 0.0, *own
        out, into = own
        held = self.scale - most
        with one_thread():
            for _ in range(SWEEPS):
                before = held
                out, _ = improved((whole @ into).flatten(1), out)
                kept = (out.T @ whole.flatten(1)).reshape(-1, channels)
                into, held = improved(kept.T, into)
                if held - before <= GAIN * (self.scale - held):
                    break
            # summed from what is left out: scale - held would cancel where little is
            outside = float((whole.flatten(1) - out @ kept.reshape(out_rank, -1)).square().sum())
            found = outside + float((kept - kept @ into @ into.T).square().sum())
        # HOSVD's own bases where alternating didn't gain: errors stay within their bounds
        return (found, out, into) if found < most else (most, *own)

    def squared_error(self, rank: Rank) -> float:
        """What the core doesn't hold of the weight."""
        return self._solved(rank)[0]

    def tensors(self, rank: Rank) -> tuple[Tensor, ...]:
        """(S, C, 1...), (R, S, *kernel), (N, R, 1...)."""
        whole, outputs, inputs = self._turned
        _, out, into = self._solved(rank)
        first, middle, last = self.sizes(rank)
        core = (out.T @ whole.flatten(1)).reshape(-1, *whole.shape[1:]) @ into
        core = core.transpose(1, 2).reshape(middle)
        return (inputs @ into).T.reshape(first), core, (outputs @ out).reshape(last)

    def sizes(self, rank: Any) -> list[tuple[Any, ...]]:
        """As `tensors`."""
        count, channels, *kernel = self.weight.shape
        (out, into), ones = rank, [1] * len(kernel)
        return [(into, channels, *ones), (out, into, *kernel), (count, out, *ones)]


def left_out(terms: Tensor) -> Tensor:
    """(N, C) -> (N, C): the sum over what pairs (r, s) leave out, all rows from r on and all columns from s on."""
    # what is left out, never the whole less what is kept: that would cancel where little is left out
    tails = tail_sums(terms)
    return tail_sums(tails[:, 0])[1:, None] + tails[:, 1:].cumsum(0)


def behind_both(weight: Tensor, out: Tensor, into: Tensor) -> Metric:
    """What lies behind leading directions of outputs (N,) and inputs (C,) of a weight (N, C, *kernel).

    Its size of an error E is that of (I - u u^T) E (I - v v^T); a mode of one channel, which isn't cut, counts whole.
    """
    outputs = None if len(out) == 1 else without(out)
    return Metric(outputs, None if len(into) == 1 else without(into, prod(weight.shape[2:])))


def _pair(rank: Rank) -> tuple[int, int]:
    out, into = rank  # type: ignore[misc]
    return out, into


def improved(rows: Tensor, basis: Tensor) -> tuple[Tensor, float]:
    """The leading directions of rows (N, K) and their energy; `basis` (N, R): a good guess in HOSVD's coordinates.

    Where R is small beside N they are looked for among the first 2 R and NEAR directions and those that one step of
    a power iteration from `basis` gives beyond, whose energies are far below: to about 1e-6 of the error the same.
    """
    rank = basis.shape[1]
    near = 2 * rank + NEAR
    if near + rank >= len(rows):
        return _leading(rows, rank)
    beyond = torch.linalg.qr(rows[near:] @ (rows.T @ basis))[0]
    top, held = _leading(torch.cat([rows[:near], beyond.T @ rows[near:]]), rank)
    return torch.cat([top[:near], beyond @ top[near:]]), held


def _leading(rows: Tensor, rank: int) -> tuple[Tensor, float]:
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    return vectors.flip(1)[:, :rank], float(values[-rank:].sum())


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: for matrices of this size more of them gain little, and on a busy machine lose much."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
