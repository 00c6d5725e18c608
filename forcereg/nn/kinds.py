"""The layers of torch.nn that have filters: their weights as the engine has them, and chains of such layers.

The engine's weight is (N, C / groups, *kernel), rows in blocks of groups. A transposed convolution's is (C, N / groups,
*kernel), in blocks by its inputs: with the first two axes of each block exchanged it is the other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import reduce
from math import gcd
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, skip_init

from forcereg.lowrank.factor import Factors, Part, Slot, composed, rank_limit
from forcereg.lowrank.kinds import factorizer

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
CONVS = (*CONVOLUTIONS.values(), *TRANSPOSED.values())
KINDS = (*CONVS, nn.Linear)


def is_transposed(layer: nn.Module) -> bool:
    """Whether it is a transposed convolution."""
    return isinstance(layer, tuple(TRANSPOSED.values()))


def groups_of(layer: nn.Module) -> int:
    """Of a convolution; a Linear has one."""
    return int(getattr(layer, "groups", 1))


def swapped(weight: Tensor, groups: int) -> Tensor:
    """A transposed convolution's weight as the engine's, and back: (A, B / groups, *kernel) -> (B, A / groups, ...)."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def filters(layer: Any) -> Tensor:
    """The layer's weight as the engine's, (N, C / groups, *kernel) or (N, C)."""
    weight = layer.weight.detach()
    return swapped(weight, layer.groups) if is_transposed(layer) else weight


def no_plain_weight(layer: Any) -> str:
    """Why a layer of KINDS has no weight that learns as it is; '' if it has."""
    if parametrize.is_parametrized(layer) or not isinstance(layer._parameters.get("weight"), nn.Parameter):
        how = "torch.nn.utils.parametrize.remove_parametrizations or torch.nn.utils.remove_weight_norm"
        return f"its weight is computed from others (weight_norm?); make it plain by {how}"
    if isinstance(layer.weight, nn.parameter.UninitializedParameter):
        return "its weight has no shape yet; run the model once"
    if not layer.weight.is_floating_point():
        return f"its weight is {layer.weight.dtype}; expected floating point"
    return ""


def oddity(layer: Any) -> str:
    """Why a layer of KINDS isn't plainly one with a weight, a bias and nothing else; '' if it is."""
    if problem := no_plain_weight(layer):
        return problem
    base = next(kind for kind in KINDS if isinstance(layer, kind))
    if any(getattr(type(layer), name, None) is not getattr(base, name, None) for name in ("forward", "_conv_forward")):
        return f"it is a {type(layer).__name__}, which computes otherwise than torch.nn's {base.__name__}"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return "it has hooks, which a chain wouldn't run" if any(getattr(layer, name) for name in hooks) else ""


# -- chains


def chain(layer: Any, factors: Factors) -> nn.Sequential:
    """Plain layers in a row that do what `layer` does with the approximated weight; the last has its bias."""
    made: Any = outline(layer, factors, layer.weight.device)
    with torch.no_grad():
        for part, one in zip(factors.parts, made, strict=True):
            weight = swapped(part.weight, part.groups) if is_transposed(one) else part.weight
            one.weight.copy_(weight)
            one.weight.requires_grad_(layer.weight.requires_grad)
        if layer.bias is not None:
            made[-1].bias.copy_(layer.bias)
            made[-1].bias.requires_grad_(layer.bias.requires_grad)
    return made.train(layer.training)


def outline(layer: Any, factors: Factors, device: Any = "meta") -> nn.Sequential:
    """The same with weights that hold nothing yet."""
    last = factors.parts[-1]
    named = [(part.slot.suffix, _part(layer, part, part is last and layer.bias is not None)) for part in factors.parts]
    made: Any = nn.Sequential(OrderedDict(named))
    if str(device) != "meta":
        made.to_empty(device=device)
    if layer.weight.dim() == 4 and not layer.weight.is_contiguous():
        made.to(memory_format=torch.channels_last)
    return made


