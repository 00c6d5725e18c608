"""The names of layer types: Caffe's, and those that users and packages have registered."""

from __future__ import annotations

from forcereg import registry
from forcereg.errors import slip
from forcereg.schema import forks
from forcereg.schema.scan import shown
from forcereg.schema.upgrade import V0_TYPES, V1_TYPES

_LATER = """
    BatchNorm BatchReindex Bias Clip Crop ELU Embed Filter Input Log LSTM LSTMUnit Parameter Python PReLU Reduction
    Reshape RNN Scale SPP Swish Tile
"""
_FORK = "Sparsify SymmetricRectify"
BUILT_IN = frozenset([*filter(None, V1_TYPES.values()), *_LATER.split(), *_FORK.split()])
"""What needs no import, known without loading torch: what V1 has, what came later, and the fork's."""


def unknown_type(name: str) -> str:
    """What to tell a user about a layer's type that isn't known: what is meant, or whose it is, and what to do."""
    if not name:
        return 'type is missing; set for example type: "Convolution"'
    kind = shown(name, 80)
    # a V0 name by way of V1: nets of both are still around
    old = V1_TYPES.get(name) or V1_TYPES.get(V0_TYPES.get(name, ("",))[0])
    hint = f'; did you mean "{old}"?' if old else slip(name, sorted({*BUILT_IN, *registry.layer, *registry.source}))
    fork, instead = forks.home(name), forks.instead(name)
    whose = f", it is of {fork}'s fork" if fork else ""
    about = f"Caffe has no such type{whose}{instead and f'; {instead}'}"
    own = f'for one of your own register a class by forcereg.layer("{kind}") and give --import MODULE'
    return f"unknown layer type '{kind}'{hint or '; `forcereg layers` lists all that run'} ({about}; {own})"
