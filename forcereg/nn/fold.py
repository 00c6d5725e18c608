"""BatchNorm taken into the layer before it: outputs of the test phase stay equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from forcereg.nn.kinds import KINDS, filters, is_transposed, oddity, swapped
from forcereg.nn.trace import NORMS, Trace, dims_of


@torch.no_grad()
def fold(model: nn.Module, trace: Trace) -> dict[str, str]:
    """Fold, in place, each BatchNorm that alone reads a layer's output; it becomes an Identity. Layer -> BatchNorm.

    W' = W gamma / sqrt(variance + eps), b' = (b - mean) gamma / sqrt(variance + eps) + beta, in float64. What can't be
    folded stays: layers and BatchNorms that several use, that have hooks, or that keep no statistics.
    """
    modules, users, done = dict(model.named_modules()), shared(model), {}
    for name, norm_name in trace.norms.items():
        layer: Any = modules.get(name)
        norm: Any = modules.get(norm_name)
        if type(layer) not in KINDS or type(norm) not in NORMS or oddity(layer):
            continue
        first = trace.seen[name].first
        plain = first is not None and first.dim() == dims_of(layer) + 2  # a batch, and channels on axis 1
        alone = not any(id(one) in users for module in (layer, norm) for one in module.parameters())
        if (
            plain
            and alone
            and norm.running_mean is not None
            and not norm._forward_hooks
            and not norm._forward_pre_hooks
        ):
            _take(layer, norm)
            replace(model, norm, nn.Identity())
            done[name] = norm_name
    return done


def _take(layer: Any, norm: Any) -> None:
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * gain
    if norm.affine:
        gain, shift = gain * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
    weight = filters(layer).double() * gain.reshape(-1, *[1] * (layer.weight.dim() - 1))
    layer.weight.copy_(swapped(weight, layer.groups) if is_transposed(layer) else weight)
    if layer.bias is not None:
        shift = shift + layer.bias.double() * gain
    learns = layer.weight.requires_grad if layer.bias is None else layer.bias.requires_grad
    layer.bias = nn.Parameter(shift.to(layer.weight.dtype), learns)


def shared(model: nn.Module) -> Mapping[int, list[str]]:
    """The id of a parameter that several modules have -> their names."""
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for one in module._parameters.values():
            if one is not None:
                users.setdefault(id(one), []).append(name)
    return {key: names for key, names in users.items() if len(names) > 1}


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put `new` wherever the model has `old`, in place; the model, which may be `old` itself."""
    for parent in list(model.modules()):
        for name, one in parent._modules.items():
            if one is old:
                parent._modules[name] = new
    return new if model is old else model
