"""A small net and its snapshot, as `forcereg train` writes it, for tests of what decomposes it."""

from __future__ import annotations

import json
from pathlib import Path

from forcereg.net.load import load_net
from forcereg.net.module import Net
from forcereg.snapshot import write_model

NET = """
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  data_param { source: "absent_lmdb" batch_size: 4 backend: LMDB } }
layer { name: "data" type: "Input" top: "data" include { phase: TEST }
  input_param { shape { dim: 2 dim: 3 dim: 12 dim: 12 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" param { force_mult: 1 }
  convolution_param { num_output: 8 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2"
  convolution_param { num_output: 6 kernel_size: 5 group: 2 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "conv2" top: "ip"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" include { phase: TRAIN } }
"""
INPUTS = {"data": [4, 3, 12, 12], "label": [4]}


def write_snapshot(path: Path, net: Net) -> Path:
    """Its file, which holds the net, the inputs' shapes and a seed."""
    blobs = {name: {i: b.detach().numpy() for i, b in enumerate(held)} for name, held in net.params.items()}
    attrs = {"forcereg_net": net.spec.text, "forcereg_input_shapes": json.dumps(INPUTS), "forcereg_seed": "1"}
    write_model(path, blobs, attrs=attrs)
    return path


def fresh_snapshot(folder: Path, text: str = NET) -> Path:
    """Of the net with random weights."""
    return write_snapshot(folder / "snap_iter_7.caffemodel.h5", load_net(text, seed=1))
