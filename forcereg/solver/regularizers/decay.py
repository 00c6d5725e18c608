"""Weight decay, Caffe's regularization_type: a function of weights whose result, times a factor, joins the gradients.

It is no `Regularizer`: Caffe has it before all else, and the fused update takes L2 along in its one pass over memory.
L1_DNS and ISTA are SkimCaffe's, which also do something behind the update: see forcereg.solver.sparsity.zeroing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.registry import weight_decay as registry
from forcereg.solver.sparsity.asked import DNS, ISTA
from forcereg.solver.update import Tensors, grouped

REFUSED = {
    "L2_DNS": "SkimCaffe itself keeps no dense weights for it; use L1_DNS",
    **dict.fromkeys(
        ("L1_Winograd", "L2_Winograd", "L1_DNS_Winograd"),
        "forcereg convolves in no Winograd domain; use L1, L2 or L1_DNS",
    ),
}
"""Types of SkimCaffe that are known and not built, and what to do."""
NONE: Mapping[int, Tensor] = {}


@registry("L1")
def l1(weights: Tensors) -> Tensors:
    """sign(w): the gradient of sum |w|."""
    return list(torch._foreach_sign(weights))


@registry(DNS)
def l1_dns(weights: Tensors) -> Tensors:
    """As L1; the surgery is done behind the update."""
    return l1(weights)


@registry(ISTA)
def ista(weights: Tensors) -> Tensors:
    """As L1, but never added: its penalty is the soft threshold behind the update; SkimCaffe takes both."""
    return l1(weights)


@registry("L2")
def l2(weights: Tensors) -> Tensors:
    """w: the gradient of half the squared norm."""
    return weights


def decay(
    grads: Tensors,
    weights: Tensors,
    factors: Sequence[float],
    kinds: Sequence[str],
    individual: Mapping[int, Tensor] = NONE,
) -> None:
    """Adds factor * w (L2) or factor * sign(w) (L1) to each gradient, by its kind; factor = weight_decay * decay_mult.

    `individual`: place -> a multiplier for each value.
    """
    for (factor, kind), chosen in grouped(factors, kinds):
        # Caffe never looks at the type of what has none
        if not factor or kind == ISTA:
            continue
        # one call for each multiplier, of which a net has one or two
        terms = registry.get(kind)([weights[i] for i in chosen])
        plain = [(grads[i], term) for i, term in zip(chosen, terms, strict=True) if i not in individual]
        if plain:
            torch._foreach_add_(*map(list, zip(*plain, strict=True)), alpha=factor)
        for i, term in zip(chosen, terms, strict=True):
            if i in individual:
                grads[i].addcmul_(individual[i], term, value=factor)


def check_regularization(kind: str, name: str) -> None:
    """Raises ForceregError for an unknown regularization_type."""
    if kind in REFUSED:
        raise ForceregError(f"{name}: regularization_type {kind!r} isn't built: {REFUSED[kind]}")
    if kind not in registry:
        raise ForceregError(f"{name}: unknown regularization_type {kind!r}; expected {' or '.join(registry)}")
