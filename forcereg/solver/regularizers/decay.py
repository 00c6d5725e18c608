"""Weight decay, Caffe's regularization_type: a function of weights whose result, times a factor, joins the gradients.

It is no `Regularizer`: Caffe has it before all else, and the fused update takes L2 along in its one pass over memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from forcereg.errors import ForceregError
from forcereg.registry import weight_decay as registry
from forcereg.solver.update import Tensors, by_value


@registry("L1")
def l1(weights: Tensors) -> Tensors:
    """sign(w): the gradient of sum |w|."""
    return list(torch._foreach_sign(weights))


@registry("L2")
def l2(weights: Tensors) -> Tensors:
    """w: the gradient of half the squared norm."""
    return weights


def decay(grads: Tensors, weights: Tensors, factors: Sequence[float], kind: str) -> None:
    """Adds factor * w (L2) or factor * sign(w) (L1) to each gradient; factor = weight_decay * decay_mult."""
    for factor, (some_grads, some_weights) in by_value(factors, grads, weights):
        # one call for each multiplier, of which a net has one or two
        torch._foreach_add_(some_grads, registry.get(kind)(some_weights), alpha=factor)


def check_regularization(kind: str, name: str) -> None:
    """Raises ForceregError for an unknown regularization_type."""
    if kind not in registry:
        raise ForceregError(f"{name}: unknown regularization_type {kind!r}; expected {' or '.join(registry)}")
