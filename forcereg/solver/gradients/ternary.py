"""Ternary gradients, TernGrad (Wen et al., NIPS 2017, arXiv 1705.07878), as functions of tensors.

A gradient g is clipped at `clip_sigma` standard deviations, and what is left drawn as s sign(g) b: b is 1 with
probability |g| / s, so that the mean of draws is g. With s the same for all of N workers the mean of their draws is
s j / N, j a whole number of -N to N, and a worker has to send a sign or nothing: 2 bits, `pack`ed four to a byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Tensors: TypeAlias = tuple[Tensor, ...]
PER_BYTE = 4
_SHIFTS = tuple(range(0, 8, 2))


def bounds_of(gradients: Tensors, clip_sigma: float) -> Tensor:
    """What each gradient, of any shape, is clipped at: clip_sigma standard deviations about its mean; inf for 0.

    At least |mean|: one value alone, or several that are nearly equal, have no deviation and would become nothing.
    """
    if not clip_sigma:
        return torch.full((len(gradients),), math.inf, device=gradients[0].device, dtype=gradients[0].dtype)
    means = torch.stack([one.mean() for one in gradients])
    # by norms, which take one pass where torch.std takes several; what cancels is far below the bound
    norms = torch._foreach_norm(gradients)
    torch._foreach_mul_(norms, [one.numel() ** -0.5 for one in gradients])
    sigmas = (torch.stack(norms).square_() - means.square()).clamp_(min=0).sqrt_()
    return torch.maximum(clip_sigma * sigmas, means.abs())


def scalers_of(gradients: Tensors, bounds: Tensor) -> Tensor:
    """The largest magnitude of each gradient, clipped at its bound; inf where it isn't finite."""
    peaks = torch.stack([torch.maximum(most, -least) for least, most in map(torch.aminmax, gradients)])
    found = torch.minimum(peaks, bounds)
    # the largest of several workers' may leave out NaN, never inf
    return torch.where(found.isfinite(), found, math.inf)


def draw_(gradients: Tensors, bounds: Tensor, scalers: Tensor, chances: Tensors) -> None:
    """Prepares `signs_of`: gradients become clipped, the uniform [0, 1) `chances` of the same shapes thresholds.

    `scalers`: at least those of `scalers_of`.
    """
    torch._foreach_minimum_(gradients, bounds.unbind())
    torch._foreach_maximum_(gradients, bounds.neg().unbind())
    torch._foreach_mul_(chances, scalers.unbind())


def signs_of(clipped: Tensor, thresholds: Tensor) -> Tensor:
    """Where a clipped gradient is beyond its threshold, 2 or by its sign 0, else 1; uint8. Overwrites `thresholds`."""
    above = (clipped > thresholds).view(torch.uint8)
    return above.add_((clipped >= thresholds.neg_()).view(torch.uint8))


def pack(signs: Tensor) -> Tensor:
    """Signs 0, 1, 2 (uint8, flat) four to a byte; the lowest bits of all bytes hold the first quarter."""
    quarters = -(-signs.numel() // PER_BYTE)
    if lacking := quarters * PER_BYTE - signs.numel():
        signs = torch.cat((signs, signs.new_ones(lacking)))
    packed, *others = signs.view(PER_BYTE, quarters).unbind()
    packed = packed.clone()
    for shift, one in zip(_SHIFTS[1:], others, strict=True):
        packed |= one << shift
    return packed


def unpack(packed: Sequence[Tensor], count: int) -> Tensor:
    """The sums of the `count` signs of several workers, as `pack` gives them; uint8, at most 127 workers."""
    total = packed[0].new_zeros(PER_BYTE, packed[0].numel())
    for one in packed:
        for row, shift in zip(total, _SHIFTS, strict=True):
            row += (one >> shift) & 3
    return total.view(-1)[:count]


def mean_(totals: Tensors, scalers: Tensor, size: int) -> None:
    """Sums of -1, 0, 1 of `size` workers, as floats, become the mean gradient s j / size."""
    torch._foreach_mul_(totals, (scalers / size).unbind())