def _part(layer: Any, part: Part, bias: bool) -> Any:
    count, into = len(part.weight), part.weight.shape[1] * part.groups
    factory = {"bias": bias, "device": "meta", "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Linear):
        return nn.Linear(into, count, **factory)
    dims = part.weight.dim() - 2
    kernel = tuple(part.weight.shape[2:])
    owned = [part.slot.owns(axis) for axis in range(dims)]
    if not any(owned):
        return CONVOLUTIONS[dims](into, count, kernel, groups=part.groups, **factory)

    def own(values: Sequence[int], neutral: int) -> tuple[int, ...]:
        return tuple(value if mine else neutral for value, mine in zip(values, owned, strict=True))

    padding = layer.padding if isinstance(layer.padding, str) else own(layer.padding, 0)
    window: dict[str, Any] = {"stride": own(layer.stride, 1), "padding": padding, "dilation": own(layer.dilation, 1)}
    window |= {"groups": part.groups, "padding_mode": layer.padding_mode}
    if is_transposed(layer):
        window["output_padding"] = own(layer.output_padding, 0)
        return TRANSPOSED[dims](into, count, kernel, **window, **factory)
    return CONVOLUTIONS[dims](into, count, kernel, **window, **factory)


class Standing(NamedTuple):
    """The one layer that a chain stands for, its weight as the engine's in float64, and a bound on that one's rank."""

    layer: nn.Module
    weight: Tensor
    limit: int
    slots: tuple[Slot, ...]


def stands_for(module: nn.Module) -> Standing | None:
    """What a Sequential with the names that the registered methods give equals as one layer; None for any other."""
    if type(module) is not nn.Sequential or (slots := slots_of(module)) is None:
        return None
    parts: list[Any] = list(module)
    weights = [filters(part) for part in parts]
    groups = [groups_of(part) for part in parts]
    outer = reduce(gcd, groups)
    whole = composed([weight.double() for weight in weights], groups, outer)
    layer = _joined(parts, whole, outer)
    return None if layer is None else Standing(layer, whole, rank_limit([weight.shape for weight in weights]), slots)


def chains_of(model: nn.Module) -> Iterator[tuple[str, nn.Sequential]]:
    """Name -> chain, of all chains of a model that one layer could stand for."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential) and stands_for(module) is not None:
            yield name, module


def slots_of(module: nn.Sequential) -> tuple[Slot, ...] | None:
    """The slots that a Sequential's layers are named by, None if names, kinds or biases aren't those of a chain."""
    named = {tuple(slot.suffix for slot in slots): slots for slots in known_slots()}
    slots = named.get(tuple(name for name, _ in module.named_children()))
    parts: list[Any] = list(module)
    if slots is None or any(type(part) not in KINDS or oddity(part) for part in parts):
        return None
    biased = any(part.bias is not None for part in parts[:-1])
    return None if biased or len({part.weight.dim() for part in parts}) > 1 else slots


def known_slots() -> set[tuple[Slot, ...]]:
    """Those of all registered methods."""
    return {factorizer.get(name).slots for name in factorizer}


NEUTRAL = (1, 1, 0, 1, 0)
"""Kernel, stride, padding, dilation and output padding on an axis that isn't a part's own."""


def _windows(part: Any) -> list[tuple[Any, ...]]:
    """A convolution's values on every axis; padding "same" is none where the kernel is 1."""
    kernel = part.kernel_size
    padding = part.padding
    if isinstance(padding, str):
        padding = ["same" if padding == "same" and size > 1 else 0 for size in kernel]
    return list(zip(kernel, part.stride, padding, part.dilation, part.output_padding, strict=True))


def _joined(parts: Sequence[Any], whole: Tensor, groups: int) -> nn.Module | None:
    """The one layer, or None where two parts have a window on one axis or don't go together."""
    first, last = parts[0], parts[-1]
    count, into = len(whole), whole.shape[1] * groups
    factory = {"bias": last.bias is not None, "device": first.weight.device, "dtype": first.weight.dtype}
    if isinstance(first, nn.Linear):
        made = skip_init(nn.Linear, into, count, **factory)
        return _with_bias(made, parts)
    dims = whole.dim() - 2
    windows = [_windows(part) for part in parts]
    owners = [part for part, window in zip(parts, windows, strict=True) if any(axis != NEUTRAL for axis in window)]
    kinds = {(type(part), part.padding_mode) for part in owners} or {(CONVOLUTIONS[dims], "zeros")}
    if len(kinds) > 1 or any(is_transposed(part) and part not in owners for part in parts):
        return None
    axes = []
    for axis in range(dims):
        own = [window[axis] for window in windows if window[axis] != NEUTRAL]
        if len(own) > 1:
            return None
        axes.append(own[0] if own else NEUTRAL)
    kernel, stride, padding, dilation, output_padding = zip(*axes, strict=True)
    if "same" in padding:
        if any(pad != "same" for pad, size in zip(padding, kernel, strict=True) if size > 1):
            return None
        padding = "same"  # type: ignore[assignment]
    kind, mode = kinds.pop()
    more = {"output_padding": output_padding} if kind in TRANSPOSED.values() else {}
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": mode}
    return _with_bias(skip_init(kind, into, count, kernel, **window, **more, **factory), parts)


def _with_bias(made: Any, parts: Sequence[Any]) -> Any:
    made.bias = parts[-1].bias
    made.weight.requires_grad_(any(part.weight.requires_grad for part in parts))
    return made.train(parts[-1].training)
