"""A net's weights in safetensors and other formats that want each tensor in one piece."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from forcereg.net.load import load_net
from forcereg.net.module import Net
from tests.small_nets import NET, batch, inputs, ip

SHARED = "\n".join(
    [
        inputs(a=(2, 3), b=(2, 3)),
        ip("one", "a", "ya", 4, 'param { name: "w" } param { name: "b" }'),
        ip("two", "b", "yb", 4, 'param { name: "w" } param { name: "b" }'),
    ]
)


def wide(seed: int) -> Net:
    """With a weight that lies channels_last, whose layout shows: several channels, a window."""
    net = load_net(NET, seed=seed)
    assert not net.module("conv").weight_blob().is_contiguous()
    return net


def test_state_dict_is_contiguous_and_goes_back() -> None:
    net, other = wide(1), wide(2)
    state = net.state_dict()
    assert all(value.is_contiguous() for value in state.values())
    assert list(state) == [name for name, _ in (*net.named_parameters(), *net.named_buffers())] or set(state) == {
        *dict(net.named_parameters()),
        *dict(net.named_buffers()),
    }
    assert state["layers.ip.weight"].data_ptr() == net.module("ip").weight_blob().data_ptr()
    other.load_state_dict(state)
    assert not other.module("conv").weight_blob().is_contiguous()
    for name, value in net(batch()).items():
        torch.testing.assert_close(other(batch())[name], value, rtol=0, atol=0)


def test_variables_are_kept_where_asked_for() -> None:
    net = wide(1)
    assert net.state_dict(keep_vars=True)["layers.conv.weight"] is net.module("conv").weight_blob()
    inside = torch.nn.Sequential(net).state_dict()
    assert inside["0.layers.conv.weight"].is_contiguous()


def test_save_file_and_back(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="pip install safetensors")
    net, other = wide(1), wide(2)
    safetensors.save_file(net.state_dict(), tmp_path / "net.safetensors")
    other.load_state_dict(safetensors.load_file(tmp_path / "net.safetensors"))
    for name, value in net(batch()).items():
        torch.testing.assert_close(other(batch())[name], value, rtol=0, atol=0)


def test_shared_weights_go_by_save_model(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="pip install safetensors")
    net, other = load_net(SHARED, seed=1), load_net(SHARED, seed=2)
    safetensors.save_model(net, str(tmp_path / "net.safetensors"))
    safetensors.load_model(other, str(tmp_path / "net.safetensors"))
    x = {"a": torch.rand(2, 3), "b": torch.rand(2, 3)}
    for name, value in net(x).items():
        torch.testing.assert_close(other(x)[name], value, rtol=0, atol=0)
    assert other.module("one").weight_blob() is other.module("two").weight_blob()
