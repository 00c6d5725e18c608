"""A small net, its batch, and lines to write others with."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.net.module import Net

NET = """
name: "small"
layer { name: "in" type: "Input" top: "data" top: "label"
  input_param { shape { dim: 4 dim: 2 dim: 6 dim: 6 } shape { dim: 4 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 3 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "drop" type: "Dropout" bottom: "conv" top: "drop" include { phase: TRAIN } }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "acc" type: "Accuracy" bottom: "ip" bottom: "label" top: "acc" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


def batch(count: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "data": torch.randn(count, 2, 6, 6, generator=generator),
        "label": torch.arange(float(count)) % 5,
    }


def ip(name: str, bottom: str, top: str, outputs: int, more: str = "", param: str = "") -> str:
    return (
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{top}" {more} inner_product_param '
        f"{{ num_output: {outputs} weight_filler {{ type: 'xavier' }} {param} }} }}"
    )


def inputs(**shapes: tuple[int, ...]) -> str:
    return "\n".join(
        f'layer {{ name: "in_{name}" type: "Input" top: "{name}" '
        f"input_param {{ shape {{ {' '.join(f'dim: {n}' for n in shape)} }} }} }}"
        for name, shape in shapes.items()
    )


def fails(model: Any, **more: Any) -> str:
    with pytest.raises(ForceregError) as info:
        load_net(model, **more)
    assert "\n" not in str(info.value)
    return str(info.value)


def module_copies(net: Net) -> dict[str, Net]:
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    return {
        "deepcopy": copy.deepcopy(net),
        "pickle": pickle.loads(pickle.dumps(net)),
        "save": torch.load(buffer, weights_only=False),
    }
