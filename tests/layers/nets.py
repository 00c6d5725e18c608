"""One-layer nets for the layer tests."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.net.module import Net


def layer_text(kind: str, param: str, *shapes: Sequence[int], tops: int = 1) -> str:
    """A net of Input blobs x0, x1, ... and the layer `l` with tops y0, y1, ..."""
    lines = []
    for i, shape in enumerate(shapes):
        dims = " ".join(f"dim: {n}" for n in shape)
        lines.append(f'layer {{ name: "x{i}" type: "Input" top: "x{i}" input_param {{ shape {{ {dims} }} }} }}')
    blobs = " ".join([f'bottom: "x{i}"' for i in range(len(shapes))] + [f'top: "y{i}"' for i in range(tops)])
    return "\n".join([*lines, f'layer {{ name: "l" type: "{kind}" {blobs} {param} }}'])


def layer_net(
    kind: str, param: str, *shapes: Sequence[int], tops: int = 1, phase: str = "TEST", seed: int | None = 0
) -> Net:
    """The net of `layer_text`, loaded."""
    return load_net(layer_text(kind, param, *shapes, tops=tops), phase=phase, seed=seed)


def run(net: Net, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The tops y0, y1, ... for bottoms x0, x1, ..."""
    out = net({f"x{i}": x for i, x in enumerate(inputs)})
    return tuple(out[name] for name in net.spec.layers[-1].tops)


def apply(kind: str, param: str, *inputs: Tensor, tops: int = 1, phase: str = "TEST") -> tuple[Tensor, ...]:
    """The tops of a layer with these inputs, in their dtype."""
    net = layer_net(kind, param, *(x.shape for x in inputs), tops=tops, phase=phase)
    return run(net.to(inputs[0].dtype), *inputs)


def layer_error(kind: str, param: str, *shapes: Sequence[int], tops: int = 1) -> str:
    """The text of the error that building the layer raises, checked to open with place and layer name."""
    with pytest.raises(ForceregError) as info:
        layer_net(kind, param, *shapes, tops=tops)
    text = str(info.value)
    assert "\n" not in text
    where = f"<text>:{len(shapes) + 1}: layer 'l': "
    assert text.startswith(where), text
    return text.removeprefix(where)


def gradcheck(net: Net, *inputs: Tensor, top: int = 0) -> bool:
    """Whether the gradients of every input that requires one and of all parameters are right (float64)."""
    net = net.double()
    blobs = [p for p in net.parameters() if p.requires_grad]
    leaves = [x for x in inputs if x.requires_grad]

    def function(*_: Tensor) -> Tensor:
        return run(net, *inputs)[top]

    return torch.autograd.gradcheck(function, (*leaves, *blobs))


def noise(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    """Seeded float64 normal values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * spread
