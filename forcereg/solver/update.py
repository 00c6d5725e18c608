"""One parameter update in Caffe's order, as functions of gradients, weights and history.

Everything works in place on lists of tensors (`torch._foreach_*`), reads nothing back to the host and
can be captured in a CUDA graph. Gradients end up overwritten.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from forcereg.registry import solver_type

Tensors = list[Tensor]
LARGEST = torch.finfo(torch.float32).max


class Rule:
    """A solver type: gradients and history -> what to subtract from the weights, in place.

    `history` has a list of one tensor per parameter for each thing that the type `holds`, in the order Caffe's
    snapshots hold them; types that hold the same go on from each other's. `rate` is the learning rate times `scale`; a
    parameter's own is that times its lr_mult. `adaptive` types keep history of gradients, so they need those of
    parameters with lr_mult 0 too (their weight decay), as Caffe does.
    """

    holds: tuple[str, ...] = ("velocity",)
    adaptive = False

    @property
    def slots(self) -> int:
        """How many history tensors each parameter has."""
        return len(self.holds)

    def problem(self, p: Any) -> str | None:
        """What in the solver's settings the type can't do, and a fix; None if nothing."""
        return None

    def scale(self, p: Any, iteration: int) -> float:
        """What the learning rate of `iteration` is multiplied by."""
        return 1.0

    def __call__(
        self, p: Any, grads: Tensors, history: Sequence[Tensors], rate: float | Tensor, lr_mults: Sequence[float]
    ) -> Tensors:
        raise AssertionError("each solver type defines its own")


def clip(grads: Tensors, threshold: float) -> None:
    """Scales all gradients so that their common L2 norm is at most `threshold`; < 0 means no limit."""
    if threshold < 0:
        return
    # by torch.where and not `if`: the host would have to wait for the norm
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    torch._foreach_mul_(grads, torch.where(norm > threshold, threshold / norm, 1.0))


Group = tuple[tuple[Any, ...], list[int]]
"""Factors (or other settings), and the positions of the parameters that have them."""


def grouped(*factors: Sequence[Any]) -> list[Group]:
    """Parameters of equal factors together; the sequences are parallel."""
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, found in enumerate(zip(*factors, strict=True)):
        groups[found].append(index)
    return list(groups.items())


def by_value(factors: Sequence[float], *lists: Tensors) -> list[tuple[float, list[list[Tensor]]]]:
    """Groups parallel lists by factor, dropping factor 0: one foreach call per distinct multiplier."""
    return [(factor, [[one[i] for i in chosen] for one in lists]) for (factor,), chosen in grouped(factors) if factor]


@solver_type("SGD")
class SGD(Rule):
    """h = momentum * h + rate * g; the update is h. The rate is inside h, as in Caffe."""

    def __call__(
        self, p: Any, grads: Tensors, history: Sequence[Tensors], rate: float | Tensor, lr_mults: Sequence[float]
    ) -> Tensors:
        (velocity,) = history
        # also that of frozen blobs, of which it stays 0
        torch._foreach_mul_(velocity, p.momentum)
        if isinstance(rate, Tensor):
            torch._foreach_mul_(grads, rate)
            rate = 1.0
        for mult, (some_velocity, some_grads) in by_value(lr_mults, velocity, grads):
            torch._foreach_add_(some_velocity, some_grads, alpha=rate * mult)
        return velocity


@solver_type("Nesterov")
class Nesterov(SGD):
    """h' = momentum * h + rate * g; the update is (1 + momentum) h' - momentum * h."""

    def __call__(
        self, p: Any, grads: Tensors, history: Sequence[Tensors], rate: float | Tensor, lr_mults: Sequence[float]
    ) -> Tensors:
        values = list(torch._foreach_mul(history[0], -p.momentum))
        velocity = super().__call__(p, grads, history, rate, lr_mults)
        torch._foreach_add_(values, velocity, alpha=1 + p.momentum)
        return values


def descend(
    weights: Tensors, grads: Tensors, velocity: Tensors, groups: Sequence[Group], rate: float, momentum: float
) -> None:
    """Caffe's SGD with L2 decay in one pass over memory: v = momentum * v + rate * (g + decay * w), w -= v.

    The lists are parallel and their tensors laid out alike; `groups` are by lr_mult and weight_decay * decay_mult.
    Raises OverflowError for factors beyond float32.
    """
    for (lr_mult, decay), chosen in groups:
        # foreach kernels refuse such factors by themselves; this one would go on with inf
        if not max(abs(rate * lr_mult), abs(decay)) <= LARGEST:
            raise OverflowError("rate or decay overflows float32")
        torch._fused_sgd_(
            *([_in_order(one[i]) for i in chosen] for one in (weights, grads, velocity)),
            weight_decay=decay,
            momentum=momentum,
            lr=1.0,
            dampening=1 - rate * lr_mult,  # torch takes v = momentum * v + (1 - dampening) * g; it computes in float64
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )


def _in_order(tensor: Tensor) -> Tensor:
    """A channels_last tensor as the contiguous one that its memory is, which torch's fused update need not copy."""
    return tensor if tensor.dim() != 4 or tensor.is_contiguous() else tensor.permute(0, 2, 3, 1)


