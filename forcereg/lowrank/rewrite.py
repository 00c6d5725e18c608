"""Nets and weights with convolutions replaced by low-rank pairs (pure functions on messages and arrays)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from forcereg.lowrank.factor import Factors
from forcereg.schema import NetParameter

Weights = Mapping[str, Mapping[int, np.ndarray]]
"""Layer name -> position of the blob in its layer -> values."""

_WINDOW = ["kernel_size", "kernel_h", "kernel_w", "pad", "pad_h", "pad_w", "stride", "stride_h", "stride_w", "dilation"]


def lowrank_name(name: str) -> str:
    """Of the layer with the basis filters; its tops are called the same way."""
    return f"{name}_lowrank"


def linear_name(name: str) -> str:
    """Of the 1x1 layer that combines them."""
    return f"{name}_linear"


def rewrite(net: Any, weights: Weights, factors: Mapping[str, Factors]) -> tuple[Any, dict[str, dict[int, np.ndarray]]]:
    """A new NetParameter and new weights in which every convolution named in `factors` is a low-rank pair.

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
            blobs.update(split_weights(name, values, factors[name]))
        elif values or name in names:
            blobs[name] = dict(values)
    return new, blobs


def split(layer: Any, factors: Factors) -> list[Any]:
    """The two layers that replace one Convolution LayerParameter.

    `<name>_lowrank` has its kernel, stride, pad, dilation, group and first ParamSpec, and no bias;
    `<name>_linear` is 1x1 with its group, ParamSpecs and bias, and writes its tops. Both keep its rules.
    """
    lowrank, linear = type(layer)(), type(layer)()
    for part in (lowrank, linear):
        part.CopyFrom(layer)
        part.ClearField("blobs")
        if part.param:
            part.param[0].ClearField("name")  # the name was for one blob, and nobody shared it

    lowrank.name = lowrank_name(layer.name)
    lowrank.top[:] = [lowrank_name(top) for top in layer.top]
    del lowrank.param[1:]
    lowrank.ClearField("loss_weight")
    lowrank.convolution_param.num_output = factors.rank
    lowrank.convolution_param.bias_term = False
    lowrank.convolution_param.ClearField("bias_filler")

    linear.name = linear_name(layer.name)
    linear.bottom[:] = lowrank.top
    linear.ClearField("propagate_down")  # the original's is about its bottom, which the first part reads
    for field in _WINDOW:
        linear.convolution_param.ClearField(field)
    linear.convolution_param.kernel_size[:] = [1]
    return [lowrank, linear]


def split_weights(name: str, blobs: Mapping[int, np.ndarray], factors: Factors) -> dict[str, dict[int, np.ndarray]]:
    """The blobs of both layers: basis filters; combining weights with trailing 1x1 axes, and the bias."""
    combine = factors.combine.reshape(*factors.combine.shape, *[1] * (factors.basis.dim() - 2))
    bias = {index: values for index, values in blobs.items() if index > 0}
    return {
        lowrank_name(name): {0: _array(factors.basis)},
        linear_name(name): {0: _array(combine), **bias},
    }


def reason_to_skip(net: Any, name: str, weights: Weights) -> str | None:
    """Why the convolution `name` has to stay whole, None if it can be split."""
    own = [layer for layer in net.layer if layer.name == name]
    others = [layer for layer in net.layer if layer.name != name]
    if any(layer.type != "Convolution" for layer in own):
        return "its name also stands for a layer of another type"
    shared = {spec.name for layer in own for spec in layer.param[:1] if spec.name}
    for layer in others:
        if shared & {spec.name for spec in layer.param}:
            return f"its weights are shared with layer '{layer.name}'"
    if 0 not in weights.get(name, {}):
        return "the snapshot has no weights for it"
    made = {lowrank_name(name), linear_name(name)}
    if taken := made & {layer.name for layer in others}:
        return f"the net has a layer '{min(taken)}' already"
    tops = {lowrank_name(top) for layer in own for top in layer.top}
    if taken := tops & {blob for layer in others for blob in layer.top}:
        return f"the net has a blob '{min(taken)}' already"
    return None


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.cpu().numpy(), np.float32)
