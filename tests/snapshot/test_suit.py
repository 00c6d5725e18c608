"""Weights of an InnerProduct in a Convolution and back, and NVCaffe's statistics without a factor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.net.module import Net
from forcereg.schema import NetParameter
from forcereg.schema.text import parse_net
from forcereg.snapshot import ModelFile, net_message, read_model, suited, suited_to, write_model
from forcereg.solver.loop import Solver
from tests.conftest import RunCli
from tests.small_nets import inputs

WEIGHTS = "weight_filler { type: 'gaussian' std: 1 } bias_filler { type: 'gaussian' std: 1 }"


def dense(outputs: int, size: tuple[int, ...] = (2, 4, 3, 5), more: str = "") -> str:
    return f"""{inputs(x=size)}
    layer {{ name: "fc" type: "InnerProduct" bottom: "x" top: "y"
      inner_product_param {{ num_output: {outputs} {more} {WEIGHTS} }} }}"""


def convolutional(outputs: int, size: tuple[int, ...] = (2, 4, 3, 5), kernel: str = "kernel_h: 3 kernel_w: 5") -> str:
    return f"""{inputs(x=size)}
    layer {{ name: "fc" type: "Convolution" bottom: "x" top: "y"
      convolution_param {{ num_output: {outputs} {kernel} {WEIGHTS} }} }}"""


def saved(net: Net, folder: Path, kind: str) -> Path:
    blobs = {name: {i: blob.detach().numpy() for i, blob in enumerate(own)} for name, own in net.params.items()}
    if kind == "caffe":  # as Caffe itself writes: no text of the net
        message = net_message(net.spec)
        for layer in message.layer:
            for values in blobs[layer.name].values():
                layer.blobs.add(data=values.reshape(-1)).shape.dim.extend(values.shape)
        (folder / "m.caffemodel").write_bytes(message.SerializeToString())
        return folder / "m.caffemodel"
    path = folder / ("m.caffemodel.h5" if kind == "hdf5" else "m.caffemodel")
    binary = None if kind == "hdf5" else net_message(net.spec)
    write_model(path, blobs, attrs={"forcereg_net": net.spec.text}, net=binary)
    return path


def same_outputs(old: Net, new: Net) -> None:
    x = torch.randn(old.shapes["x"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(new(x=x)["y"].flatten(1), old(x=x)["y"].flatten(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["hdf5", "binary", "caffe"])
@pytest.mark.parametrize("more", ["", "transpose: true"], ids=["plain", "transposed"])
@pytest.mark.parametrize("outputs", [7, 60], ids=["rectangular", "square"])
def test_both_ways_compute_the_same(kind: str, more: str, outputs: int, tmp_path: Path) -> None:
    one, other = dense(outputs, more=more), convolutional(outputs)
    for source, target, words in (
        (one, other, "taken as Convolution weights [{n}, 4, 3, 5]"),
        (other, one, "Convolution weights [{n}, 4, 3, 5] taken as InnerProduct weights"),
    ):
        old = load_net(source, seed=1)
        path = saved(old, tmp_path, kind)
        with pytest.warns(UserWarning) as caught:
            new = load_net(target, path)
        (text,) = [str(one.message) for one in caught]
        assert text.startswith(f"{path}: layer 'fc': ") and words.format(n=outputs) in text
        same_outputs(old, new)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_order_and_count(outputs: int, channels: int, height: int, width: int, transposed: bool) -> None:
    size = (1, channels, height, width)
    values = np.random.default_rng(0).normal(size=(outputs, channels * height * width)).astype(np.float32)
    stored = values.T if transposed else values
    found = ModelFile(Path("m"), {"fc": {0: stored}}, {}, transposed=frozenset(["fc"] if transposed else []))
    net = load_net(convolutional(outputs, size, f"kernel_h: {height} kernel_w: {width} bias_term: false"))
    weight = suited(found, net).layers["fc"][0]
    np.testing.assert_array_equal(weight, values.reshape(outputs, channels, height, width))
    by_message = suited_to(found, [spec.message for spec in net.spec.layers]).layers["fc"][0]
    np.testing.assert_array_equal(by_message, weight)
    back = load_net(dense(outputs, size, f"bias_term: false transpose: {str(transposed).lower()}"))
    model = ModelFile(Path("m"), {"fc": {0: weight}}, {})
    np.testing.assert_array_equal(suited(model, back).layers["fc"][0], stored)


@pytest.mark.parametrize("model", [dense(7), convolutional(7)], ids=["fc", "conv"])
def test_equal_shapes_are_left_alone(model: str, tmp_path: Path) -> None:
    net = load_net(model, seed=1)
    found = read_model(saved(net, tmp_path, "hdf5"))
    assert suited(found, net) is found


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (dense(7), convolutional(7, kernel="kernel_size: 3")),
        (dense(7), convolutional(6)),
        (dense(8), convolutional(8, kernel="kernel_h: 3 kernel_w: 5 group: 2")),
        (convolutional(6), dense(7)),
        (convolutional(7, kernel="kernel_size: 3"), dense(7)),
        (dense(7, more="transpose: true"), dense(7)),
        (dense(7).replace('"fc"', '"fc6"'), convolutional(7)),
    ],
    ids=["kernel", "outputs", "group", "outputs-back", "kernel-back", "transpose", "name"],
)
def test_all_else_is_refused(source: str, target: str, tmp_path: Path) -> None:
    path = saved(load_net(source, seed=1), tmp_path, "hdf5")
    with pytest.raises(ForceregError) as error:
        load_net(target, path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("outputs", [1, 5])
def test_legacy_weights_have_four_axes(outputs: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(outputs, 60)).astype(np.float32)
    message = NetParameter(name="old")
    layer = message.layers.add(name="fc", type="INNER_PRODUCT")
    for array in (values.reshape(1, 1, outputs, 60), np.ones((1, 1, 1, outputs), np.float32)):
        blob = layer.blobs.add(data=array.reshape(-1))
        blob.num, blob.channels, blob.height, blob.width = array.shape
    (tmp_path / "old.caffemodel").write_bytes(message.SerializeToString())
    with pytest.warns(UserWarning, match="InnerProduct weights .* taken as"):
        net = load_net(convolutional(outputs), tmp_path / "old.caffemodel")
    weight, bias = net.params["fc"]
    np.testing.assert_array_equal(weight.detach().numpy(), values.reshape(outputs, 4, 3, 5))
    assert bias.tolist() == [1] * outputs


LOSS = 'layer { name: "loss" type: "EuclideanLoss" bottom: "y" bottom: "z" top: "loss" }'


def write_solver(folder: Path, more: str = "") -> Path:
    data = """layer { name: "data" type: "DummyData" top: "x" top: "z"
      dummy_data_param { shape { dim: [2, 4, 3, 5] } shape { dim: [2, 7, 1, 1] } } }"""
    layers = convolutional(7).replace(inputs(x=(2, 4, 3, 5)), data)
    (folder / "net.prototxt").write_text(f"{layers}\n{LOSS}")
    solver = folder / "solver.prototxt"
    solver.write_text(f'net: "net.prototxt" base_lr: 0.01 lr_policy: "fixed" max_iter: 1 snapshot_prefix: "s" {more}')
    return solver


def test_a_solver_loads_them_and_says_so(tmp_path: Path) -> None:
    path = saved(load_net(dense(7), seed=1), tmp_path, "hdf5")
    solver = Solver(write_solver(tmp_path))
    with pytest.warns(UserWarning, match="InnerProduct weights .* taken as"):
        report = solver.load_weights(path)
    assert report.loaded == ("fc",) and len(report.remarks) == 1
    assert report.lines()[0] == report.remarks[0]


def test_commands_say_what_they_did(run_cli: RunCli, tmp_path: Path) -> None:
    path = saved(load_net(dense(7), seed=1), tmp_path, "binary")
    remark = "layer 'fc': InnerProduct weights [7, 60] taken as Convolution weights [7, 4, 3, 5], which are as many"
    write_solver(tmp_path, f'weights: "{path}"')
    (tmp_path / "deploy.prototxt").write_text(convolutional(7))
    for arguments in (
        ("check", "solver.prototxt"),
        ("decompose", "--snapshot", str(path), "--model", "deploy.prototxt", "--ranks", "2", "--out", "out"),
        ("test", "--model", "net.prototxt", "--weights", str(path), "--iterations", "1"),
        ("train", "--solver", "solver.prototxt", "--weights", str(path)),
    ):
        done = run_cli(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (done.stdout + done.stderr).count(remark) == 1


# -- BatchNorm

NORM = f"""{inputs(x=(2, 3, 4, 4))}
layer {{ name: "bn" type: "BatchNorm" bottom: "x" top: "y" batch_norm_param {{ scale_bias: true }} }}"""
PAIR = f"""{inputs(x=(2, 3, 4, 4))}
layer {{ name: "bn" type: "BatchNorm" bottom: "x" top: "y" }}
layer {{ name: "sc" type: "Scale" bottom: "y" top: "y" scale_param {{ bias_term: true }} }}"""
FIVE = ([1.0, 2, 3], [4.0, 5, 6], [0.0], [2.0, 2, 2], [1.0, 0, 1])


def blobs(*values: Any) -> dict[int, np.ndarray]:
    return {index: np.array(value, np.float32) for index, value in enumerate(values)}


def test_statistics_that_nvcaffe_stores_whole_get_a_factor(tmp_path: Path) -> None:
    write_model(tmp_path / "m.caffemodel.h5", {"bn": blobs(*FIVE)})
    with pytest.warns(UserWarning, match="layer 'bn': factor 0 of its statistics taken as 1"):
        net = load_net(NORM, tmp_path / "m.caffemodel.h5")
    x = torch.randn(2, 3, 4, 4)
    view = lambda values: torch.tensor(values).reshape(1, 3, 1, 1)  # noqa: E731
    wanted = (x - view(FIVE[0])) / (view(FIVE[1]) + 1e-5).sqrt() * 2 + view(FIVE[4])
    torch.testing.assert_close(net(x=x)["y"], wanted)


@pytest.mark.parametrize("values", [([0.0] * 3, [0.0] * 3, [0.0]), ([1.0] * 3, [2.0] * 3, [1.5])], ids=["new", "own"])
def test_other_factors_stay(values: Any) -> None:
    model = ModelFile(Path("m"), {"bn": blobs(*values, *FIVE[3:])}, {})
    assert suited(model, load_net(NORM)) is model
    three = ModelFile(Path("m"), {"bn": blobs(*FIVE[:3])}, {})
    assert suited_to(three, parse_net(PAIR).message.layer) is three  # Caffe's own rule: 0 means none were gathered


@pytest.mark.parametrize(("net", "count"), [(PAIR, 5), (NORM, 3)], ids=["five-into-three", "three-into-five"])
def test_the_other_form_of_batch_norm_is_named(net: str, count: int, tmp_path: Path) -> None:
    path = tmp_path / "m.caffemodel.h5"
    write_model(path, {"bn": blobs(*FIVE[:count])})
    with pytest.raises(ForceregError, match="a BatchNorm of 5 blobs is NVCaffe's") as error:
        load_net(net, path)
    assert "\n" not in str(error.value)
