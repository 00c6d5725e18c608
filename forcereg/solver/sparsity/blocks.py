"""Group lasso's mathematics: a weight as a matrix of one row a filter, tiled by blocks of Y rows and X columns.

The term is lambda * sum over the blocks B of |w_B|, its gradient lambda * w / |w_B|, 0 for a block of zeros: no
epsilon and no scaling by a block's size. Wen et al., "Learning Structured Sparsity in Deep Neural Networks" (NIPS
2016), section 3; the tiling is that of the SSL branch of Caffe.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan, prod
from typing import NamedTuple

import torch
from torch import Tensor


class Term(NamedTuple):
    """Group lasso on blocks of `x` columns and `y` rows, with its factor."""

    x: int
    y: int
    decay: float

    @property
    def tile(self) -> tuple[int, int]:
        """Columns and rows of a block."""
        return self.x, self.y


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a weight as a matrix: (N, ...) is N x rest, a bias N x 1."""
    return shape[0], prod(shape[1:])


def misfit(shape: Sequence[int], x: int, y: int) -> str:
    """Why such blocks don't tile a weight of this shape, '' if they do."""
    rows, columns = matrix_shape(shape)
    for name, size, whole, what in (("xdimen", x, columns, "columns"), ("ydimen", y, rows, "rows")):
        if size < 1 or whole % size:
            divisors = [one for one in range(1, whole + 1) if whole % one == 0]
            near = min(divisors, key=lambda one: abs(one - size))
            return f"{name} {size} doesn't divide the {whole} {what} of blob {list(shape)}; the nearest is {near}"
    return ""


def axes(shape: Sequence[int], x: int, y: int) -> tuple[list[int], list[int]] | None:
    """Sizes of a view of a weight in which blocks are whole axes, and these axes; None if they run across its axes.

    (N, C, kh, kw) with rows, x = C kh kw: [N, 1, C, kh, kw] and [1, 2, 3, 4].
    """
    sizes, inside, left = list[int](), list[bool](), x
    for size in reversed(shape[1:]):
        if left % size == 0:
            part, left = [(size, True)], left // size
        elif size % left == 0:
            part, left = [(left, True), (size // left, False)], 1
        else:
            return None
        sizes += [one for one, _ in part]
        inside += [one for _, one in part]
    sizes, inside = [shape[0] // y, y, *reversed(sizes)], [False, True, *reversed(inside)]
    return sizes, [place for place, one in enumerate(inside) if one]


def tiled(weights: Tensor, x: int, y: int) -> tuple[Tensor, list[int]]:
    """A view of several weights, (S, N, ...), in which blocks are whole axes, and these axes.

    Where blocks run across axes of the weights these have to be contiguous, else the view is a copy.
    """
    count, *shape = weights.shape
    found = axes(shape, x, y)
    if found is None:
        rows, columns = matrix_shape(shape)
        found = [rows // y, y, columns // x, x], [1, 3]
    sizes, inside = found
    return weights.reshape(count, *sizes), [1 + place for place in inside]


def block_norms(weight: Tensor, x: int, y: int) -> Tensor:
    """|w_B| of every block of a weight (N, ...), flat, row by row of blocks.

    >>> block_norms(torch.tensor([[3.0, 0.0], [4.0, 2.0]]), x=1, y=2)
    tensor([5., 2.])
    """
    view, inside = tiled(weight.detach()[None], x, y)
    return torch.linalg.vector_norm(view, dim=inside).flatten()


def lasso_gradient(weight: Tensor, terms: Sequence[Term]) -> Tensor:
    """The sum over the terms of decay * w / |w_B|, in the shape of the weight."""
    field = LassoField([weight], [terms])
    field.compute()
    grad = torch.zeros_like(weight)
    field.add([grad])
    return grad


class _Stack:
    """Weights of one shape and layout, and the same tiles, that are computed together in kept memory."""

    def __init__(self, weights: Sequence[Tensor], terms: Sequence[Sequence[Term]]) -> None:
        first, tiles = weights[0], [one.tile for one in terms[0]]
        across = any(axes(first.shape, *tile) is None for tile in tiles)
        strides = torch.empty(first.shape, device="meta").stride() if across else first.stride()
        self._weights = list(weights)
        # a weight alone needs no copy
        self._copied = len(weights) > 1 or strides != first.stride()
        values = _empty(weights, strides) if self._copied else first[None]
        scales = _empty(weights, strides)
        self._slices, self.scales = list(values.unbind()), list(scales.unbind())
        self._parts = []
        for place, tile in enumerate(tiles):
            (view, inside), (target, _) = tiled(values, *tile), tiled(scales, *tile)
            decays = first.new_tensor([own[place].decay for own in terms]).reshape(-1, *[1] * (view.dim() - 1))
            norms = torch.linalg.vector_norm(view, dim=inside, keepdim=True)
            self._parts.append((view, inside, norms, decays, target))

    def compute(self) -> None:
        if self._copied:
            torch._foreach_copy_(self._slices, self._weights)
        for place, (view, inside, norms, decays, target) in enumerate(self._parts):
            torch.linalg.vector_norm(view, dim=inside, keepdim=True, out=norms)
            # 1 / 0 becomes 0: blocks of zeros get no push
            torch.nan_to_num_(norms.reciprocal_(), nan=nan, posinf=0.0).mul_(decays)
            if place:
                target.add_(norms)
            else:
                target.copy_(norms)


def _empty(weights: Sequence[Tensor], strides: Sequence[int]) -> Tensor:
    """Memory for all of the weights, each laid out by `strides`."""
    first = weights[0]
    return torch.empty_strided(
        (len(weights), *first.shape), (first.numel(), *strides), dtype=first.dtype, device=first.device
    )


class LassoField:
    """The gradients of group lasso on several weights, by kept memory: `compute`, then `add`.

    `terms`: those of each weight, one or more. Weights are read where they are, whose memory must stay.
    """

    def __init__(self, weights: Sequence[Tensor], terms: Sequence[Sequence[Term]]) -> None:
        self._weights = [weight.detach() for weight in weights]
        groups: dict[object, list[int]] = {}
        for place, (weight, own) in enumerate(zip(self._weights, terms, strict=True)):
            key = weight.shape, weight.stride(), weight.dtype, weight.device, tuple(one.tile for one in own)
            groups.setdefault(key, []).append(place)
        scales: dict[int, Tensor] = {}
        self._stacks = []
        for chosen in groups.values():
            stack = _Stack([self._weights[place] for place in chosen], [terms[place] for place in chosen])
            self._stacks.append(stack)
            scales.update(zip(chosen, stack.scales, strict=True))
        self._scales = [scales[place] for place in range(len(self._weights))]

    @torch.no_grad()
    def compute(self) -> None:
        """Takes the norms of the weights as they are now."""
        for stack in self._stacks:
            stack.compute()

    @torch.no_grad()
    def add(self, grads: Sequence[Tensor]) -> None:
        """Adds the gradients on the weights, as they were computed, to `grads`, one for each weight."""
        torch._foreach_addcmul_(list(grads), self._weights, self._scales)
