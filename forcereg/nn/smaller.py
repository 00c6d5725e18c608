"""A torch.nn.Module without the filters, channels and neurons that add nothing to what it gives."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from forcereg.cost import Cost
from forcereg.errors import ForceregError
from forcereg.net.shrink import DIFFERENT
from forcereg.net.shrink.flows import Mask, Mixing, Values, settle
from forcereg.net.shrink.windows import Axis, window
from forcereg.nn.graph import graph_of
from forcereg.nn.kinds import filters, is_transposed, swapped
from forcereg.nn.prepare import copied, learned
from forcereg.nn.trace import NORMS, called, plainly, trace
from forcereg.report.lowrank import net_report
from forcereg.system.arguments import checked


@dataclass(frozen=True)
class Shrunk:
    """A smaller model: `model`, a new one, and what was done.

    `report`: plain data. layers: those whose weights are smaller, with their shapes before and after; net: MACs on the
    example and learned values, before and after; whole: layers that can't be cut, and why; difference: of the outputs
    for the example in float64, relative to the largest.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> with torch.no_grad():
    ...     _ = model[2].weight[:, 3:].zero_()
    >>> forcereg.nn.shrink(model, torch.randn(1, 4))
    Shrunk(0 8x4 -> 3x4, 2 2x8 -> 2x3)
    """

    model: nn.Module = field(repr=False)
    report: dict[str, Any] = field(repr=False)

    def __repr__(self) -> str:
        sizes = ((one["name"], *("x".join(map(str, one[key])) for key in ("before", "after"))) for one in self.layers)
        return f"Shrunk({', '.join(f'{name} {before} -> {after}' for name, before, after in sizes)})"

    @property
    def layers(self) -> list[dict[str, Any]]:
        """The report's."""
        return list(self.report["layers"])


@checked
def shrink(model: nn.Module, example: Any) -> Shrunk:
    """Cut out of a copy of any model what adds nothing to its outputs, in the test phase.

    Filters, channels and neurons that are zero or constant, where who reads them can take the constant into a bias;
    those that nobody reads; kernels down to the window that isn't zero. The copy has the model's own code, so that no
    layer goes: of a branch of zeros one channel is left in each. example: what the model is run on, as for `decompose`.

    Known are convolutions, Linear, BatchNorm, activations, pooling, Dropout and Flatten of torch.nn, and functions that
    work on each value alone, add or multiply two tensors, join them along channels, or flatten them; whatever else
    reads a tensor, all of its channels stay. Raises ForceregError for a model that torch.fx can't trace (one whose
    branches hang on values), that doesn't run, and for one with nothing to cut; warns if the outputs for the example
    differ.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 4, 3))
    >>> with torch.no_grad():
    ...     for blob in model[0].parameters():
    ...         _ = blob[10:].zero_()
    >>> made = forcereg.nn.shrink(model, torch.randn(1, 3, 8, 8))
    >>> made.model[0].weight.shape, made.report["net"]["macs_before"], made.report["net"]["macs_after"]
    (torch.Size([10, 3, 3, 3]), 24768, 15480)
    """
    # bare: without DataParallel and the like
    model, made = copied(model), copied(model)
    before = trace(model, example, {})
    graph = graph_of(model, example)
    values, masks = settle(graph.nodes, graph.sizes, graph.pinned, least=1)
    layers = []
    for name, (flow, bottom, top) in graph.layers.items():
        layer: Any = made.get_submodule(name)
        was = tuple(layer.weight.shape) if layer.weight is not None else (graph.sizes[top],)
        _cut(layer, flow, masks[bottom], masks[top], values[bottom])
        now = tuple(layer.weight.shape) if layer.weight is not None else (int(masks[top].sum()),)
        if was != now:
            layers.append({"name": name, "type": type(layer).__name__, "before": list(was), "after": list(now)})
    if not layers:
        whole = "".join(f"; {name}: {reason}" for name, reason in graph.whole.items())
        raise ForceregError(f"{type(model).__name__}: no channel or neuron of zeros, so nothing to cut{whole}")
    after = trace(made, example, {})
    net = net_report(Cost(before.macs, learned(model)), Cost(after.macs, learned(made)))
    difference = compared(model, made, example)
    if not difference <= DIFFERENT:
        # such as of `x += y` where x has another name, too, which torch.fx doesn't see
        text = f"the outputs for the example differ by {difference:.1e} of the largest: don't use the smaller model"
        warnings.warn(f"{type(model).__name__}: {text}", stacklevel=3)
    return Shrunk(made, {"layers": layers, "net": net, "whole": dict(graph.whole), "difference": difference})