class _Adaptive(Rule):
    adaptive = True

    def __call__(
        self, p: Any, grads: Tensors, history: Sequence[Tensors], rate: float | Tensor, lr_mults: Sequence[float]
    ) -> Tensors:
        values = self.direction(p, grads, history)
        if isinstance(rate, Tensor):
            torch._foreach_mul_(values, rate)
            rate = 1.0
        torch._foreach_mul_(values, [rate * mult for mult in lr_mults])
        return values

    def direction(self, p: Any, grads: Tensors, history: Sequence[Tensors]) -> Tensors:
        """The update but for the rate; takes `grads` into the history."""
        raise AssertionError("each adaptive type defines its own")


class _WithoutMomentum(_Adaptive):
    def problem(self, p: Any) -> str | None:
        return f"momentum is {p.momentum:g}; type {p.type} has none, remove it" if p.momentum else None


def _rooted(squares: Tensors, delta: float) -> Tensors:
    """sqrt(squares) + delta."""
    # delta behind the root, as in Caffe, and not under it
    roots = list(torch._foreach_sqrt(squares))
    torch._foreach_add_(roots, delta)
    return roots


@solver_type("AdaGrad")
class AdaGrad(_WithoutMomentum):
    """h += g^2; the update is rate * g / (sqrt(h) + delta)."""

    holds = ("sum of squares",)

    def direction(self, p: Any, grads: Tensors, history: Sequence[Tensors]) -> Tensors:
        torch._foreach_addcmul_(history[0], grads, grads)
        return list(torch._foreach_div(grads, _rooted(history[0], p.delta)))


@solver_type("RMSProp")
class RMSProp(_WithoutMomentum):
    """h = rms_decay * h + (1 - rms_decay) g^2; the update is rate * g / (sqrt(h) + delta)."""

    holds = ("mean of squares",)

    def problem(self, p: Any) -> str | None:
        if not 0 <= p.rms_decay < 1:
            return f"rms_decay is {p.rms_decay:g}; expected 0 <= rms_decay < 1"
        return super().problem(p)

    def direction(self, p: Any, grads: Tensors, history: Sequence[Tensors]) -> Tensors:
        torch._foreach_mul_(history[0], p.rms_decay)
        torch._foreach_addcmul_(history[0], grads, grads, 1 - p.rms_decay)
        return list(torch._foreach_div(grads, _rooted(history[0], p.delta)))


@solver_type("AdaDelta")
class AdaDelta(_Adaptive):
    """The update is rate * u, u = g sqrt((u2 + delta) / (g2 + delta)), with means g2, u2 of squares by momentum."""

    holds = ("mean of squares", "mean of the updates' squares")

    def direction(self, p: Any, grads: Tensors, history: Sequence[Tensors]) -> Tensors:
        squared, updates = history
        torch._foreach_mul_(squared, p.momentum)
        torch._foreach_addcmul_(squared, grads, grads, 1 - p.momentum)
        ratio = list(torch._foreach_add(updates, p.delta))
        torch._foreach_div_(ratio, torch._foreach_add(squared, p.delta))
        torch._foreach_sqrt_(ratio)
        torch._foreach_mul_(ratio, grads)
        torch._foreach_mul_(updates, p.momentum)
        torch._foreach_addcmul_(updates, ratio, ratio, 1 - p.momentum)
        return ratio


@solver_type("Adam")
class Adam(_Adaptive):
    """m and v are means of g and g^2 by momentum and momentum2; the update is rate * m / (sqrt(v) + delta).

    The rate is scaled by sqrt(1 - momentum2^t) / (1 - momentum^t), t = iteration + 1.
    """

    holds = ("mean", "mean of squares")

    def scale(self, p: Any, iteration: int) -> float:
        t = iteration + 1
        return math.sqrt(1 - p.momentum2**t) / (1 - p.momentum**t)

    def problem(self, p: Any) -> str | None:
        for name in ("momentum", "momentum2"):
            if not 0 <= getattr(p, name) < 1:
                return f"{name} is {getattr(p, name):g}; type Adam expects 0 <= {name} < 1"
        return None

    def direction(self, p: Any, grads: Tensors, history: Sequence[Tensors]) -> Tensors:
        mean, squared = history
        torch._foreach_mul_(mean, p.momentum)
        torch._foreach_add_(mean, grads, alpha=1 - p.momentum)
        torch._foreach_mul_(squared, p.momentum2)
        torch._foreach_addcmul_(squared, grads, grads, 1 - p.momentum2)
        return list(torch._foreach_div(mean, _rooted(squared, p.delta)))
