"""Nets and weights with layers replaced by chains of smaller ones (pure functions on messages and arrays)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from forcereg.lowrank.factor import Factors, Part, Slot
from forcereg.schema import NetParameter

Weights = Mapping[str, Mapping[int, np.ndarray]]
"""Layer name -> position of the blob in its layer -> values."""

AXES = {"kernel_size": ("kernel_h", "kernel_w"), "pad": ("pad_h", "pad_w"), "stride": ("stride_h", "stride_w")}
NEUTRAL = {"kernel_size": 1, "pad": 0, "stride": 1, "dilation": 1}
"""What a window's fields are on an axis that isn't the layer's own."""


def part_name(name: str, slot: Slot) -> str:
    """Of one layer of the chain in place of the layer `name`, or of its top."""
    return f"{name}_{slot.suffix}"


def rewrite(net: Any, weights: Weights, factors: Mapping[str, Factors]) -> tuple[Any, dict[str, dict[int, np.ndarray]]]:
    """A new NetParameter and new weights in which every layer named in `factors` is a chain.

    Layers that stand several times in the file (for different phases) are all replaced. Weights of layers that
    neither hold values nor stand in the new net (automatic Splits of the old one) are left out.
    """
    new = NetParameter()
    new.CopyFrom(net)
    del new.layer[:]
    for layer in net.layer:
        found = factors.get(layer.name)
        new.layer.extend(split(layer, found) if found else [layer])

    names = {layer.name for layer in new.layer}
    blobs: dict[str, dict[int, np.ndarray]] = {}
    for name, values in weights.items():
        if name in factors:
            # the chain keeps the flag, so that its weights have to lie like the layer's
            transposed = any(layer.name == name and layer.inner_product_param.transpose for layer in net.layer)
            blobs.update(split_weights(name, values, factors[name], transposed))
        # Caffe and forcereg write layers without blobs, too: those of layers that are gone would be told as unknown
        elif values or name in names:
            blobs[name] = dict(values)
    return new, blobs


def split(layer: Any, factors: Factors) -> list[Any]:
    """The layers that replace one Convolution or InnerProduct LayerParameter, in order.

    Each has the layer's first ParamSpec and, on the axes that are its own, its kernel, stride, pad and dilation. The
    last has the bias with its ParamSpec and writes the layer's tops. All keep its rules.
    """
    chain: list[Any] = []
    bottoms = list(layer.bottom)
    last = factors.parts[-1]
    for part in factors.parts:
        new = type(layer)()
        # everything that isn't about the weight holds for each part: include rules, phase, engine, fillers
        new.CopyFrom(layer)
        new.ClearField("blobs")
        new.name, new.bottom[:] = part_name(layer.name, part.slot), bottoms
        if new.param:
            new.param[0].ClearField("name")  # the name was for one blob, and nobody shared it
        if chain:
            new.ClearField("propagate_down")  # the original's is about its bottom, which the first part reads
        if part is not last:
            new.top[:] = bottoms = [part_name(top, part.slot) for top in layer.top]
            del new.param[1:]
            new.ClearField("loss_weight")
        param = new.inner_product_param if layer.type == "InnerProduct" else new.convolution_param
        param.num_output = len(part.weight)
        if part is not last:
            param.bias_term = False
            param.ClearField("bias_filler")
        if layer.type == "InnerProduct":
            if chain and param.axis < 0:
                param.axis = -1  # its bottom ends in the part before's outputs
        else:
            set_window(param, layer.convolution_param, part)
        chain.append(new)
    return chain


def set_window(param: Any, whole: Any, part: Part) -> None:
    """Group and window of one part, from the ConvolutionParameter of the whole layer."""
    dims = part.weight.dim() - 2
    owned = [part.slot.owns(axis) for axis in range(dims)]
    if part.groups != whole.group:
        param.group = part.groups
    # left in the form that the file gives it
    if all(owned):
        return
    for field, (height, width) in AXES.items():
        named = [getattr(whole, name) if whole.HasField(name) else None for name in (height, width)]
        values = per_axis(getattr(whole, field), named, dims, NEUTRAL[field])
        # all three spellings go: a file may not have kernel_size beside kernel_h
        for name in (field, height, width):
            param.ClearField(name)
        set_field(param, field, [value if own else NEUTRAL[field] for value, own in zip(values, owned, strict=True)])
    dilation = per_axis(whole.dilation, [], dims, 1)
    param.ClearField("dilation")
    set_field(param, "dilation", [value if own else 1 for value, own in zip(dilation, owned, strict=True)])


def per_axis(repeated: Sequence[int], named: Sequence[int | None], dims: int, neutral: int) -> list[int]:
    """A window field's value on every axis, by Caffe's rules: `_h` and `_w`, one value for all, or one each."""
    if any(value is not None for value in named):
        return [neutral if value is None else value for value in named]
    values = list(repeated) or [neutral]
    return values * dims if len(values) == 1 else values


def set_field(param: Any, field: str, values: list[int]) -> None:
    """Sets a window field, in the shortest way: nothing for what is neutral anyway, but for the kernel.

    Two values that differ go into `_h` and `_w`, which every reader of prototxts knows; dilation has none in Caffe.
    """
    if len(set(values)) <= 1:
        values = values[:1] or [NEUTRAL[field]]
    if len(values) == 2 and field in AXES:
        for name, value in zip(AXES[field], values, strict=True):
            setattr(param, name, value)
    elif field == "kernel_size" or any(value != NEUTRAL[field] for value in values):
        getattr(param, field)[:] = values


def split_weights(
    name: str, blobs: Mapping[int, np.ndarray], factors: Factors, transposed: bool = False
) -> dict[str, dict[int, np.ndarray]]:
    """The blobs of the chain: each part's weight, and the last's bias. `transposed`: an InnerProduct's weights are."""
    made = {}
    for part in factors.parts:
        weight = part.weight.T if transposed else part.weight
        made[part_name(name, part.slot)] = {0: _array(weight)}
    bias = {index: values for index, values in blobs.items() if index > 0}
    made[part_name(name, factors.parts[-1].slot)].update(bias)
    return made


def reason_to_skip(net: Any, name: str, weights: Weights, slots: Sequence[Slot]) -> str | None:
    """Why the layer `name` has to stay whole, None if it can be split into layers of those slots."""
    own = [layer for layer in net.layer if layer.name == name]
    others = [layer for layer in net.layer if layer.name != name]
    if any(layer.type != own[0].type for layer in own):
        return "its name also stands for a layer of another type"
    # the weight's name: a bias may be shared, it moves to the last part as it is
    shared = {spec.name for layer in own for spec in layer.param[:1] if spec.name}
    for layer in others:
        if shared & {spec.name for spec in layer.param}:
            return f"its weights are shared with layer '{layer.name}'"
    if 0 not in weights.get(name, {}):
        return "the snapshot has no weights for it"
    if taken := {part_name(name, slot) for slot in slots} & {layer.name for layer in others}:
        return f"the net has a layer '{min(taken)}' already"
    tops = {part_name(top, slot) for layer in own for top in layer.top for slot in slots[:-1]}
    if taken := tops & {blob for layer in others for blob in layer.top}:
        return f"the net has a blob '{min(taken)}' already"
    return None


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.cpu().numpy(), np.float32)