@torch.no_grad()
def _cut(layer: Any, flow: Any, bottom: Mask, top: Mask, values: Values) -> None:
    if not isinstance(flow, Mixing):
        _channelwise(layer, torch.from_numpy(top))
        return
    whole, added = flow.without(bottom, top, values)
    taken = torch.from_numpy(added[top]).to(layer.weight)
    if layer.bias is not None:
        layer.bias = _like(layer.bias, layer.bias.detach()[torch.from_numpy(top)] + taken)
    elif added[top].any():
        layer.bias = _like(layer.weight, taken)
    outputs, inputs = (torch.from_numpy(mask).reshape(flow.groups, -1) for mask in (top, bottom))
    weight = filters(layer) if whole is flow.weight else torch.from_numpy(whole).to(layer.weight)
    weight = weight.reshape(flow.groups, -1, *filters(layer).shape[1:])
    left = [own[row][:, column] for own, row, column in zip(weight, outputs, inputs, strict=True) if row.any()]
    weight = torch.cat(left)
    if isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = int(bottom.sum()), int(top.sum())
    else:
        layer.in_channels, layer.out_channels, layer.groups = int(bottom.sum()), int(top.sum()), len(left)
        weight = _windowed(layer, weight)
        weight = swapped(weight, layer.groups) if is_transposed(layer) else weight
    layer.weight = _like(layer.weight, weight)


def _like(old: Tensor, values: Tensor) -> nn.Parameter:
    """A parameter of these values, of the old one's layout and whether it learns."""
    is_last = old.dim() == 4 and not old.is_contiguous() and old.is_contiguous(memory_format=torch.channels_last)
    form = torch.channels_last if is_last else torch.contiguous_format
    return nn.Parameter(values.clone(memory_format=form), old.requires_grad)


def _channelwise(layer: Any, kept: Tensor) -> None:
    """A BatchNorm's or PReLU's values of the channels that stay."""
    for name, blob in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
        # neither the number of batches nor a slope for all channels
        if blob.dim() and len(blob) == len(kept):
            setattr(layer, name, _like(blob, blob[kept]) if isinstance(blob, nn.Parameter) else blob[kept].clone())
    if isinstance(layer, NORMS):
        layer.num_features = int(kept.sum())
    elif layer.weight.numel() == int(kept.sum()):
        layer.num_parameters = int(kept.sum())


def _windowed(layer: Any, weight: Tensor) -> Tensor:
    """The kernel without the zeros around it, where inputs of any size come to outputs of the same size."""
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return weight
    kernel, padding = list(layer.kernel_size), list(layer.padding)
    for at, size in enumerate(kernel):
        axis = Axis(size, layer.stride[at], padding[at], layer.dilation[at], is_transposed(layer))
        taps = weight.ne(0).movedim(at + 2, 0).flatten(1).any(1).numpy(force=True)
        # one size of each remainder
        first = size * layer.dilation[at]
        before, behind = window(taps, axis, range(first, first + layer.stride[at]))
        weight = weight.narrow(at + 2, before, size - before - behind)
        cut = axis.cut(before, behind)
        kernel[at], padding[at] = cut.kernel, cut.pad
    layer.kernel_size, layer.padding = tuple(kernel), tuple(padding)
    layer._reversed_padding_repeated_twice = [one for pad in reversed(padding) for one in (pad, pad)]
    return weight


def compared(model: nn.Module, made: nn.Module, example: Any) -> float:
    """The largest difference of what both give for the example in float64, relative to the largest value, or 1."""
    wide = tree_map(lambda one: one.double() if isinstance(one, Tensor) and one.is_floating_point() else one, example)
    old, new = (outputs(copy.deepcopy(one).double(), wide) for one in (model, made))
    differences = [
        float((a - b).abs().max()) / max(1.0, float(a.abs().max()))
        for a, b in zip(old, new, strict=True)
        if a.is_floating_point() and a.numel()
    ]
    return max(differences, default=0.0)


def outputs(model: nn.Module, example: Any) -> list[Tensor]:
    """All tensors that a model gives, in its test phase."""
    with plainly(model):
        return [one for one in tree_leaves(called(model, example)) if isinstance(one, Tensor)]
