"""Files that Caffe wrote: we read them, and what we write for the same content is laid out alike."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forcereg.errors import ForceregError
from forcereg.snapshot import ModelFile, load_into, read_model, read_state, write_model, write_state
from tests.golden_cases import Case, golden_cases

CASES = golden_cases("snapshots")


def caffe_file(case: Case, suffix: str, folder: Path) -> Path:
    """The case's snap_iter_K.<suffix> as a file."""
    path = folder / f"snap_iter_{case.attrs['iter_snapshot']}.{suffix}"
    path.write_bytes(case.file(path.name))
    return path


def layout(path: Path) -> list[list[Any]]:
    """[path, kind, shape, dtype] of everything in a file, as the cases have it."""
    rows: list[list[Any]] = []

    def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Group):
            rows.append([name, "group", [], ""])
        else:
            rows.append([name, "dataset", list(item.shape), str(item.dtype)])

    with h5py.File(path) as file:
        file.visititems(add)
    return rows


def assert_stored_alike(ours: Path, caffes: Path) -> None:
    """Every dataset has the same HDF5 type, kind of extent and storage, and no attributes."""
    with h5py.File(ours) as our_file, h5py.File(caffes) as caffe_file:
        names: list[str] = []
        caffe_file.visit(names.append)
        for name in names:
            our, caffe = our_file[name], caffe_file[name]
            assert len(our.attrs) == 0, name
            if isinstance(caffe, h5py.Dataset):
                assert our.id.get_type().equal(caffe.id.get_type()), name
                assert our.id.get_space().get_simple_extent_type() == caffe.id.get_space().get_simple_extent_type()
                assert (
                    our.id.get_create_plist().get_layout()
                    == caffe.id.get_create_plist().get_layout()
                    == h5py.h5d.CONTIGUOUS
                )
    assert ours.read_bytes()[8] == caffes.read_bytes()[8] == 0  # the superblock's version


def learned(case: Case) -> dict[str, np.ndarray]:
    """Parameters at the snapshot's iteration."""
    params = case.tree(f"iter_{case.attrs['iter_snapshot']:04d}/params")
    return {key: params[key] for key in case.json("learnable_params")}


@pytest.mark.parametrize("case", CASES)
def test_model_of_caffe_is_read(case: Case, tmp_path: Path) -> None:
    model = read_model(caffe_file(case, "caffemodel.h5", tmp_path))
    found = {f"{layer}/{index}": values for layer, blobs in model.layers.items() for index, values in blobs.items()}
    expected = learned(case)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=0, atol=1e-5, err_msg=key)
    assert set(model.layers) == {row[0].split("/")[1] for row in case.json("layout_caffemodel") if "/" in row[0]}
    assert model.attrs == {}


@pytest.mark.parametrize("case", CASES)
def test_state_of_caffe_is_read(case: Case, tmp_path: Path) -> None:
    state = read_state(caffe_file(case, "solverstate.h5", tmp_path))
    assert state.iteration == case.attrs["iter"] == case.attrs["iter_snapshot"]
    assert state.current_step == case.attrs["current_step"]
    assert state.learned_net == case.attrs["learned_net"]
    assert state.extra is None
    shapes = [values.shape for values in learned(case).values()]
    assert [values.shape for values in state.history] in (shapes, shapes + shapes)  # Adam has two per parameter
    assert any(values.any() for values in state.history)


@pytest.mark.parametrize("case", CASES)
def test_our_model_is_laid_out_as_caffes(case: Case, tmp_path: Path) -> None:
    caffes = caffe_file(case, "caffemodel.h5", tmp_path)
    model = read_model(caffes)
    ours = tmp_path / "ours.caffemodel.h5"
    write_model(ours, model.layers, model.diffs or None)
    assert layout(ours) == case.json("layout_caffemodel") == layout(caffes)
    assert_stored_alike(ours, caffes)


@pytest.mark.parametrize("case", CASES)
def test_our_state_is_laid_out_as_caffes(case: Case, tmp_path: Path) -> None:
    caffes = caffe_file(case, "solverstate.h5", tmp_path)
    state = read_state(caffes)
    ours = tmp_path / "ours.solverstate.h5"
    write_state(ours, state.iteration, state.current_step, state.learned_net, state.history)
    assert layout(ours) == case.json("layout_solverstate") == layout(caffes)
    assert_stored_alike(ours, caffes)


@pytest.mark.parametrize("case", CASES)
def test_what_we_add_leaves_caffes_part_alone(case: Case, tmp_path: Path) -> None:
    model = read_model(caffe_file(case, "caffemodel.h5", tmp_path))
    state = read_state(caffe_file(case, "solverstate.h5", tmp_path))
    ours = tmp_path / "ours"
    write_model(ours, model.layers, model.diffs or None, {"forcereg_net": case.attrs["net"]})
    assert layout(ours) == case.json("layout_caffemodel")
    write_state(ours, state.iteration, state.current_step, state.learned_net, state.history, {"cursor": {"data": 3}})
    assert [row for row in layout(ours) if not row[0].startswith("forcereg")] == case.json("layout_solverstate")


