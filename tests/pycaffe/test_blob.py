"""Blobs: live arrays, shapes, memory that stays; and the vectors that Caffe hands out."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forcereg.layers.pycaffe.blob import Blob, BlobVec
from forcereg.layers.pycaffe.memory import Memory
from forcereg.layers.pycaffe.vectors import IntVec, StringVec


def test_arrays_are_views(deploy: Any) -> None:
    blob = deploy.blobs["data"]
    first, second = blob.data, blob.data
    assert first is not second and np.shares_memory(first, second)
    assert first.flags.c_contiguous and not first.flags.owndata and first.dtype == np.float32
    second[0, 0, 0, 0] = 7
    assert first[0, 0, 0, 0] == 7
    with pytest.raises(AttributeError):
        blob.data = first
    with pytest.raises(AttributeError):
        blob.data *= 2
    assert first[0, 0, 0, 0] == 14
    deploy.__dict__.clear()
    del deploy, blob
    gc.collect()
    assert first[0, 0, 0, 0] == 14


def test_sizes(deploy: Any) -> None:
    blob, bias = deploy.blobs["data"], deploy.params["conv"][1]
    assert (blob.num, blob.channels, blob.height, blob.width, blob.count) == (2, 3, 8, 8, 384)
    assert (bias.num, bias.channels, bias.height, bias.width, bias.count) == (4, 1, 1, 1, 4)
    assert tuple(blob.shape) == (2, 3, 8, 8) and blob.shape[-1] == 8 and list(blob.shape[1:3]) == [3, 8]
    assert isinstance(blob.shape[1:], IntVec) and not hasattr(blob.shape, "index")
    blob.reshape(1, 1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        blob.num  # noqa: B018
    blob.reshape()
    assert blob.data.shape == () and blob.count == 1 and len(blob.shape) == 0


def test_reshape_keeps_memory_while_it_is_enough(deploy: Any) -> None:
    blob = deploy.blobs["data"]
    blob.data[...] = np.arange(384).reshape(2, 3, 8, 8)
    held = blob.data
    blob.reshape(1, 3, 8, 8)
    assert np.array_equal(blob.data.ravel(), np.arange(192)) and np.shares_memory(held, blob.data)
    blob.data[...] = 5
    blob.reshape(2, 3, 8, 8)
    assert (held[0] == 5).all() and np.array_equal(blob.data[1].ravel(), np.arange(192, 384))
    blob.reshape(3, 3, 8, 8)
    assert not np.shares_memory(held, blob.data) and blob.data.shape == blob.diff.shape == (3, 3, 8, 8)


@pytest.mark.parametrize(
    "dims", [(2, 3), ([2, 3],), (np.int64(2), 3), (np.array([2, 3]),), (2.0, 3), ((2, 3),)], ids=str
)
def test_forms_of_reshape(deploy: Any, dims: tuple[Any, ...]) -> None:
    assert deploy.blobs["data"].reshape(*dims) is None
    assert deploy.blobs["data"].data.shape == (2, 3)


@pytest.mark.parametrize(
    ("dims", "named", "kind"),
    [
        ((2.5,), {}, TypeError),
        (("2",), {}, TypeError),
        ((2,), {"axis": 1}, RuntimeError),
        ((-1, 2), {}, RuntimeError),
        ((1,) * 33, {}, RuntimeError),
        ((1 << 20, 1 << 20), {}, RuntimeError),
    ],
)
def test_shapes_that_no_blob_has(deploy: Any, dims: Any, named: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        deploy.blobs["data"].reshape(*dims, **named)


def test_reshape_of_a_net(deploy: Any) -> None:
    weight = deploy.params["ip"][0].data.copy()
    deploy.blobs["data"].reshape(5, 3, 8, 8)
    assert deploy.blobs["prob"].data.shape == (2, 5)
    deploy.reshape()
    assert deploy.blobs["conv"].data.shape == deploy.blobs["conv"].diff.shape == (5, 4, 6, 6)
    assert deploy.blobs["pool_pool_0_split_1"].data.shape == (5, 4, 3, 3)
    deploy.blobs["data"].reshape(1, 3, 8, 8)
    assert deploy.forward()["prob"].shape == (1, 5)
    assert np.array_equal(deploy.params["ip"][0].data, weight)
    deploy.blobs["data"].reshape(1, 3, 9, 20)
    for call in (deploy.reshape, deploy.forward):
        with pytest.raises(RuntimeError, match="ip"):
            call()


def test_weights_in_another_shape(deploy: Any) -> None:
    weight = deploy.params["conv"][0]
    weight.reshape(4, 27)
    weight.data[...] = np.arange(27)
    assert weight.data.shape == weight.diff.shape == (4, 27)
    assert deploy._chain.net.params["conv"][0][1].flatten().tolist() == list(range(27))
    with pytest.raises(RuntimeError, match="another count"):
        weight.reshape(5, 27)


def test_no_blob_from_python() -> None:
    with pytest.raises(RuntimeError):
        Blob()


def test_a_split_shares_what_it_splits(deploy: Any) -> None:
    deploy.forward()
    deploy.blobs["pool"].data[...] = 3
    assert (deploy.blobs["pool_pool_0_split_0"].data == 3).all()
    assert not np.shares_memory(deploy.blobs["pool"].diff, deploy.blobs["pool_pool_0_split_0"].diff)


# -- memory, wherever the tensor lies


def last(*shape: int) -> torch.Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last)


STEPS = st.lists(st.sampled_from(["read", "edit", "put", "put last", "hold", "drop", "add", "zero", "resize"]))


@given(STEPS)
def test_memory_has_one_value_whatever_is_done(steps: list[str]) -> None:
    """Against a plain array: held arrays, new ones and the tensor agree after every step."""
    memory, model, held = Memory((2, 3, 4, 4)), np.zeros((2, 3, 4, 4), np.float32), []
    for number, step in enumerate(steps):
        if step == "edit":
            memory.array()[0] = number
            model[0] = number
        elif step == "put":
            fresh = torch.randn(model.shape)
            model = fresh.numpy().copy()
            memory.put(fresh)
        elif step == "put last":
            fresh = last(*model.shape)
            model = fresh.contiguous().numpy().copy()
            memory.put(fresh)
        elif step == "hold":
            held.append(memory.array())
        elif step == "drop":
            held.clear()
        elif step == "add":
            fresh = last(*model.shape)
            model = model + fresh.contiguous().numpy()
            memory.add(fresh)
        elif step == "zero":
            memory.zero()
            model = np.zeros_like(model)
        elif step == "resize":
            memory.resize((1, 6, 4, 4) if model.shape[0] == 2 else (2, 3, 4, 4))
            model = model.reshape(memory.shape)
        for view in (*held, memory.read().contiguous().numpy()):
            np.testing.assert_array_equal(view.ravel(), model.ravel())
    np.testing.assert_array_equal(memory.array(), model)


@given(st.lists(st.sampled_from(["edit", "edit held", "change", "hold", "drop"]), max_size=8))
def test_weights_stay_where_they_are(steps: list[str]) -> None:
    weight = last(4, 3, 2, 2)
    model = weight.contiguous().numpy().copy()
    memory, held = Memory(tensor=weight, fixed=True), []
    for number, step in enumerate(steps):
        if step == "edit":
            memory.array()[1] = model[1] = number
        elif step == "edit held" and held:
            held[0][2] = model[2] = number
        elif step == "change":
            memory.read()
            weight.mul_(2)
            memory.changed()
            model = model * 2
        elif step == "hold":
            held.append(memory.array())
        elif step == "drop":
            held.clear()
        assert memory.read().data_ptr() == weight.data_ptr()
        np.testing.assert_array_equal(weight.contiguous().numpy(), model)
        for view in held:
            np.testing.assert_array_equal(view, model)


def test_values_that_nobody_asks_for() -> None:
    made: list[int] = []

    def make() -> torch.Tensor:
        made.append(1)
        return torch.ones(3)

    memory = Memory((3,))
    memory.later(make)
    memory.zero()
    assert not memory.array().any() and not made
    memory.later(make)
    assert memory.array().all() and made == [1]
    held = memory.array()
    memory.put(torch.zeros(3))
    memory.later(make)
    assert held.all()


# -- vectors


def test_vectors(deploy: Any) -> None:
    names = StringVec(["a", "b"])
    names.append("c")
    names.extend(["d"])
    del names[0]
    assert list(names) == ["b", "c", "d"] and len(names) == 3 and "c" in names and names[-1] == "d"
    assert list(names[:2]) == ["b", "c"] and isinstance(names[:2], StringVec)
    assert names != StringVec(["b", "c", "d"]) and not hasattr(names, "sort")
    with pytest.raises(IndexError, match="Index out of range"):
        names[3]
    with pytest.raises(IndexError, match="Index out of range"):
        deploy.params["conv"][2]
    blobs = BlobVec()
    blobs.add_blob(2, 3)
    assert blobs[0].data.shape == (2, 3) and not blobs[0].data.any()
    with pytest.raises(RuntimeError):
        blobs.add_blob(2, fill=1)
