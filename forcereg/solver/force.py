"""Force regularization: the force that Caffe's solver adds to the gradient of a weight.

Every filter w_i (row of a weight, of norm l_i and direction u_i) is pulled towards every other one:

    G_i = l_i * sum_j K_ij ((u_i . u_j) u_i - u_j)        K_ij = |u_i - u_j| ** -p

that is, minus the part of the pull sum_j K_ij u_j that is tangent to the sphere at u_i: descending along G
makes filters alike. Wen et al., "Coordinating Filters for Faster Deep Neural Networks" (ICCV 2017), section 3;
the thresholds are Caffe's on the CPU.

A force type is one function: squared distances |u_i - u_j|^2 in, K out. All runs in float64, because near
duplicates cancel (|u_i - u_j|^2 = 2 - 2 u_i . u_j). The filters themselves are touched by two matrix products
only, the rest works on the n x n Gram matrix; nothing is read back to the host, so that a step can be captured
in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import torch
from torch import Tensor

from forcereg.errors import ForceregError, did_you_mean
from forcereg.registry import force_type as registry

Kernel = Callable[[Tensor], Tensor]

MIN_NORM = 1e-4  # a shorter row neither feels nor exerts a force
MIN_DISTANCE = 1e-4  # a pair nearer than this has no force, except in Degradation
MIN_FORCE = 1e-8  # "adaptive" leaves a weight alone whose whole force is smaller than this

DECAY_TYPES = ("fixed", "adaptive")
DIRECTIONS = ("all", "same")


@registry("Degradation")
def degradation(squared: Tensor) -> Tensor:
    """p = 0, the paper's L2-norm force: proportional to the distance, however near."""
    return torch.ones_like(squared)


@registry("Constant")
def constant(squared: Tensor) -> Tensor:
    """p = 1, the paper's L1-norm force: the same strength at every distance."""
    return apart(squared).rsqrt_()


@registry("Linear")
def linear(squared: Tensor) -> Tensor:
    """p = 2: strength 1 / distance."""
    return apart(squared).reciprocal_()


@registry("Gravity")
def gravity(squared: Tensor) -> Tensor:
    """p = 3: strength 1 / distance^2."""
    return apart(squared).pow_(-1.5)


def apart(squared: Tensor) -> Tensor:
    """Squared distances with inf for pairs too near to act on each other (a filter and itself, too)."""
    return torch.threshold(squared, MIN_DISTANCE**2, inf)


def mixing(gram: Tensor, kernel_of: Kernel, scale: Tensor | float = 1.0) -> Tensor:
    """The matrix that turns rows into their forces, times `scale` (..., 1): force = mixing(rows @ rows.mT) @ rows.

    gram: (..., n, n) float64, overwritten. Rows of zeros have no force and change no other.
    """
    squared_norm = gram.diagonal(dim1=-2, dim2=-1)
    inverse = torch.threshold(squared_norm, MIN_NORM**2, inf).rsqrt_()
    norm = squared_norm * inverse  # 0 for rows that are too short
    cosine = gram.mul_(inverse.unsqueeze(-1)).mul_(inverse.unsqueeze(-2))
    kernel = kernel_of(torch.rsub(cosine, 2, alpha=2))
    radial = torch.linalg.vecdot(kernel, cosine)
    # scale l_i (delta_ij radial_i - K_ij) / l_j
    mix = kernel.neg_()
    mix.diagonal(dim1=-2, dim2=-1).add_(radial)
    return mix.mul_(inverse.unsqueeze(-2)).mul_(norm.mul_(scale).unsqueeze(-1))


