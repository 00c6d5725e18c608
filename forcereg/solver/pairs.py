"""The force's arithmetic: weights as stacks of float64 rows in kept buffers, and the pull of all pairs of rows.

All runs in float64, because near duplicates cancel (|u_i - u_j|^2 = 2 - 2 u_i . u_j). The rows themselves are touched
by two matrix products only, half of the first one being mirrored; the rest works on the n x n Gram matrix, some rows
at a time. Where K = 1 the sum of all u_j is enough. Nothing is read back to the host, so that a step can be captured
in a CUDA graph. What the force is: forcereg.solver.force.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, prod

import torch
from torch import Tensor

from forcereg.lowrank.views import ROWS, row_count, split

Kernel = Callable[[Tensor], Tensor]
"""Squared distances (count, rows, n) float64, which it may overwrite -> K, of that shape."""

MIN_NORM = 1e-4  # a shorter row neither feels nor exerts a force

BLOCK = {"cpu": 256, "cuda": 1024}
"""Rows at a time: so few that a block's n x n part stays in the cache, so many that products run at full speed."""


@dataclass(frozen=True)
class Member:
    """A weight seen as the matrices of one unfolding (see lowrank.views), where their forces go, and their factor.

    `moments` (groups, k, k) float64, entries in the weight's order: products of rows are in this metric.
    """

    weight: Tensor  # not detached, and no view of it: somebody may replace its `data`
    output: Tensor
    unfolding: str = "FILTERS"
    groups: int = 1
    factor: float = 1.0
    moments: Tensor | None = None

    @property
    def inner(self) -> int:
        """Rows that lie together: of one index of the outermost axis that counts rows."""
        return prod(self.weight.shape[axis] for axis in ROWS[self.unfolding][1:])

    @property
    def n(self) -> int:
        """Rows of each matrix."""
        return row_count(self.weight.shape, self.unfolding, self.groups)

    @property
    def k(self) -> int:
        """Entries of each row."""
        return self.weight.numel() // (self.groups * self.n)

    def shaped(self, matrices: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Rows `start` to `stop` of all groups: of the output, and of `matrices` (groups, rows, k), shaped as these.

        The order of a row's entries is free without moments: it is memory's, so that filters of a dense weight are
        copied as they lie.
        """
        blob, lead = split(self.output, self.groups), int(self.groups > 1)
        rows = [axis + lead for axis in ROWS[self.unfolding]]
        blob = blob.narrow(rows[0], start // self.inner, (stop - start) // self.inner)
        entries = [axis for axis in range(lead, blob.dim()) if axis not in rows]
        if self.moments is None:
            entries.sort(key=blob.stride, reverse=True)
        order = [*range(lead), *rows, *entries]
        return blob, matrices.view([blob.shape[axis] for axis in order]).permute(inverse_of(order))


def inverse_of(order: list[int]) -> list[int]:
    """The permutation that undoes `order`."""
    return sorted(range(len(order)), key=order.__getitem__)


class Stack:
    """The matrices of all members, of one number n of rows and k of entries, together: float64 rows (count, n, k).

    `images` are what rows are multiplied with each other by: they themselves, or times the moments of the one member.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members, first = members, members[0]
        n, self.inner, counts = first.n, first.inner, [one.groups for one in members]
        self.kind = "cpu" if first.weight.device.type == "cpu" else "cuda"  # of BLOCK and WASTE
        self.rows = first.weight.new_empty((sum(counts), n, first.k), dtype=torch.float64)
        self.images = self.rows if first.moments is None else torch.empty_like(self.rows)
        self.factors = self.rows.new_tensor([one.factor for one in members for _ in range(one.groups)])
        self._inputs = [one.shaped(rows, 0, n)[1] for one, rows in zip(members, self.rows.split(counts), strict=True)]
        # all parts of a stack write to one buffer in turn, so that it stays in the cache
        step = min(n, max(1, BLOCK[self.kind] // self.inner) * self.inner)
        pulls = torch.empty_like(self.rows[:, :step])
        self.parts = [Part(self, slice(start, min(start + step, n)), pulls) for start in range(0, n, step)]

    def load(self) -> None:
        """Take the weights as they are now."""
        torch._foreach_copy_(self._inputs, [split(one.weight, one.groups) for one in self.members])
        if (moments := self.members[0].moments) is not None:
            torch.bmm(self.rows, moments, out=self.images)

    def norms(self, out: Tensor) -> None:
        """The rows' norms (count, n, 1)."""
        if self.images is self.rows:
            torch.linalg.vector_norm(self.rows, dim=-1, keepdim=True, out=out)
            return
        k = self.rows.shape[-1]
        torch.bmm(self.images.view(-1, 1, k), self.rows.view(-1, k, 1), out=out.view(-1, 1, 1))
        # moments have no negative eigenvalues but by rounding
        out.clamp_(min=0).sqrt_()


class Part:
    """Some rows of a stack, and a buffer for their forces, both (count, rows, k)."""

    def __init__(self, stack: Stack, span: slice, pulls: Tensor) -> None:
        self.span, self.rows, self.images = span, stack.rows[:, span], stack.images[:, span]
        self.pulls = pulls[:, : span.stop - span.start]
        each = self.pulls.split([one.groups for one in stack.members])
        shaped = [one.shaped(pull, span.start, span.stop) for one, pull in zip(stack.members, each, strict=True)]
        self._outputs, self._results = ([pair[side] for pair in shaped] for side in (0, 1))

    def store(self) -> None:
        """Round the forces into the outputs."""
        torch._foreach_copy_(self._outputs, self._results)


class Sums:
    """The forces of a stack where K = 1: with S = sum_j u_j, G_i = l_i ((u_i . S) u_i - S)."""

    def __init__(self, stack: Stack) -> None:
        self._stack, self._factors = stack, stack.factors.reshape(-1, 1, 1)
        self._scale = self._factors.clone()
        self._norm, self._inverse, self._along = stack.rows.new_empty((3, *stack.rows.shape[:2], 1))
        self._sum = torch.empty_like(stack.rows[:, :1])

    def set(self, level: float) -> None:
        """Forces times `level` from here on."""
        torch.mul(self._factors, level, out=self._scale)

    def compute(self) -> None:
        """Fill the outputs."""
        stack, norm, inverse, along, total = self._stack, self._norm, self._inverse, self._along, self._sum
        stack.load()
        stack.norms(norm)
        # 1 / inf = 0 takes short rows out without a mask or a branch on their number
        torch.threshold(norm, MIN_NORM, inf, out=inverse).reciprocal_()
        # S, with the factor: the rows are never divided by their norms, which would be a pass over all
        torch.bmm(inverse.mT, stack.rows, out=total).mul_(self._scale)
        torch.bmm(stack.images, total.mT, out=along).mul_(inverse)
        torch.threshold_(norm, MIN_NORM, 0)
        for part in stack.parts:
            torch.mul(part.rows, along[:, part.span], out=part.pulls)
            part.pulls.addcmul_(norm[:, part.span], total, value=-1)
            part.store()


class Pairs:
    """The forces of stacks of similar row counts, by one zero-padded Gram matrix (n, n) a weight."""

    def __init__(self, stacks: Sequence[Stack], kernel_of: Kernel) -> None:
        self.stacks, self.kernel_of = stacks, kernel_of
        self._factors = torch.cat([stack.factors for stack in stacks]).unsqueeze(1)
        self._minus = -self._factors
        count, n = len(self._minus), stacks[0].rows.shape[1]  # the first has the most rows
        # zeros, once: nothing ever writes the padding, whose rows then count as too short
        self.gram = self._minus.new_zeros((count, n, n))
        self.inverse, self.inverse_squared, self.minus_norm = self.gram.new_empty((3, count, n))
        # a view: norms come with the products and cost no pass of their own
        self._squared_norm = self.gram.diagonal(dim1=-2, dim2=-1)
        spans = [part.span for part in stacks[0].parts]
        self.work = self.gram.new_empty((2, count, spans[0].stop, n))
        self._blocks = [_Block(self, index, span) for index, span in enumerate(spans)]

    def set(self, level: float) -> None:
        """Forces times `level` from here on."""
        torch.mul(self._factors, -level, out=self._minus)

    def compute(self) -> None:
        """Fill the outputs."""
        for stack in self.stacks:
            stack.load()
        for block in self._blocks:
            block.multiply()
        torch.threshold(self._squared_norm, MIN_NORM**2, inf, out=self.inverse).rsqrt_()
        torch.mul(self.inverse, self.inverse, out=self.inverse_squared)
        torch.mul(self._squared_norm, self.inverse, out=self.minus_norm).mul_(self._minus)  # 0 for rows too short
        for block in self._blocks:
            block.pull()


class _Block:
    """The rows `span` of Gram matrices, and the forces on these rows."""

    def __init__(self, pairs: Pairs, index: int, span: slice) -> None:
        self._kernel_of, self._gram = pairs.kernel_of, pairs.gram[:, span]
        self._inverse, self._inverse_row = pairs.inverse[:, span, None], pairs.inverse[:, None]
        self._inverse_squared, self._minus_norm = pairs.inverse_squared[:, span], pairs.minus_norm[:, span, None]
        self._mix, self._spare = pairs.work[:, :, : span.stop - span.start]
        self._diagonal = self._mix.diagonal(span.start, dim1=-2, dim2=-1)
        self._radial = torch.empty_like(self._inverse_squared)
        # a tensor, because addcmul takes no number in its place
        self._two = self._gram.new_tensor(2.0)
        self._mirror = (pairs.gram[:, span.stop :, span], self._gram[:, :, span.stop :].mT)
        self._grams: list[tuple[Tensor, Tensor, Tensor]] = []
        self._pulls: list[tuple[Tensor, Tensor, Part]] = []
        first = 0
        for stack in pairs.stacks:
            weights = slice(first, first := first + len(stack.rows))
            if index < len(stack.parts):
                part, n = stack.parts[index], stack.rows.shape[1]
                size = part.rows.shape[1]
                self._grams.append(
                    (part.images, stack.rows[:, span.start :].mT, self._gram[weights, :size, span.start : n])
                )
                self._pulls.append((self._mix[weights, :size, :n], stack.rows, part))

    def multiply(self) -> None:
        """These rows of the Gram matrices from the diagonal on, and the columns that mirror them."""
        for rows, others, gram in self._grams:
            torch.bmm(rows, others, out=gram)
        below, right = self._mirror
        # the Gram matrix is symmetric: what lies left of the diagonal was computed by an earlier block
        if len(below[0]):
            below.copy_(right)

    def pull(self) -> None:
        """force = mix @ rows, where mix_ij = scale l_i (delta_ij sum_k K_ik u_i . u_k - K_ij) / l_j."""
        mix = torch.mul(self._inverse, self._inverse_row, out=self._mix)
        # |u_i - u_j|^2 = 2 - 2 u_i . u_j, in the buffer that the cosines are in
        kernel = self._kernel_of(torch.addcmul(self._two, self._gram, mix, value=-2, out=mix))
        torch.mul(kernel, self._minus_norm, out=mix).mul_(self._inverse_row)
        torch.sum(torch.mul(mix, self._gram, out=self._spare), -1, out=self._radial)
        self._diagonal.addcmul_(self._radial, self._inverse_squared, value=-1)
        for own, rows, part in self._pulls:
            torch.bmm(own, rows, out=part.pulls)
            part.store()
