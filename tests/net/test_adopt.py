"""A net takes over other settings of some layers: what changes begins anew, all else stays the same object."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from forcereg.errors import ForceregError
from forcereg.layers import Layer
from forcereg.net.load import load_net
from forcereg.net.module import Net
from forcereg.schema.spec import LayerSpec, NetSpec
from tests.small_nets import inputs, ip

NET = "\n".join(
    [
        'name: "net"',
        inputs(data=(2, 3, 5, 5)),
        'layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 0 } '
        'convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }',
        'layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }',
        'layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "bn" }',
        ip("ip", "bn", "ip", 6),
        ip("last", "ip", "last", 2),
    ]
)


def with_outputs(spec: NetSpec, name: str, count: int) -> NetSpec:
    def changed(one: LayerSpec) -> LayerSpec:
        message = type(one.message)()
        message.CopyFrom(one.message)
        (message.convolution_param if one.type == "Convolution" else message.inner_product_param).num_output = count
        return replace(one, message=message)

    return replace(spec, layers=tuple(changed(one) if one.name == name else one for one in spec.layers))


def modules(net: Net) -> dict[str, Layer]:
    return {spec.name: net.module(spec.name) for spec, module in net.built if module is not None}


@pytest.mark.parametrize(
    ("name", "anew"), [("ip", {"ip", "last"}), ("last", {"last"}), ("conv", {"conv", "relu", "bn", "ip"})]
)
def test_what_changes_and_who_reads_it(name: str, anew: set[str]) -> None:
    """Up to where shapes are the same again."""
    net = load_net(NET, phase="TRAIN").double().eval()
    before, shapes = modules(net), dict(net.shapes)
    bias = before["last"].blobs[1]
    net.adopt(with_outputs(net.spec, name, 5))
    after = modules(net)
    assert {one for one, module in after.items() if module is not before[one]} == anew
    assert {blob for blob, shape in net.shapes.items() if shape != shapes[blob]} == {
        "ip": {"ip"}, "last": {"last"}, "conv": {"conv", "bn"}
    }[name]  # fmt: skip
    assert (after["last"].blobs[1] is bias) == (name != "last")
    for blobs in net.params.values():
        for blob in blobs:
            assert blob.dtype == torch.float64
            torch.nn.init.ones_(blob)
    assert not any(module.training for module in after.values())
    assert [one.lr_mult for one in net.learnable if one.layer == "conv"] == [0, 1]
    assert not net.params["conv"][0].requires_grad and net.params["conv"][1].requires_grad
    assert net(data=torch.ones(2, 3, 5, 5, dtype=torch.float64))["last"].shape == net.shapes["last"]


def test_there_and_back_shares_with_the_test_net() -> None:
    net, other = (load_net(NET, phase=phase) for phase in ("TRAIN", "TEST"))
    other.share_params(net)
    for count in (3, 6):
        for one in (net, other):
            one.adopt(with_outputs(one.spec, "ip", count))
        other.share_params(net)
        assert all(a is b for name, blobs in net.params.items() for a, b in zip(blobs, other.params[name], strict=True))
        assert net.params["ip"][0].shape == (count, 36)


def test_what_does_not_fit() -> None:
    net = load_net(NET)
    with pytest.raises(ForceregError, match="layer 'conv': num_output is missing"):
        net.adopt(with_outputs(net.spec, "conv", 0))