@torch.no_grad()
def force_gradient(weight: Tensor, force_type: str = "Degradation", groups: int = 1) -> Tensor:
    """The force on `weight`, to be scaled by force_decay * force_mult and added to its gradient.

    weight: two axes or more, its rows along axis 0; the result has its shape, dtype and memory layout.
    With `groups` > 1 each block of rows is coordinated alone (Caffe's fork coordinates all together).
    Raises ForceregError for an unknown type, a weight without rows, or groups that do not divide them.
    """
    kernel_of: Kernel = registry.get(force_type)
    shape = weight.shape
    if weight.dim() < 2 or groups < 1 or shape[0] % groups:
        expected = f"two axes or more and a first axis divisible by groups = {groups}"
        raise ForceregError(f"force_gradient: weight of shape {tuple(shape)}; expected {expected}")
    if shape[0] == groups:  # a row alone feels nothing, not even rounding
        return torch.zeros_like(weight)
    ordered = weight.permute(memory_order(weight))
    rows = ordered.reshape(groups, shape[0] // groups, -1).double()
    force = (mixing(rows @ rows.mT, kernel_of) @ rows).to(weight.dtype)
    return force.view(ordered.shape).permute(inverse_of(memory_order(weight)))


def memory_order(weight: Tensor) -> list[int]:
    """Axis 0, then the others from outermost to innermost in memory.

    The order of a row's entries is free, and flattening a dense weight in this order copies nothing.
    """
    return [0, *sorted(range(1, weight.dim()), key=weight.stride, reverse=True)]


def inverse_of(order: list[int]) -> list[int]:
    """The permutation that undoes `order`."""
    return sorted(range(len(order)), key=order.__getitem__)


def check_force(force_type: str, decay_type: str = "fixed", direction: str = "all", where: str = "") -> None:
    """Raise ForceregError, opened by `where`, listing the known names, unless all three solver strings are known."""
    registry.get(force_type, where)
    for field, found, known in (
        ("force_decay_type", decay_type, DECAY_TYPES),
        ("force_direction", direction, DIRECTIONS),
    ):
        if found not in known:
            hint, prefix = did_you_mean(found, known), f"{where}: " if where else ""
            raise ForceregError(f"{prefix}unknown {field} {found!r}{hint} (known are {', '.join(known)})")


def apply_force(grad: Tensor, force: Tensor, factor: float, decay_type: str, direction: str) -> None:
    """Add `force` to `grad` (which already holds weight decay), in place, by the solver's force settings.

    factor: force_decay * force_mult; negative ones repel. Direction "same" drops the entries of the force
    whose sign opposes the gradient's; decay type "adaptive" takes `factor` as the ratio of the force's norm
    to the gradient's, and adds nothing where the force vanishes (Caffe's solver).
    """
    if direction == "same":
        force = torch.where(force * grad < 0, 0.0, force)
    if decay_type == "fixed":
        grad.add_(force, alpha=factor)
        return
    size = torch.linalg.vector_norm(force)
    scale = factor * torch.linalg.vector_norm(grad) / size
    grad.addcmul_(force, torch.where(size < MIN_FORCE, 0.0, scale))


class ForceField:
    """The forces of a whole net's weights, computed together in kept buffers.

    The work per weight is small next to the cost of launching it, so the n x n part is done for several
    weights at once: for those of one row count always, for others where padding (rows of zeros are skipped)
    costs less than another round of launches. `factors`: force_decay * force_mult per weight, 0 for none.
    Raises ForceregError for unknown strings.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        factors: Sequence[float],
        force_type: str = "Degradation",
        decay_type: str = "fixed",
        direction: str = "all",
    ) -> None:
        check_force(force_type, decay_type, direction)
        self._kernel: Kernel = registry.get(force_type)
        self._settings = (decay_type, direction)
        forced = [i for i, w in enumerate(weights) if factors[i] and w.dim() >= 2 and w.shape[0] > 1]
        self._simple = self._settings == ("fixed", "all")
        self._batches = [_Batch(weights, factors, chosen) for chosen in _batches(weights, forced)]

    @torch.no_grad()
    def add_to(self, grads: Sequence[Tensor]) -> None:
        """Add every forced weight's force to its gradient (parallel to the weights given), in place."""
        for batch in self._batches:
            batch.compute(self._kernel, batch.scale if self._simple else 1.0)
            chosen = [grads[i] for i in batch.chosen]
            if self._simple:
                torch._foreach_add_(chosen, batch.outputs)
                continue
            for grad, force, factor in zip(chosen, batch.outputs, batch.factors, strict=True):
                apply_force(grad, force, factor, *self._settings)


WASTE = 200_000
"""Entries of padding that cost about as much as launching another batch."""


def _batches(weights: Sequence[Tensor], forced: Sequence[int]) -> list[list[int]]:
    """Positions of the forced weights, those to be computed together in one list; most rows first."""
    batches: list[list[int]] = []
    for i in sorted(forced, key=lambda i: -weights[i].shape[0]):
        for batch in batches:
            first = weights[batch[0]]
            padding = first.shape[0] ** 2 - weights[i].shape[0] ** 2
            if padding <= WASTE and weights[i].device == first.device:
                batch.append(i)
                break
        else:
            batches.append([i])
    return batches


class _Batch:
    """Weights as (n_i, k_i) float64 rows, one zero-padded (count, n, n) Gram matrix, and their forces."""

    def __init__(self, weights: Sequence[Tensor], factors: Sequence[float], chosen: list[int]) -> None:
        self.chosen = chosen
        self.factors = [factors[i] for i in chosen]
        self._weights = [weights[i] for i in chosen]  # not detached: somebody may replace their `data`
        device, n = self._weights[0].device, self._weights[0].shape[0]
        self.scale = torch.tensor(self.factors, dtype=torch.float64, device=device).unsqueeze(1)
        self._gram = torch.zeros((len(chosen), n, n), dtype=torch.float64, device=device)
        self._grams = [gram[: w.shape[0], : w.shape[0]] for gram, w in zip(self._gram, self._weights, strict=True)]
        self._rows = [w.new_empty((w.shape[0], w[0].numel()), dtype=torch.float64) for w in self._weights]
        self._pulls = [torch.empty_like(rows) for rows in self._rows]
        self.outputs = [torch.empty_like(w) for w in self._weights]
        pairs = list(zip(self._weights, self._rows, self._pulls, strict=True))
        self._inputs = [_shaped_like(weight, rows) for weight, rows, _ in pairs]
        self._results = [_shaped_like(weight, pulls) for weight, _, pulls in pairs]

    def compute(self, kernel_of: Kernel, scale: Tensor | float) -> None:
        """Fills `outputs` with the forces of the weights as they are now."""
        torch._foreach_copy_(self._inputs, self._weights)
        for rows, gram in zip(self._rows, self._grams, strict=True):
            torch.mm(rows, rows.mT, out=gram)
        mix = mixing(self._gram, kernel_of, scale)
        for rows, pulls, one in zip(self._rows, self._pulls, mix, strict=True):
            torch.mm(one[: len(rows), : len(rows)], rows, out=pulls)
        torch._foreach_copy_(self.outputs, self._results)


def _shaped_like(weight: Tensor, rows: Tensor) -> Tensor:
    """`rows` (n, k) as a view of `weight`'s shape, with the same order in memory."""
    order = memory_order(weight)
    return rows.view([weight.shape[axis] for axis in order]).permute(inverse_of(order))