@pytest.mark.parametrize("case", CASES)
def test_caffes_model_loads_into_a_net(case: Case, tmp_path: Path) -> None:
    model = read_model(caffe_file(case, "caffemodel.h5", tmp_path))
    shared = json.loads(case.attrs.get("shared_params", "{}"))
    blobs = {key: torch.full(values.shape, 7.0) for key, values in learned(case).items()}
    blobs |= {borrowed: blobs[owner] for borrowed, owner in shared.items()}
    params = {
        name: [blobs[key] for key in sorted(blobs) if key.startswith(f"{name}/")] for name in sorted(model.layers)
    }
    report = load_into(params, model, shared)
    assert set(report.loaded) == {name for name, blobs in params.items() if blobs}
    assert report.ignored == report.fresh == ()
    for key, values in learned(case).items():
        np.testing.assert_allclose(blobs[key].numpy(), values, rtol=0, atol=1e-5, err_msg=key)


def binary_file(case: Case, kind: str, folder: Path) -> Path:
    """The case's binary caffemodel or solverstate, under a name that says nothing."""
    return caffe_file(case, kind, folder).rename(folder / f"renamed-{kind}.h5")


@pytest.mark.parametrize("case", CASES)
def test_binary_model_of_caffe_is_read(case: Case, tmp_path: Path) -> None:
    model = read_model(binary_file(case, "caffemodel", tmp_path))
    shapes = [[name, [list(values.shape) for values in blobs.values()]] for name, blobs in model.layers.items()]
    assert shapes == [[name, shapes] for name, _, shapes in case.json("binary_layers")]
    assert (model.attrs, model.legacy) == ({}, False)
    # the same numbers as in HDF5, borrowed blobs too
    hdf5 = read_model(caffe_file(case, "caffemodel.h5", tmp_path))
    borrowed = json.loads(case.attrs.get("shared_params", "{}"))
    for found, stored in ((model.layers, hdf5.layers), (model.diffs, hdf5.diffs)):
        for name, blobs in found.items():
            for index, values in blobs.items():
                layer, position = borrowed.get(f"{name}/{index}", f"{name}/{index}").split("/")
                np.testing.assert_array_equal(values, stored[layer][int(position)], err_msg=f"{name}/{index}")
    assert bool(model.diffs) == ("snapshot_diff: true" in case.attrs["solver_binaryproto"])
    for key, values in learned(case).items():
        layer, position = key.split("/")
        np.testing.assert_allclose(model.layers[layer][int(position)], values, rtol=0, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("case", CASES)
def test_binary_state_of_caffe_is_read(case: Case, tmp_path: Path) -> None:
    state = read_state(binary_file(case, "solverstate", tmp_path))
    found = {name: getattr(state, name) for name in ("learned_net", "current_step")}
    found |= {"iter": state.iteration, "history": [list(values.shape) for values in state.history]}
    assert found == case.json("binary_state")
    assert state.extra is None
    hdf5 = read_state(caffe_file(case, "solverstate.h5", tmp_path))
    for values, stored in zip(state.history, hdf5.history, strict=True):
        np.testing.assert_array_equal(values, stored)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(data=st.data())
@pytest.mark.parametrize("kind", ["caffemodel", "solverstate"])
def test_a_damaged_binary_file_of_caffe_is_read_or_one_line(
    kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Without a checksum a changed weight cannot be noticed, but nothing else may happen."""
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    case = CASES[0].values[0]
    image = bytearray(case.file(f"snap_iter_{case.attrs['iter_snapshot']}.{kind}"))
    for _ in range(data.draw(st.integers(0, 3))):
        image[data.draw(st.integers(0, len(image) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(image[: data.draw(st.integers(0, len(image)) | st.just(len(image)))])
    try:
        (read_model if kind == "caffemodel" else read_state)(path)
    except ForceregError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)


@pytest.mark.parametrize("part", ["0.02", "0.5", "0.99", "-1"])
@pytest.mark.parametrize("kind", ["caffemodel.h5", "solverstate.h5"])
def test_a_truncated_file_of_caffe_is_one_line(kind: str, part: str, tmp_path: Path) -> None:
    path = caffe_file(CASES[0].values[0], kind, tmp_path)
    length = path.stat().st_size
    os.truncate(path, length - 1 if part == "-1" else int(length * float(part)))
    with pytest.raises(ForceregError, match="damaged or truncated") as caught:
        (read_model if "model" in kind else read_state)(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_h5py_edits_are_read(tmp_path: Path) -> None:
    """HDF5 drops our checksum when it edits a file, so that a changed weight is no damage."""
    path = tmp_path / "a.h5"
    write_model(path, {"ip": {0: np.zeros((2, 3))}})
    with h5py.File(path, "r+") as file:
        file["data/ip/0"][1, 2] = 5
    assert read_model(path).layers["ip"][0][1, 2] == 5


def test_a_file_of_a_double_build_is_read_as_float32(tmp_path: Path) -> None:
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file["data/ip/0"] = np.full((2, 3), 0.1)
    (tmp_path / "a.h5").write_bytes(image.getvalue())
    model: ModelFile = read_model(tmp_path / "a.h5")
    assert model.layers["ip"][0].dtype == np.float32
    np.testing.assert_array_equal(model.layers["ip"][0], np.full((2, 3), np.float32(0.1)))
