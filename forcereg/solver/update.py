"""One parameter update in Caffe's order, as functions of gradients, weights and history.

Everything works in place on lists of tensors (`torch._foreach_*`), reads nothing back to the host and
can be captured in a CUDA graph. Gradients end up overwritten.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.registry import solver_type

Tensors = list[Tensor]


class Rule(Protocol):
    """A solver type: gradients and history -> what to subtract from the weights, in place.

    `history` has `slots` lists of one tensor per parameter, in the order Caffe's snapshots hold them.
    """

    slots: int

    def __call__(
        self,
        p: Any,
        grads: Tensors,
        history: Sequence[Tensors],
        rate: float | Tensor,
        lr_mults: Sequence[float],
    ) -> Tensors: ...


def clip(grads: Tensors, threshold: float) -> None:
    """Scales all gradients so that their common L2 norm is at most `threshold`; < 0 means no limit."""
    if threshold < 0:
        return
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    torch._foreach_mul_(grads, torch.where(norm > threshold, threshold / norm, 1.0))


def by_value(factors: Sequence[float], *lists: Tensors) -> list[tuple[float, list[list[Tensor]]]]:
    """Groups parallel lists by factor, dropping factor 0: one foreach call per distinct multiplier."""
    groups: dict[float, list[int]] = defaultdict(list)
    for index, factor in enumerate(factors):
        if factor:
            groups[factor].append(index)
    return [(factor, [[one[i] for i in chosen] for one in lists]) for factor, chosen in groups.items()]


def decay(grads: Tensors, weights: Tensors, factors: Sequence[float], kind: str) -> None:
    """Adds factor * w (L2) or factor * sign(w) (L1) to each gradient; factor = weight_decay * decay_mult."""
    for factor, (some_grads, some_weights) in by_value(factors, grads, weights):
        if kind == "L1":
            some_weights = list(torch._foreach_sign(some_weights))
        torch._foreach_add_(some_grads, some_weights, alpha=factor)


def check_regularization(kind: str, name: str) -> None:
    """Raises ForceregError for an unknown regularization_type."""
    if kind not in ("L1", "L2"):
        raise ForceregError(f"{name}: unknown regularization_type {kind!r}; expected L1 or L2")


@solver_type("SGD")
class SGD:
    """h = momentum * h + rate * g; the update is h. The rate is inside h, as in Caffe."""

    slots = 1

    def __call__(
        self,
        p: Any,
        grads: Tensors,
        history: Sequence[Tensors],
        rate: float | Tensor,
        lr_mults: Sequence[float],
    ) -> Tensors:
        (velocity,) = history
        torch._foreach_mul_(velocity, p.momentum)
        if isinstance(rate, Tensor):
            torch._foreach_mul_(grads, rate)
            rate = 1.0
        for mult, (some_velocity, some_grads) in by_value(lr_mults, velocity, grads):
            torch._foreach_add_(some_velocity, some_grads, alpha=rate * mult)
        return velocity


def suppress(grads: Tensors, finite: Tensor, first_bad: Tensor, iteration: int | Tensor) -> Tensor:
    """From the first non-finite loss on: zero gradients, and 0 instead of 1 to scale the update by.

    `first_bad` (0-d int64, -1 while all is well) keeps that iteration on the device. Nothing is read back.
    """
    first_bad.copy_(torch.where((first_bad < 0) & ~finite, iteration, first_bad))
    live = first_bad < 0
    for grad in grads:
        grad.masked_fill_(~live, 0)
    return live.to(torch.float32)
