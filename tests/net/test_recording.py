"""Nets that torch traces or exports: one operation for each layer, and what they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from forcereg.layers.norm import BatchNorm
from forcereg.net.load import load_net
from forcereg.net.module import Net
from tests.conftest import TOP
from tests.layers.nets import layer_net, noise

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")

NETS = {
    "lenet": "examples/mnist/lenet",
    "cifar10_full": "examples/cifar10/cifar10_full",
    "resnet20": "examples/cifar10/cifar10_resnet20",
    "alexnet": "models/alexnet/deploy",
    "googlenet": "models/googlenet/deploy",
}


def built(name: str) -> Net:
    """With statistics, which a net that was never trained lacks."""
    path = TOP / f"configs/{NETS[name]}.prototxt"
    shape = (1, *load_net(path).shapes["data"][1:]) if name in ("lenet", "cifar10_full", "resnet20") else None
    net = load_net(path, seed=1, input_shapes={"data": shape} if shape else None)
    for module in net.modules():
        if isinstance(module, BatchNorm):
            module.weight_blob("variance").fill_(1)
            module.weight_blob("factor").fill_(1)
    return net


def batch(net: Net) -> Tensor:
    return torch.rand(1, *net.shapes["data"][1:], generator=torch.Generator().manual_seed(2)) * 100


def traced(net: Net, x: Tensor) -> tuple[Any, int]:
    module = torch.jit.trace(net, x, strict=False, check_trace=False)
    kinds = [node.kind() for node in module.inlined_graph.nodes()]
    assert not [kind for kind in kinds if "Python" in kind]
    return module, sum(kind in ("aten::_convolution", "aten::conv2d") for kind in kinds)


def exported(net: Net, x: Tensor) -> tuple[Any, int]:
    program = torch.export.export(net, (x,), strict=False)
    return program.module(), sum("aten.conv" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("way", [traced, exported])
@pytest.mark.parametrize("name", NETS)
def test_a_convolution_is_one(name: str, way: Any) -> None:
    net = built(name)
    x = batch(net)
    with torch.no_grad():
        wanted = net(x)
        module, convolutions = way(net, x)
        found = module(x)
    assert convolutions == sum(spec.type == "Convolution" for spec in net.spec.layers) > 1
    assert list(found) == list(wanted) == ["prob"]
    torch.testing.assert_close(found["prob"], wanted["prob"], rtol=1e-5, atol=1e-5)


def test_the_split_convolution_is_back_behind_it() -> None:
    net = built("lenet")
    x = batch(net)
    before = net(x)["prob"]
    traced(net, x)
    exported(net, x)
    assert torch.equal(net(x)["prob"], before)
    names = {node.name() for node in _backward(before)}
    assert "TwoHalvesBackward" in names


def _backward(y: Tensor) -> list[Any]:
    found, left = [], [y.grad_fn]
    while left:
        node = left.pop()
        if node is not None:
            found.append(node)
            left += [other for other, _ in node.next_functions]
    return found


def test_a_traced_net_is_saved_and_takes_other_batches(tmp_path: Path) -> None:
    net = built("lenet")
    torch.jit.save(torch.jit.trace(net, batch(net), strict=False), tmp_path / "net.pt")
    x = torch.rand(5, *net.shapes["data"][1:])
    found = torch.jit.load(tmp_path / "net.pt")(x)
    torch.testing.assert_close(found["prob"], net(x)["prob"], rtol=1e-5, atol=1e-5)


OWN = {
    "Clip": ("clip_param { min: -0.5 max: 0.5 }", (2, 3, 5, 5)),
    "MVN": ("", (2, 3, 5, 5)),
    "LRN": ("lrn_param { local_size: 3 alpha: 0.5 beta: 0.75 k: 2 }", (2, 6, 5, 5)),
    "LRN-wide": ("lrn_param { local_size: 101 alpha: 0.5 beta: 0.6 }", (2, 6, 5, 5)),
    "LRN-within": ("lrn_param { local_size: 3 alpha: 0.5 norm_region: WITHIN_CHANNEL }", (2, 3, 5, 5)),
    "Sparsify": ("sparsify_param { coef: 0.1 thre: 0.2 }", (2, 3, 5, 5)),
    "SymmetricRectify": ("symmetric_rectify_param { thre_decay: 0.1 filler { value: 0.2 } }", (2, 3, 5, 5)),
    "Pooling": ("pooling_param { kernel_size: 3 stride: 2 pad: 2 }", (2, 3, 7, 6)),
    "InnerProduct": ("inner_product_param { num_output: 4 weight_filler { type: 'xavier' } }", (2, 3, 5, 5)),
}
"""Layers whose gradient or passes are forcereg's own, and their input."""


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("gradients", [True, False])
def test_layers_of_own_gradients(name: str, gradients: bool, tmp_path: Path) -> None:
    param, shape = OWN[name]
    net = layer_net(name.partition("-")[0], param, shape)
    x = noise(*shape).float().requires_grad_(gradients)
    wanted = net(x)["y0"]
    torch.jit.save(torch.jit.trace(net, x, strict=False), tmp_path / "net.pt")
    for module in (torch.jit.load(tmp_path / "net.pt"), torch.export.export(net, (x,), strict=False).module()):
        torch.testing.assert_close(module(x)["y0"], wanted, rtol=1e-5, atol=1e-5)
