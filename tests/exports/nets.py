"""Nets with random weights as snapshots, and what ONNX Runtime makes of a net's file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcereg.exports.dims import Open, batch_axes, sizes_of
from forcereg.exports.graph import Varying
from forcereg.exports.model import Written, check_types, to_model
from forcereg.exports.onnx import OPSET
from forcereg.layers.norm import BatchNorm
from forcereg.net.load import load_net
from forcereg.net.module import Net
from forcereg.snapshot import write_model

NORMED = """
name: "normed"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 10 dim: 10 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 8 kernel_size: 3 weight_filler { type: "xavier" } bias_term: false } }
layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "bn1" }
layer { name: "scale1" type: "Scale" bottom: "bn1" top: "bn1" scale_param { bias_term: true
  filler { type: "uniform" min: 0.5 max: 2 } bias_filler { type: "gaussian" } } }
layer { name: "relu1" type: "ReLU" bottom: "bn1" top: "bn1" }
layer { name: "conv2" type: "Convolution" bottom: "bn1" top: "conv2"
  convolution_param { num_output: 8 kernel_size: 3 group: 2 weight_filler { type: "xavier" } } }
layer { name: "pool" type: "Pooling" bottom: "conv2" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "drop" type: "Dropout" bottom: "pool" top: "pool" }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "sig" type: "Sigmoid" bottom: "ip" top: "ip" }
"""
"""A net with a BatchNorm to fold, groups, and layers that work in place."""


def filled(model: Any, seed: int = 1) -> Net:
    """A net with values from a seed, BatchNorm's statistics too."""
    net = load_net(model, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for _, module in net.built:
        if isinstance(module, BatchNorm):
            module.weight_blob("mean").copy_(torch.randn(module.channels, generator=generator))
            module.weight_blob("variance").copy_(torch.rand(module.channels, generator=generator) + 1)
            module.weight_blob("factor").fill_(2)
    return net


def snapshot_of(model: Any, path: Path, seed: int = 1) -> Net:
    """Writes a net's values from a seed, with its text, as a snapshot; the net."""
    net = filled(model, seed)
    blobs = {name: {at: blob.detach().numpy() for at, blob in enumerate(held)} for name, held in net.params.items()}
    write_model(path, blobs, attrs={"forcereg_net": net.spec.text})
    return net


def written(net: Net, open_axes: Open | None = None, opset: int = OPSET) -> Written:
    """The net as a model; with the batch open where that can be, unless `open_axes` says what is."""
    check_types(net)
    if open_axes is None:
        try:
            open_axes = batch_axes(net)
            return to_model(net, sizes_of(net, open_axes), open_axes, opset)
        except Varying:
            open_axes = {}
    return to_model(net, sizes_of(net, open_axes), open_axes, opset)


def run(model: Written, inputs: Mapping[str, np.ndarray | Tensor]) -> dict[str, np.ndarray]:
    """What ONNX Runtime gives for a model that onnx's own checks let pass, by the names in the file."""
    import onnx
    import onnxruntime

    image = b"".join(model.pieces())
    onnx.checker.check_model(image, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(image, options)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {name: np.asarray(x) for name, x in inputs.items()}), strict=True))


def operators(model: Written) -> list[str]:
    """Its nodes' operators, in order."""
    return [node.op_type for node in model.proto.graph.node]


def outputs(net: Net, model: Written, found: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Each output of the net with the file's values for it, which may have another name where an input has that."""
    yield from zip(net.spec.outputs, (found[value.name] for value in model.proto.graph.output), strict=True)
