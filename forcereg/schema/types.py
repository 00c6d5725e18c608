"""The names of layer types: Caffe's, and those that users and packages have registered."""

from __future__ import annotations

from forcereg import plugins, registry
from forcereg.errors import did_you_mean
from forcereg.schema.scan import shown
from forcereg.schema.upgrade import V1_TYPES

_LATER = """
    BatchNorm BatchReindex Bias Clip Crop ELU Embed Filter Input Log LSTM LSTMUnit Parameter Python PReLU Reduction
    Reshape RNN Scale SPP Swish Tile
"""
_FORK = "Sparsify SymmetricRectify"
BUILT_IN = frozenset([*filter(None, V1_TYPES.values()), *_LATER.split(), *_FORK.split()])
"""What needs no import, known without loading torch: what V1 has, what came later, and the fork's."""


def is_known(name: str) -> bool:
    """Whether a layer of this type can be made: built in, registered, or offered by an installed package."""
    return name in BUILT_IN or name in registry.layer or name in registry.source or name in plugins.entry_point_layers()


def unknown_type(name: str, guess: bool = True) -> str:
    """What to tell a user about a layer's type that isn't known; `guess`: it may be a slip of the pen."""
    if not name:
        return 'type is missing; set for example type: "Convolution"'
    kind, known = shown(name, 80), sorted({*BUILT_IN, *registry.layer, *registry.source})
    # few letters are near to others by chance: BN is no misspelt BNLL
    hint = (guess and did_you_mean(name, known, 0.7)) or "; `forcereg layers` lists all that run"
    own = f'for one of your own register a class by forcereg.layer("{kind}") and give --import MODULE'
    return f"unknown layer type '{kind}'{hint} (Caffe has no such type; {own})"
