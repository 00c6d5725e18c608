"""Layers that bring their data, and those that keep something from forward to backward, in caffe.Net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import forcereg.pycaffe as caffe
from tests.pycaffe.nets import net_of

MEMORY = """
layer { name: "data" type: "MemoryData" top: "data" top: "label"
  memory_data_param { batch_size: 2 channels: 1 height: 2 width: 3 } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }
layer { name: "drop" type: "Silence" bottom: "label" }
"""


def test_arrays_as_input(tmp_path: Path) -> None:
    net = net_of(MEMORY, tmp_path)
    data, labels = np.arange(24, dtype=np.float32).reshape(4, 1, 2, 3), np.arange(4, dtype=np.float32)
    net.set_input_arrays(data, labels)
    seen = []
    for _ in range(3):
        net.forward()
        seen.append((net.blobs["data"].data[0, 0, 0, 0], net.blobs["label"].data.ravel().tolist()))
    assert seen == [(0, [0, 1]), (12, [2, 3]), (0, [0, 1])]
    data[2] = -1
    net.forward()
    assert (net.blobs["data"].data[0] == -1).all() and net.inputs == []
    net.forward(start="ip")
    assert (net.blobs["data"].data[0] == -1).all()
    net.set_input_arrays(data, np.repeat(labels, 2)[::2])
    net.forward()
    assert net.blobs["label"].data.ravel().tolist() == [0, 1]


def wrong(**parts: Any) -> tuple[Any, Any]:
    data = parts.get("data", np.zeros((4, 1, 2, 3), np.float32))
    return data, parts.get("labels", np.zeros(len(data), np.float32))


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        (wrong(data=np.zeros((4, 1, 3, 2), np.float32).transpose(0, 1, 3, 2)), "data must be C contiguous"),
        (wrong(data=np.zeros((4, 2, 3), np.float32)), "data must be 4-d"),
        (wrong(data=np.zeros((4, 1, 2, 3))), "data must be float32"),
        (wrong(data=np.zeros((4, 2, 2, 3), np.float32)), "data has wrong number of channels"),
        (wrong(data=np.zeros((4, 1, 2, 4), np.float32)), "data has wrong number of width"),
        (wrong(labels=np.zeros((4, 2), np.float32)), "labels must be 4-d"),
        (wrong(labels=np.zeros(4)), "labels must be float32"),
        (wrong(labels=np.zeros(6, np.float32)), "same first dimension"),
        (wrong(data=np.zeros((3, 1, 2, 3), np.float32)), "multiple of batch size"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: tuple[Any, Any], text: str) -> None:
    with pytest.raises(RuntimeError, match=text):
        net_of(MEMORY, tmp_path).set_input_arrays(*arrays)


def test_arrays_for_a_net_without_such_a_layer(deploy: Any) -> None:
    with pytest.raises(RuntimeError, match="MemoryData"):
        deploy.set_input_arrays(*wrong())
    with pytest.raises(ValueError, match="list"):
        deploy.forward(start="data")


def test_no_arrays_yet(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="set_input_arrays"):
        net_of(MEMORY, tmp_path).forward()


def test_a_batch_at_each_forward_from_the_data_layer(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["data"] = np.arange(12, dtype=np.float32).reshape(6, 2)
    (tmp_path / "list.txt").write_text(str(tmp_path / "d.h5") + "\n")
    text = f'''
    layer {{ name: "in" type: "HDF5Data" top: "data"
      hdf5_data_param {{ source: "{tmp_path}/list.txt" batch_size: 2 }} }}
    layer {{ name: "twice" type: "Power" bottom: "data" top: "twice" power_param {{ scale: 2 }} }}
    '''
    net = net_of(text, tmp_path)
    found = [net.forward()["twice"][0, 0] for _ in range(4)]
    assert found == [0, 8, 16, 0]
    net.blobs["data"].data[...] = 5
    assert (net.forward(start="twice")["twice"] == 10).all()
    assert [net.forward()["twice"][0, 0] for _ in range(3)] == [8, 16, 0]


def test_constants_stay_as_they_are_written(tmp_path: Path) -> None:
    text = """
    layer { name: "in" type: "DummyData" top: "a" top: "b" dummy_data_param { shape { dim: 2 dim: 3 }
      data_filler { type: "constant" value: 4 } data_filler { type: "uniform" } } }
    layer { name: "s" type: "Silence" bottom: "a" bottom: "b" }
    """
    net = net_of(text, tmp_path)
    first = net.blobs["b"].data.copy()
    assert (net.blobs["a"].data == 4).all() and first.any()
    net.forward()
    np.testing.assert_array_equal(net.blobs["b"].data, first)
    net.blobs["a"].data[...] = 1
    net.forward()
    assert (net.blobs["a"].data == 1).all() and not np.array_equal(net.blobs["b"].data, first)


KEEPING = """
force_backward: true
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 50 dim: 4 } } }
layer { name: "l" type: "KIND" bottom: "x" top: "TOP" }
"""


@pytest.mark.parametrize("top", ["x", "y"])
def test_dropout_drops_the_same_in_backward(tmp_path: Path, top: str) -> None:
    net = net_of(KEEPING.replace("KIND", "Dropout").replace("TOP", top), tmp_path, caffe.TRAIN)
    x = np.ones((50, 4), np.float32)
    kept = net.forward(x=x)[top].copy()
    assert set(np.unique(kept)) == {0, 2}
    net.blobs[top].diff[...] = 1
    net.blobs["x"].data[...] = 7  # a script may look around, and change what it likes
    net.forward(end="in")
    net.backward()
    np.testing.assert_array_equal(net.blobs["x"].diff, kept)
    assert not np.array_equal(net.forward(x=x)[top], kept)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("kind", ["BatchNorm", "Sigmoid", "TanH", "ELU", "ReLU"])
def test_in_place_is_the_same(tmp_path: Path, kind: str, held: bool) -> None:
    """Also where a script holds arrays of the memory that the layer writes over."""
    x, seed = np.random.default_rng(0).standard_normal((2, 50, 4)).astype(np.float32)
    found = []
    for top in ("y", "x"):
        net = net_of(KEEPING.replace("KIND", kind).replace("TOP", top), tmp_path, caffe.TRAIN)
        views = [net.blobs[name].data for name in net.blobs] if held else []
        net.blobs["x"].data[...] = x
        net.forward()
        assert not views or np.array_equal(views[-1], net.blobs[top].data)
        values = net.blobs[top].data.copy()
        net.blobs[top].diff[...] = seed
        net.backward()
        found.append((values, net.blobs["x"].diff.copy()))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_statistics_move_once_a_forward(tmp_path: Path) -> None:
    net = net_of(KEEPING.replace("KIND", "BatchNorm").replace("TOP", "y"), tmp_path, caffe.TRAIN)
    mean, factor = net.params["l"][0].data, net.params["l"][2].data
    x = np.random.default_rng(0).random((50, 4), np.float32)
    for number in (1, 2):
        net.forward(x=x)
        net.params["l"][1].data  # noqa: B018
        net.blobs["x"].data[...] = 2 * x
        net.backward()
        assert factor[0] == pytest.approx(1 if number == 1 else 1.999)
        np.testing.assert_allclose(mean, factor[0] * x.mean(0), rtol=1e-5)


def test_tops_that_are_bottoms_have_memory_of_their_own(tmp_path: Path) -> None:
    """Dropout in TEST and the like hand on what they got; a script that edits one side changes that side only."""
    net = net_of(KEEPING.replace("KIND", "Dropout").replace("TOP", "y"), tmp_path)
    net.forward(x=np.ones((50, 4)))
    net.blobs["y"].data[...] = 0
    assert net.blobs["x"].data.all()
    net.blobs["y"].diff[...] = 1
    net.backward()
    net.blobs["y"].diff[...] = 0
    assert net.blobs["x"].diff.all()
