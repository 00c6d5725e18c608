"""Grouped convolutions as parallel layers, and back: outputs stay equal (pure functions)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from forcereg.lowrank.rewrite import Weights
from forcereg.schema import NetParameter

Blobs = dict[str, dict[int, np.ndarray]]


def group_name(name: str, index: int) -> str:
    """Of one of the parallel layers, and of its top."""
    return f"{name}_group{index}"


def split_groups(net: Any, weights: Weights, only: Collection[str] | None = None) -> tuple[Any, Blobs, list[str]]:
    """A new NetParameter and weights with each grouped Convolution X as Slice, X_group0, X_group1, ... and Concat.

    Parallel layers have the multipliers, filler and window of X. `only`: just these layers. Third: the names split.
    A layer with several bottoms, or whose weights are shared by name or missing, stays.
    """
    names = [name for name in splittable(net, weights) if only is None or name in only]
    new = _like(net)
    for layer in net.layer:
        new.layer.extend(_parallel(layer) if layer.name in names else [layer])
    blobs: Blobs = {name: dict(values) for name, values in weights.items() if name not in names}
    counts = {layer.name: layer.convolution_param.group for layer in net.layer}
    for name in names:
        # a group's filters are a block of rows, as in Caffe
        parts = {index: np.split(values, counts[name]) for index, values in weights[name].items()}
        for group in range(counts[name]):
            blobs[group_name(name, group)] = {index: values[group] for index, values in parts.items()}
    return new, blobs, names


def splittable(net: Any, weights: Weights) -> list[str]:
    """The names of the grouped Convolutions that `split_groups` takes."""
    named = [spec.name for layer in net.layer for spec in layer.param if spec.name]
    taken = {layer.name for layer in net.layer} | {top for layer in net.layer for top in layer.top}
    found = {}
    for layer in net.layer:
        groups = layer.convolution_param.group
        made = [group_name(layer.name, group) for group in range(groups)]
        plain = len(layer.bottom) == 1 and not any(spec.name in named for spec in layer.param if spec.name)
        if layer.type == "Convolution" and groups > 1 and plain and 0 in weights.get(layer.name, {}):
            found[layer.name] = not taken.intersection([*made, f"{layer.name}_slice", f"{layer.name}_concat"])
    return [name for name, free in found.items() if free]


def _parallel(layer: Any) -> list[Any]:
    """Slice, the parallel Convolutions, and Concat in place of a grouped Convolution LayerParameter."""
    kind, groups, axis = type(layer), layer.convolution_param.group, layer.convolution_param.axis
    rules = kind(include=layer.include, exclude=layer.exclude)
    if layer.HasField("phase"):
        rules.phase = layer.phase
    names = [group_name(layer.name, group) for group in range(groups)]
    pieces = [f"{name}_in" for name in names]
    slicing = kind(name=f"{layer.name}_slice", type="Slice", bottom=layer.bottom, top=pieces)
    slicing.slice_param.axis = axis
    slicing.propagate_down[:] = layer.propagate_down
    joining = kind(name=f"{layer.name}_concat", type="Concat", bottom=names, top=layer.top)
    joining.concat_param.axis = axis
    joining.loss_weight[:] = layer.loss_weight
    parts = []
    for name, piece in zip(names, pieces, strict=True):
        part = kind()
        part.CopyFrom(layer)
        # the last two are the Concat's and the Slice's, which have the layer's top and bottom
        for field in ("blobs", "loss_weight", "propagate_down"):
            part.ClearField(field)
        part.name, part.bottom[:], part.top[:] = name, [piece], [name]
        part.convolution_param.num_output //= groups
        # 1 is the default
        part.convolution_param.ClearField("group")
        parts.append(part)
    for other in (slicing, joining):
        other.MergeFrom(rules)
    return [slicing, *parts, joining]


def merge_groups(net: Any, weights: Weights) -> tuple[Any, Blobs, list[str]]:
    """A new NetParameter and weights in which Slice, equal parallel Convolutions and Concat are one with groups.

    The inverse of `split_groups`, also for other names than its own: the layer is called what its parts'
    names have in common before `_group0`, or else like the Concat's top. Third: the names made.
    """
    found = {names[0]: names for names in _fans(net, weights)}
    gone = {name for names in found.values() for name in names}
    new = _like(net)
    made: dict[str, list[str]] = {}
    for layer in net.layer:
        if layer.name in found:
            names = found[layer.name]
            whole = _whole(net, names)
            made[whole.name] = names[1:-1]
            new.layer.append(whole)
        elif layer.name not in gone:
            new.layer.append(layer)
    blobs: Blobs = {name: dict(values) for name, values in weights.items() if name not in gone}
    for name, parts in made.items():
        blobs[name] = {index: np.concatenate([weights[part][index] for part in parts]) for index in weights[parts[0]]}
    return new, blobs, list(made)


def _fans(net: Any, weights: Weights) -> list[list[str]]:
    """Names of a Slice, the Convolutions that alone read its tops, and the Concat that alone reads theirs."""
    layers = {layer.name: layer for layer in net.layer}
    times = Counter(layer.name for layer in net.layer)  # a net for both phases may have two data layers of one name
    readers: dict[str, list[str]] = {}
    for layer in net.layer:
        for bottom in layer.bottom:
            readers.setdefault(bottom, []).append(layer.name)
    shared = {spec.name for layer in net.layer for spec in layer.param if spec.name}
    found = []
    for layer in layers.values():
        # pieces of given sizes may differ, groups don't
        if layer.type != "Slice" or layer.slice_param.slice_point:
            continue
        parts = [readers.get(top, []) for top in layer.top]
        if any(len(part) != 1 or layers[part[0]].type != "Convolution" for part in parts):
            continue
        names = [part[0] for part in parts]
        behind = {tuple(readers.get(top, [])) for name in names for top in layers[name].top}
        if len(behind) != 1 or len(last := next(iter(behind))) != 1 or layers[last[0]].type != "Concat":
            continue
        fan = [layer.name, *names, last[0]]
        unique = all(times[name] == 1 for name in fan)
        if unique and _alike(layer, [layers[name] for name in names], layers[last[0]], weights, shared):
            found.append(fan)
    return found


def _alike(first: Any, parts: list[Any], last: Any, weights: Weights, shared: Collection[str]) -> bool:
    """Whether the parts differ in names and weights only, and keep the order from Slice to Concat."""
    axis = parts[0].convolution_param.axis
    # a Slice of another axis than the channels makes no groups
    if any(one not in (axis, 1) for one in (first.slice_param.axis, last.concat_param.axis)) or axis != 1:
        return False
    if [part.top[0] for part in parts] != list(last.bottom) or [list(p.bottom) for p in parts] != [
        [t] for t in first.top
    ]:
        return False
    plain = []
    for part in parts:
        copy = type(part)()
        copy.CopyFrom(part)
        for field in ("name", "bottom", "top", "blobs"):
            copy.ClearField(field)
        plain.append(copy)
    sizes = [{index: values.shape for index, values in weights.get(part.name, {}).items()} for part in parts]
    named = any(spec.name in shared for part in parts for spec in part.param if spec.name)
    return not named and all(one == plain[0] for one in plain) and all(s == sizes[0] and 0 in s for s in sizes)


def _whole(net: Any, names: list[str]) -> Any:
    layers: Mapping[str, Any] = {layer.name: layer for layer in net.layer}
    first, part, last = layers[names[0]], layers[names[1]], layers[names[-1]]
    whole = type(part)()
    whole.CopyFrom(part)
    whole.ClearField("blobs")
    base, grouped, _ = part.name.rpartition("_group0")
    others = set(layers).difference(names)
    # the name that split-groups took apart, unless somebody else has it by now
    whole.name = base if grouped and base not in others else last.top[0] if last.top[0] not in others else last.name
    whole.bottom[:], whole.top[:] = first.bottom, last.top
    whole.propagate_down[:], whole.loss_weight[:] = first.propagate_down, last.loss_weight
    param, count = whole.convolution_param, len(names) - 2
    # parts may have groups of their own: then these multiply
    param.num_output, param.group = param.num_output * count, param.group * count
    return whole


def _like(net: Any) -> Any:
    """The net without its layers."""
    new = NetParameter()
    new.CopyFrom(net)
    del new.layer[:]
    return new
