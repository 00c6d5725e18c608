"""What a net is called with: blobs by name, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from forcereg.errors import ForceregError, did_you_mean


def by_name(given: Any, named: Mapping[str, Any], names: Sequence[str], net: str) -> dict[str, Any]:
    """`given` (blobs by name, or the blob of a net with one input) and `named` as one dict.

    `names`: of all inputs of the net called `net`. Raises ForceregError for a blob that could be any of several.
    """
    if given is None or isinstance(given, Mapping):
        return {**(given or {}), **named}
    if len(names) != 1:
        call = ", ".join(f"{name}=..." if name.isidentifier() else f"**{{'{name}': ...}}" for name in names)
        raise ForceregError(f"net '{net}' has {len(names)} inputs; give each by its name: net({call})")
    if names[0] in named:
        raise ForceregError(f"input '{names[0]}' of net '{net}' is given twice; give it once")
    return {names[0]: given, **named}


def checked(given: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], net: str) -> dict[str, Tensor]:
    """`given` as tensors; `shapes`: of each input of the net called `net`.

    Raises ForceregError for a name that is no input, for what is no tensor, and for another number of axes.
    """
    found = {}
    for name, value in given.items():
        if name not in shapes:
            hint = did_you_mean(name, shapes) or f"; inputs are {', '.join(shapes)}"
            raise ForceregError(f"net '{net}' has no input blob '{name}'{hint}")
        try:
            value = value if isinstance(value, Tensor) else torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise ForceregError(f"input '{name}' is a {type(value).__name__}; expected a tensor") from None
        # axes only: other batch and image sizes than declared are a net's own affair, layer by layer
        if value.dim() != len(shapes[name]):
            raise ForceregError(
                f"input '{name}' has shape {list(value.shape)}; expected {len(shapes[name])} axes "
                f"like {list(shapes[name])}"
            )
        found[name] = value
    return found
