"""Layers of torch.nn as nets of their own, which other runtimes than torch can be given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from forcereg.errors import ForceregError
from forcereg.net.module import Net
from forcereg.nn.kinds import is_transposed
from forcereg.schema import LayerParameter
from forcereg.study.latency import layer_net


def as_net(module: Any, x: Tensor, where: str) -> tuple[Net, Tensor]:
    """A layer of KINDS, or a chain of them, as a net with random weights, and the input `x` as the net takes it.

    In float32, an item alone as a batch of one. Raises ForceregError, which names `where`, for what Caffe's layers, and
    so our ONNX files, can't say.
    """
    parts: list[Any] = list(module) if isinstance(module, nn.Sequential) else [module]
    first = parts[0]
    alone = x.dim() < (2 if isinstance(first, nn.Linear) else first.weight.dim())
    fed = (x.unsqueeze(0) if alone else x).float()
    layers = [message(part, at, fed.dim(), where) for at, part in enumerate(parts)]
    return layer_net(layers, {"x0": tuple(fed.shape)}, torch.device("cpu")), fed


def message(layer: Any, at: int, dims: int, where: str) -> Any:
    """The LayerParameter of the layer at a place in a row, for an input of so many axes."""
    made = LayerParameter(name=f"part{at}", bottom=[f"x{at}"], top=[f"x{at + 1}"])
    if isinstance(layer, nn.Linear):
        made.type = "InnerProduct"
        param = made.inner_product_param
        param.num_output, param.axis, param.bias_term = layer.out_features, dims - 1, layer.bias is not None
        return made
    if unsaid := list(beyond(layer)):
        why = f'no ONNX file is written of its {unsaid[0]}; leave it out by layers=, or measure by runtime="torch"'
        raise ForceregError(f"layer '{where}': {why}")
    made.type = "Deconvolution" if is_transposed(layer) else "Convolution"
    found = made.convolution_param
    found.num_output, found.group, found.bias_term = layer.out_channels, layer.groups, layer.bias is not None
    found.kernel_size[:], found.stride[:], found.dilation[:] = layer.kernel_size, layer.stride, layer.dilation
    found.pad[:] = pads(layer)
    return made


def beyond(layer: Any) -> Iterator[str]:
    """What a convolution has that Caffe's hasn't."""
    if layer.padding_mode != "zeros":
        yield f"padding_mode '{layer.padding_mode}'"
    if any(layer.output_padding):
        yield f"output_padding {tuple(layer.output_padding)}"
    if layer.padding == "same" and any(whole % 2 for whole in same(layer)):
        yield "padding 'same', which is uneven here"


def pads(layer: Any) -> list[int]:
    """Before each axis, and as much behind it."""
    if layer.padding == "same":
        return [whole // 2 for whole in same(layer)]
    return [0] * len(layer.kernel_size) if layer.padding == "valid" else list(layer.padding)


def same(layer: Any) -> list[int]:
    """What padding "same" adds to each axis in all."""
    return [dilation * (size - 1) for size, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
