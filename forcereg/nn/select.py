"""Which layers of a model are meant: by name, pattern, class or a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from forcereg.errors import UsageError, did_you_mean
from forcereg.lowrank.decompose import matching
from forcereg.system.arguments import wrong

Layers = str | type | Iterable[str | type] | Callable[[str, nn.Module], bool]
"""Names and patterns (layer1.*), classes of torch.nn, or a function of a layer's name and the layer."""


def bare(model: nn.Module) -> nn.Module:
    """The model inside what DistributedDataParallel, DataParallel and torch.compile wrap around it."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        # by its name: torch._dynamo takes long to import
        elif type(model).__name__ == "OptimizedModule" and "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            return model


def named_layers(model: nn.Module, kinds: tuple[type, ...]) -> dict[str, nn.Module]:
    """Name -> module of the kinds, each module once, under the first of its names."""
    found: dict[str, nn.Module] = {}
    one: nn.Module
    for name, one in bare(model).named_modules():
        if isinstance(one, kinds):
            found[name or type(one).__name__] = one
    return found


def picked(layers: Layers | None, known: Mapping[str, nn.Module], usual: tuple[type, ...]) -> dict[str, nn.Module]:
    """Those of the `known` layers that are meant; None: those of the `usual` kinds.

    Raises UsageError for a name, pattern or class that is nobody's, and if none is picked by a function.
    """
    if layers is None:
        return {name: one for name, one in known.items() if isinstance(one, usual)}
    if callable(layers) and not isinstance(layers, type):
        found = {name for name, one in known.items() if layers(name, one)}
        if known and not found:
            raise UsageError(f"the function that picks layers takes none of {', '.join(known)}")
        return {name: known[name] for name in known if name in found}
    single = isinstance(layers, str | type)
    if not single and not isinstance(layers, Iterable):
        raise wrong("layers", layers, "names, patterns (layer1.*), classes or a function of a name and a module")
    found = set().union(*(_matching(one, known) for one in ([layers] if single else layers)))  # type: ignore[union-attr]
    if not found:
        raise UsageError("layers is empty; leave it out for the usual ones")
    return {name: known[name] for name in known if name in found}


def _matching(one: Any, known: Mapping[str, nn.Module]) -> set[str]:
    if isinstance(one, type):
        if not (found := {name for name, module in known.items() if isinstance(module, one)}):
            raise UsageError(f"layers has {one.__name__}, of which the model has no layer with filters")
        return found
    if not isinstance(one, str):
        raise wrong("layers", one, "names, patterns (layer1.*), classes or a function of a name and a module")
    if not (names := matching(one, known)):
        hint = did_you_mean(one, known) or f"; it has {', '.join(known) or 'none'}"
        raise UsageError(f"the model has no convolution or Linear '{one}'{hint}")
    return set(names)
