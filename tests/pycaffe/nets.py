"""Small nets for Caffe's Python interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import forcereg.pycaffe as caffe

DEPLOY = """
name: "small" force_backward: true
input: "data" input_dim: 2 input_dim: 3 input_dim: 8 input_dim: 8
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } bias_filler { type: "uniform" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "aux" type: "InnerProduct" bottom: "pool" top: "aux"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""
"""data (2, 3, 8, 8) -> prob (2, 5) and aux (2, 2), with a Split behind pool."""

TRAINED = """
name: "trained"
layer { name: "in" type: "Input" top: "x" top: "label" input_param { shape { dim: 4 dim: 6 } shape { dim: 4 } } }
layer { name: "ip1" type: "InnerProduct" bottom: "x" top: "ip1" param { lr_mult: 1 } param { lr_mult: 2 }
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "tanh" type: "TanH" bottom: "ip1" top: "tanh" }
layer { name: "ip2" type: "InnerProduct" bottom: "tanh" top: "ip2"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }
"""
"""x (4, 6), label (4) -> loss."""


def net_of(text: str, folder: Path, phase: int = caffe.TEST, **more: Any) -> Any:
    """The net of a text, by a file in `folder`."""
    file = folder / "net.prototxt"
    file.write_text(text)
    return caffe.Net(str(file), phase, **more)
