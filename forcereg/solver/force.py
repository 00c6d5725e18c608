"""Force regularization: the force that Caffe's solver adds to the gradient of a weight.

Every filter w_i (row of a weight, of norm l_i and direction u_i) is pulled towards every other one:

    G_i = l_i * sum_j K_ij ((u_i . u_j) u_i - u_j)        K_ij = |u_i - u_j| ** -p

that is, minus the part of the pull sum_j K_ij u_j that is tangent to the sphere at u_i: descending along G
makes filters alike. Wen et al., "Coordinating Filters for Faster Deep
Neural Networks" (ICCV 2017), section 3; the thresholds are Caffe's on the CPU.

A force type is one function: unit rows u (..., n, k) in, the tangential pull on each of them out, the sum
above without -l_i. All runs in float64, because near duplicates cancel (|u_i - u_j|^2 = 2 - 2 u_i . u_j),
and without reading a value back to the host, so that a step can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import torch
from torch import Tensor

from forcereg.errors import ForceregError, did_you_mean
from forcereg.registry import force_type as registry

Pull = Callable[[Tensor], Tensor]

MIN_NORM = 1e-4  # a shorter row neither feels nor exerts a force
MIN_DISTANCE = 1e-4  # a pair nearer than this has no force, except in Degradation
MIN_FORCE = 1e-8  # "adaptive" leaves a weight alone whose whole force is smaller than this

DECAY_TYPES = ("fixed", "adaptive")
DIRECTIONS = ("all", "same")


@registry("Degradation")
def degradation(unit: Tensor) -> Tensor:
    """p = 0, the paper's L2-norm force: proportional to the distance. O(n k), as all rows share one pull."""
    pull = unit.sum(-2, keepdim=True)
    return pull - unit * (unit @ pull.mT)


@registry("Constant")
def constant(unit: Tensor) -> Tensor:
    """p = 1, the paper's L1-norm force: the same strength at every distance."""
    return pairwise(unit, Tensor.rsqrt_)


@registry("Linear")
def linear(unit: Tensor) -> Tensor:
    """p = 2: strength 1 / distance."""
    return pairwise(unit, Tensor.reciprocal_)


@registry("Gravity")
def gravity(unit: Tensor) -> Tensor:
    """p = 3: strength 1 / distance^2."""
    return pairwise(unit, lambda squared_distance: squared_distance.pow_(-1.5))


def pairwise(unit: Tensor, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """Tangential pull on unit rows (..., n, k) under K = kernel(|u_i - u_j|^2), which must vanish at inf.

    Two matrix products and (..., n, n) arrays, O(n^2 k). Pairs too near to act on each other stand at inf.
    """
    cosine = unit @ unit.mT
    squared_distance = torch.rsub(cosine, 2, alpha=2)
    pull = kernel(torch.threshold_(squared_distance, MIN_DISTANCE**2, inf))
    radial = cosine.mul_(pull).sum(-1)
    pull.diagonal(dim1=-2, dim2=-1).sub_(radial)  # taken off here, not off the (n, k) product: n < k
    return pull @ unit


@torch.no_grad()
def force_gradient(weight: Tensor, force_type: str = "Degradation", groups: int = 1) -> Tensor:
    """The force on `weight`, to be scaled by force_decay * force_mult and added to its gradient.

    weight: two axes or more, its rows along axis 0; the result has its shape, dtype and memory layout.
    With `groups` > 1 each block of rows is coordinated alone (Caffe's fork coordinates all together).
    Raises ForceregError for an unknown type, a weight without rows, or groups that do not divide them.
    """
    tangential_pull: Pull = registry.get(force_type)
    shape = weight.shape
    if weight.dim() < 2 or groups < 1 or shape[0] % groups:
        expected = f"two axes or more and a first axis divisible by groups = {groups}"
        raise ForceregError(f"force_gradient: weight of shape {tuple(shape)}; expected {expected}")
    if shape[0] == groups:  # a row alone feels nothing, not even rounding
        return torch.zeros_like(weight)

    # Rows in memory order: the order of columns is free, and flattening a dense weight so copies nothing.
    axes = sorted(range(1, weight.dim()), key=weight.stride, reverse=True)
    ordered = weight.permute(0, *axes)
    rows = ordered.reshape(groups, shape[0] // groups, -1) if groups > 1 else ordered.flatten(1)

    rows = rows.double()
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    unit = rows * torch.threshold(norm, MIN_NORM, inf).reciprocal_()
    force = tangential_pull(unit).mul_(torch.threshold(norm, MIN_NORM, 0.0).neg_())

    back = [0] * weight.dim()
    for position, axis in enumerate(axes, start=1):
        back[axis] = position
    return force.to(weight.dtype).view(ordered.shape).permute(back)


def check_force(force_type: str, decay_type: str = "fixed", direction: str = "all") -> None:
    """Raise ForceregError, listing the known names, unless all three solver strings are known."""
    registry.get(force_type)
    for field, found, known in (
        ("force_decay_type", decay_type, DECAY_TYPES),
        ("force_direction", direction, DIRECTIONS),
    ):
        if found not in known:
            hint = did_you_mean(found, known)
            raise ForceregError(f"unknown {field} {found!r}{hint} (known are {', '.join(known)})")


@torch.no_grad()
def regularize(
    grad: Tensor,
    weight: Tensor,
    factor: float,
    force_type: str = "Degradation",
    decay_type: str = "fixed",
    direction: str = "all",
    groups: int = 1,
) -> None:
    """Add the force on `weight` to `grad` (which already holds weight decay), in place.

    factor: force_decay * force_mult; negative ones repel. Direction "same" drops the entries of the
    force whose sign opposes the gradient's; decay type "adaptive" takes `factor` as the ratio of the
    force's norm to the gradient's, and adds nothing where the force vanishes (Caffe's solver).
    """
    check_force(force_type, decay_type, direction)
    force = force_gradient(weight, force_type, groups)
    if direction == "same":
        force = torch.where(force * grad < 0, 0.0, force)
    if decay_type == "fixed":
        grad.add_(force, alpha=factor)
        return
    size = torch.linalg.vector_norm(force)
    scale = factor * torch.linalg.vector_norm(grad) / size
    grad.addcmul_(force, torch.where(size < MIN_FORCE, 0.0, scale))
