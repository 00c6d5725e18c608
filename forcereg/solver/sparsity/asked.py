"""What a solver and its net ask of structured sparsity, by which rules, and what is wrong with that."""

from __future__ import annotations

from typing import Any

from forcereg.net.module import Learnable, Net
from forcereg.schema import LayerParameter
from forcereg.schema.spec import LayerSpec
from forcereg.solver.sparsity.blocks import Term, matrix_shape

DNS, ISTA = "L1_DNS", "ISTA"
"""Types of weight decay that also do something behind the update."""
THRESHOLD = 1e-4
"""The SSL branch's: smaller weights become 0."""
MASKED = ("Convolution", "Deconvolution", "InnerProduct")
"""The layer types whose weights a connectivity_mode freezes."""
_FIELDS = ("prune_threshold", "measure_threshold", "max_threshold_factor")
_DECAYS = ("block_group_decay", "breadth_decay", "kernel_shape_decay")


def terms_of(one: Learnable, p: Any) -> list[Term]:
    """Group lasso on a blob in the branch's order: columns of each kernel group, rows, then blocks; of any factor."""
    if not one.blob.dim():
        return []
    rows, columns = matrix_shape(one.blob.shape)
    terms = [
        Term(1, rows // one.groups, p.kernel_shape_decay * one.sparse.shape_mult),
        Term(columns, 1, p.breadth_decay * one.sparse.breadth_mult),
    ]
    terms = [term for term in terms if term.decay]
    return terms + [Term(x, y, p.block_group_decay * mult) for x, y, mult in one.sparse.blocks]


def lassoed(one: Learnable, p: Any) -> bool:
    """Whether any group lasso acts on a blob."""
    return any(term.decay for term in terms_of(one, p))


def kind_of(one: Learnable, p: Any) -> str:
    """The type of a blob's weight decay: its own, else the solver's."""
    return one.sparse.regularization_type or str(p.regularization_type)


def mode_of(spec: LayerSpec) -> str:
    """A layer's connectivity_mode, '' where all its weights are free."""
    number = spec.message.connectivity_mode if spec.type in MASKED else 0
    return str(LayerParameter.ConnectivityMode.Name(number)) if number else ""


def is_used(net: Net, p: Any) -> bool:
    """Whether solver or net name any field of structured sparsity that acts in training: then displays tell of it."""
    named = any(p.HasField(field) for field in _FIELDS) or any(getattr(p, field) for field in _DECAYS)
    own = p.weight_decay and p.regularization_type in (DNS, ISTA)
    return bool(named or own or any(one.sparse.used for one in net.learnable) or any(map(mode_of, net.spec.layers)))


def described(net: Net, p: Any) -> str:
    """What a run makes sparse, in a line; '' for nothing."""
    terms = {f"{one.layer}/{one.index}" if one.index else one.layer: terms_of(one, p) for one in net.learnable}
    shown = {name: ", ".join(f"{x}x{y} {decay:g}" for x, y, decay in own if decay) for name, own in terms.items()}
    lasso = "; ".join(f"{name} ({text})" for name, text in shown.items() if text)
    frozen = ", ".join(spec.name for spec in net.spec.layers if mode_of(spec))
    limit = threshold(net, p)
    parts = [
        f"group lasso (columns x rows, decay) on {lasso}" if lasso else "",
        f"what is zero stays so in {frozen}" if frozen else "",
        f"zeros below {limit:g}" if limit else "",
    ]
    return "; ".join(filter(None, parts))


def threshold(net: Net, p: Any) -> float:
    """Below which a step makes weights zero: prune_threshold, else the branch's where something asks for it, else 0."""
    if p.HasField("prune_threshold"):
        return float(p.prune_threshold)
    learnable = net.learnable
    asked = (
        p.max_threshold_factor >= 2
        or any(one.sparse.regularization_type or one.sparse.decay_proto for one in learnable)
        or any(lassoed(one, p) for one in learnable)
        or any(map(mode_of, net.spec.layers))
        or (p.weight_decay and p.regularization_type == DNS)
    )
    return THRESHOLD if asked else 0.0
