"""Weights of caffe.Net: saved, loaded, shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import forcereg.pycaffe as caffe
from forcereg.schema import NetParameter
from tests.pycaffe.nets import DEPLOY, net_of


def changed(net: Any, by: float = 1) -> Any:
    for blobs in net.params.values():
        for blob in blobs:
            blob.data[...] += by
    return net


def test_binary(deploy: Any, tmp_path: Path) -> None:
    deploy.save(str(tmp_path / "w.caffemodel"))
    message = NetParameter.FromString((tmp_path / "w.caffemodel").read_bytes())
    assert [layer.name for layer in message.layer] == list(deploy._layer_names)
    assert [layer.type for layer in message.layer][:5] == ["Input", "Convolution", "ReLU", "Pooling", "Split"]
    blobs = message.layer[1].blobs
    assert list(blobs[0].shape.dim) == [4, 3, 3, 3] and not blobs[0].diff
    np.testing.assert_array_equal(np.array(blobs[0].data, np.float32), deploy.params["conv"][0].data.ravel())


def test_hdf5(deploy: Any, tmp_path: Path) -> None:
    deploy.save_hdf5(str(tmp_path / "w.h5"))
    with h5py.File(tmp_path / "w.h5") as file:
        assert set(file["data"]) == set(deploy._layer_names) and not len(file["data/relu"])
        np.testing.assert_array_equal(file["data/conv/0"], deploy.params["conv"][0].data)
    other = changed(net_of(DEPLOY, tmp_path))
    other.load_hdf5(str(tmp_path / "w.h5"))
    np.testing.assert_array_equal(other.params["conv"][0].data, deploy.params["conv"][0].data)


@pytest.mark.parametrize("name", ["w.caffemodel", "w.h5"])
def test_copy_from(deploy: Any, tmp_path: Path, name: str) -> None:
    """By layer name; what was edited before counts no more, and arrays held before show what was loaded."""
    save = deploy.save if name.endswith("caffemodel") else deploy.save_hdf5
    save(str(tmp_path / name))
    text = DEPLOY.replace('name: "aux"', 'name: "other"').replace('"aux"', '"other"')
    net = changed(net_of(text, tmp_path))
    held, kept = net.params["conv"][0].data, net.params["other"][0].data.copy()
    net.params["ip"][1].diff[...] = 3
    net.copy_from(str(tmp_path / name))
    np.testing.assert_array_equal(held, deploy.params["conv"][0].data)
    np.testing.assert_array_equal(net.params["other"][0].data, kept)
    assert (net.params["ip"][1].diff == 3).all()
    message = NetParameter()
    message.layer.add(name="ip", type="InnerProduct")
    (tmp_path / "bare.caffemodel").write_bytes(message.SerializeToString())
    with pytest.raises(RuntimeError, match="has no blobs in the file"):
        net.copy_from(tmp_path / "bare.caffemodel")
    wrong = net_of(DEPLOY.replace("num_output: 5", "num_output: 6"), tmp_path)
    with pytest.raises(RuntimeError, match="ip"):
        wrong.copy_from(str(tmp_path / name))
    with pytest.raises(RuntimeError, match="none"):
        wrong.copy_from("none.caffemodel")


def test_a_file_of_other_layers_changes_nothing(deploy: Any, tmp_path: Path) -> None:
    deploy.save(str(tmp_path / "w.caffemodel"))
    text = DEPLOY
    for name in ("conv", "ip", "aux"):
        text = text.replace(f'name: "{name}"', f'name: "{name}2"')
    net = net_of(text, tmp_path)
    before = net.params["conv2"][0].data.copy()
    net.copy_from(str(tmp_path / "w.caffemodel"))
    np.testing.assert_array_equal(net.params["conv2"][0].data, before)


def test_share_with(deploy: Any, tmp_path: Path) -> None:
    other = net_of(DEPLOY.replace('name: "aux"', 'name: "own"'), tmp_path)
    own = other.params["own"][0].data
    other.share_with(deploy)
    assert np.shares_memory(other.params["ip"][0].data, deploy.params["ip"][0].data)
    for net, value in ((deploy, 0.5), (other, 0.25)):
        for name in ("conv", "ip"):
            net.params[name][0].data[...] = value
            assert (other.params[name][0].data == value).all() and (deploy.params[name][0].data == value).all()
    x = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    deploy.params["conv"][1].data[...] = 0.125
    np.testing.assert_array_equal(other.forward(data=x)["prob"], deploy.forward(data=x)["prob"])
    for net in (deploy, other):
        net.blobs["prob"].diff[:, 0] = 1
    deploy.backward()
    assert deploy.params["conv"][0].diff.any() and not other.params["conv"][0].diff.any()
    other.backward()
    np.testing.assert_allclose(other.params["conv"][0].diff, deploy.params["conv"][0].diff, rtol=1e-6)
    assert np.shares_memory(own, other.params["own"][0].data)
    wrong = net_of(DEPLOY.replace("num_output: 5", "num_output: 6"), tmp_path)
    with pytest.raises(RuntimeError):
        wrong.share_with(deploy)


def test_weights_shared_by_name(tmp_path: Path) -> None:
    text = """
    force_backward: true
    layer { name: "in" type: "Input" top: "a" top: "b" input_param { shape { dim: 2 dim: 3 } } }
    layer { name: "one" type: "InnerProduct" bottom: "a" top: "one" param { name: "w" }
      inner_product_param { num_output: 3 bias_term: false weight_filler { type: "xavier" } } }
    layer { name: "two" type: "InnerProduct" bottom: "b" top: "two" param { name: "w" }
      inner_product_param { num_output: 3 bias_term: false weight_filler { type: "xavier" } } }
    """
    net = net_of(text, tmp_path)
    one, two = net.params["one"][0], net.params["two"][0]
    one.data[...] = np.eye(3)
    a = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(net.forward(a=a, b=a)["two"], a)
    net.backward(one=np.ones((2, 3)), two=np.ones((2, 3)))
    np.testing.assert_array_equal(one.diff, np.tile(2 * a.sum(0), (3, 1)))
    assert np.shares_memory(one.diff, two.diff) and np.shares_memory(one.data, two.data)


def test_surgery_from_fully_connected_to_convolution(deploy: Any, tmp_path: Path) -> None:
    conv = 'name: "ip" type: "Convolution" bottom: "pool" top: "ip"\n  convolution_param { kernel_size: 3 num_output: 5'
    text = DEPLOY.replace(
        'name: "ip" type: "InnerProduct" bottom: "pool" top: "ip"\n  inner_product_param { num_output: 5', conv
    )
    full = net_of(text.replace('type: "Softmax"', 'type: "Softmax" '), tmp_path)
    for name in ("conv", "ip"):
        for index in range(2):
            full.params[name][index].data.flat = deploy.params[name][index].data.flat
    x = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    np.testing.assert_allclose(
        full.forward(data=x)["prob"].reshape(2, 5), deploy.forward(data=x)["prob"], rtol=1e-5, atol=1e-7
    )
    assert caffe.TEST == 1
