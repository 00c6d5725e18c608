"""Models in forms that only old or other writers produce: V0 and V1 layers, four axes, doubles, unpacked numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.schema import BlobProto, NetParameter, SolverState
from forcereg.schema.text import parse_text
from forcereg.snapshot import load_into, modern, read_model, read_state

NET = """
name: "old"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 4 } } }
layer {
  name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 1 kernel_size: 3 }
}
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip" inner_product_param { num_output: 5 } }
"""
SHAPES = {"conv": [(1, 3, 3, 3), (1, 1, 1, 1)], "ip": [(1, 1, 5, 4), (1, 1, 1, 5)]}


def values(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def put(blob: Any, array: np.ndarray) -> None:
    """As Caffe wrote arrays before they had a `shape`."""
    blob.num, blob.channels, blob.height, blob.width = array.shape
    blob.data.extend(array.reshape(-1))


def v1() -> Any:
    net = NetParameter(name="old")
    types = {"data": "MEMORY_DATA", "conv": "CONVOLUTION", "ip": "INNER_PRODUCT"}
    for name, kind in types.items():
        layer = net.layers.add(name=name, type=kind)
        for seed, shape in enumerate(SHAPES.get(name, [])):
            put(layer.blobs.add(), values(shape, seed))
    return net


def v0() -> Any:
    net = NetParameter(name="old")
    for name, kind in (("data", "data"), ("pad", "padding"), ("conv", "conv"), ("ip", "innerproduct")):
        layer = net.layers.add(bottom=["x"], top=["y"]).layer
        layer.name, layer.type = name, kind
        for seed, shape in enumerate(SHAPES.get(name, [])):
            put(layer.blobs.add(), values(shape, seed))
    return net


@pytest.mark.parametrize("form", [v1, v0])
def test_old_models_load_into_todays_net(form: Any, tmp_path: Path) -> None:
    path = tmp_path / "old.caffemodel"
    path.write_bytes(form().SerializeToString())
    model = read_model(path)
    assert model.legacy and {name: len(blobs) for name, blobs in model.layers.items() if blobs} == {"conv": 2, "ip": 2}
    net = load_net(NET, path)
    for name, shapes in SHAPES.items():
        for index, blob in enumerate(net.params[name]):
            expected = values(shapes[index], index).reshape(blob.shape)
            np.testing.assert_array_equal(blob.detach().numpy(), expected, err_msg=f"{name}/{index}")


def test_old_blobs_get_todays_axes(tmp_path: Path) -> None:
    path = tmp_path / "old.caffemodel"
    path.write_bytes(v1().SerializeToString())
    model = modern(read_model(path), {"conv": "Convolution", "ip": "InnerProduct"})
    assert not model.legacy
    shapes = {name: [values.shape for values in blobs.values()] for name, blobs in model.layers.items()}
    assert shapes == {"data": [], "conv": [(1, 3, 3, 3), (1,)], "ip": [(5, 4), (5,)]}


def test_only_leading_ones_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "old.caffemodel"
    path.write_bytes(v1().SerializeToString())
    model = read_model(path)
    load_into({"ip": [torch.zeros(1, 5, 4), torch.zeros(5)]}, model, {})
    for shape in ((4, 5), (5, 4, 1, 1), (20,), (1, 1, 1, 5, 4)):
        with pytest.raises(ForceregError, match=r"blob 0: shape \(1, 1, 5, 4\) in the file"):
            load_into({"ip": [torch.zeros(shape), torch.zeros(5)]}, model, {})


def test_todays_blobs_keep_their_leading_ones(tmp_path: Path) -> None:
    net = NetParameter()
    blob = net.layer.add(name="ip").blobs.add(data=range(20))
    blob.shape.dim.extend([1, 1, 5, 4])
    (tmp_path / "m").write_bytes(net.SerializeToString())
    with pytest.raises(ForceregError, match=r"shape \(1, 1, 5, 4\) in the file, \(5, 4\) in the net"):
        load_into({"ip": [torch.zeros(5, 4)]}, read_model(tmp_path / "m"), {})


def test_an_old_state_has_four_axes_too(tmp_path: Path) -> None:
    state = SolverState(iter=3, learned_net="m")
    put(state.history.add(), values((1, 1, 5, 4)))
    (tmp_path / "s").write_bytes(state.SerializeToString())
    found = read_state(tmp_path / "s")
    assert (found.legacy, found.current_step, found.history[0].shape) == (True, 0, (1, 1, 5, 4))


def test_a_double_build_is_read_as_float32(tmp_path: Path) -> None:
    net = NetParameter()
    blob = net.layer.add(name="ip").blobs.add(double_data=[0.1, 0.2], double_diff=[0.3, 0.4])
    blob.shape.dim.append(2)
    (tmp_path / "m").write_bytes(net.SerializeToString())
    model = read_model(tmp_path / "m")
    np.testing.assert_array_equal(model.layers["ip"][0], np.array([0.1, 0.2], np.float32))
    np.testing.assert_array_equal(model.diffs["ip"][0], np.array([0.3, 0.4], np.float32))
    assert model.layers["ip"][0].dtype == model.diffs["ip"][0].dtype == np.float32


@pytest.mark.parametrize("form", ["unpacked", "in-pieces", "both"])
def test_numbers_in_every_form_that_protobuf_allows(form: str, tmp_path: Path) -> None:
    numbers = values((6,))
    single = [b"\x2d" + number.tobytes() for number in numbers]  # field 5, four bytes
    packed = [b"\x2a\x0c" + numbers[i : i + 3].tobytes() for i in (0, 3)]
    content = b"".join({"unpacked": single, "in-pieces": packed, "both": [*single[:3], packed[1]]}[form])
    blob = content + BlobProto(shape={"dim": [2, 3]}).SerializeToString()
    assert list(BlobProto.FromString(blob).data) == numbers.tolist()
    layer = b"\x0a\x02ip" + b"\x3a" + bytes([len(blob)]) + blob
    (tmp_path / "m").write_bytes(b"\xa2\x06" + bytes([len(layer)]) + layer)
    np.testing.assert_array_equal(read_model(tmp_path / "m").layers["ip"][0], numbers.reshape(2, 3))


def test_the_forks_layers_are_read(tmp_path: Path) -> None:
    """Field 12 in each, and 147 and 148 for its own types: BVLC's Caffe could not parse the last."""
    net = parse_text('layer { name: "thre" type: "SymmetricRectify" display: true }', NetParameter)
    net.layer[0].blobs.add(data=[0.5]).shape.dim.append(1)
    data = net.layer[0].SerializeToString() + b"\xa2\x09\x02\x08\x01"  # 148 as the fork has it
    (tmp_path / "m").write_bytes(b"\xa2\x06" + bytes([len(data)]) + data)
    assert read_model(tmp_path / "m").layers["thre"][0].tolist() == [0.5]
