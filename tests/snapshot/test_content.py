"""What is written comes back, and nothing that is wrong with a file goes unnoticed or takes two lines."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from forcereg.errors import ForceregError
from forcereg.snapshot import check_names, read_model, read_state, write_model, write_state

NET = 'name: "é"\n' + 100_000 * "# longer than what fits in an HDF5 attribute itself\n"
PROPERTY = settings(derandomize=True, deadline=None, max_examples=60)

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
float32s = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=4, max_side=3))
names = st.lists(st.text("ab01é ._%", min_size=1).filter(lambda part: part != "."), min_size=1, max_size=3).map(
    "/".join
)


def storable(layers: dict[str, Any]) -> bool:
    try:
        check_names(layers, "")
    except ForceregError:
        return False
    return True


models = st.dictionaries(names, st.dictionaries(st.integers(0, 12), float32s, max_size=3), max_size=4).filter(storable)
arrays = hnp.arrays(
    st.sampled_from([np.uint8, np.int64, np.float32, np.float64, np.bool_]), hnp.array_shapes(max_side=4)
)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats() | st.booleans()
extras = st.recursive(
    numbers | texts | arrays, lambda inner: st.dictionaries(texts.filter(bool), inner, max_size=3), max_leaves=8
).map(lambda value: value if isinstance(value, dict) else {"only": value})


def same(found: Any, expected: Any) -> bool:
    """Equal, of the same type, not a number where the other is not; for nested dicts, scalars and arrays."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, np.ndarray):
        return found.dtype == expected.dtype and np.array_equal(found, expected, equal_nan=expected.dtype.kind == "f")
    nan = isinstance(expected, float) and math.isnan(expected)
    return type(found) is type(expected) and (math.isnan(found) if nan else found == expected)


@PROPERTY
@given(layers=models, diffs=st.none() | models, text=texts)
def test_a_model_comes_back(layers: Any, diffs: Any, text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "m.caffemodel.h5"
    write_model(path, layers, diffs, {"forcereg_net": text})
    model = read_model(path)
    assert model.path == path and model.attrs == {"forcereg_net": text}
    for found, written in ((model.layers, layers), (model.diffs, diffs or {})):
        leads_on = {name for name in written if any(other.startswith(f"{name}/") for other in written)}
        assert same(found, {name: blobs for name, blobs in written.items() if blobs or name not in leads_on})
        assert all(list(blobs) == sorted(blobs) for blobs in found.values())


@PROPERTY
@given(
    extra=st.none() | extras, learned_net=texts, history=st.lists(float32s, max_size=12), iteration=st.integers(0, 9**9)
)
def test_a_state_comes_back(
    extra: Any, learned_net: str, history: Any, iteration: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "s.solverstate.h5"
    write_state(path, iteration, 3, learned_net, history, extra)
    state = read_state(path)
    assert (state.iteration, state.current_step, state.learned_net) == (iteration, 3, learned_net)
    assert len(state.history) == len(history) and all(map(same, state.history, history))
    assert state.extra is None if extra is None else same(state.extra, extra)


def test_a_whole_net_fits_in_an_attribute(tmp_path: Path) -> None:
    write_model(tmp_path / "a", {}, attrs={"forcereg_net": NET})
    assert read_model(tmp_path / "a").attrs == {"forcereg_net": NET}
    with h5py.File(tmp_path / "a") as file:
        kind = file.attrs.get_id("forcereg_net").get_type()
        assert kind.is_variable_str() and kind.get_cset() == h5py.h5t.CSET_UTF8


def test_tensors_and_strided_arrays_are_stored_by_value(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    write_model(tmp_path / "a", {"l": {0: values.transpose(2, 0, 1), 1: values[0, ::-1, ::2]}})
    blobs = read_model(tmp_path / "a").layers["l"]
    np.testing.assert_array_equal(blobs[0], values.transpose(2, 0, 1))
    np.testing.assert_array_equal(blobs[1], values[0, ::-1, ::2])
    weight = torch.ones(2, requires_grad=True)
    write_state(tmp_path / "b", 1, 0, "", [], {"rng": torch.arange(5, dtype=torch.uint8), "w": weight})
    assert same(read_state(tmp_path / "b").extra, {"rng": np.arange(5, dtype=np.uint8), "w": np.ones(2, np.float32)})


@pytest.mark.parametrize("value", [None, 2**64, b"bytes", ["text"]], ids=repr)
def test_what_a_state_cannot_hold(value: object, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot hold 'x'"):
        write_state(tmp_path / "a", 1, 0, "", [], {"deep": {"x": value}})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ({"": {}}, "layer '' cannot be stored"),
        ({"/conv": {}}, "layer '/conv' cannot be stored"),
        ({"a//b": {}}, "layer 'a//b' cannot be stored"),
        ({"a/.": {}}, "layer 'a/.' cannot be stored"),
        ({"a\0b": {}}, r"layer 'a\\x00b' cannot be stored"),
        ({"a": {0: np.zeros(1)}, "a/0": {}}, "may not be called 'a/0' beside 'a'"),
        ({"a/0/b": {}, "a": {0: np.zeros(1)}}, "may not be called 'a/0' beside 'a'"),
    ],
    ids=["empty", "rooted", "double", "dot", "null", "blob", "below-blob"],
)
def test_names_that_cannot_be_paths(layers: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ForceregError, match=says):
        write_model(tmp_path / "a", layers)
    assert os.listdir(tmp_path) == []


def small_model(path: Path) -> None:
    layers = {"conv1": {0: np.arange(90).reshape(5, 2, 3, 3), 1: np.ones(5)}, "a/b": {0: np.ones(3)}, "relu": {}}
    write_model(path, layers, attrs={"forcereg_net": 'name: "net"', "forcereg_version": "1"})


def small_state(path: Path) -> None:
    write_state(path, 5, 1, "m.caffemodel.h5", [np.ones((5, 2)), np.ones(5)], {"cursor": {"data": 7}, "text": "t"})


KINDS: list[Any] = [
    pytest.param(small_model, read_model, id="model"),
    pytest.param(small_state, read_state, id="state"),
]


def contents(file: Any) -> dict[str, Any]:
    """A ModelFile's or StateFile's fields, but for the path; lists as dicts."""
    fields = {key: value for key, value in vars(file).items() if key != "path"}
    return {key: dict(enumerate(value)) if isinstance(value, list) else value for key, value in fields.items()}


def one_line(path: Path, read: Callable[[Path], Any]) -> str:
    """The error of reading `path`."""
    with pytest.raises(ForceregError) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("length", [0, 1, 8, 40, 100, 1000, -1000, -17, -15, -9, -8, -7, -1])
@pytest.mark.parametrize(("write", "read"), KINDS)
def test_a_truncated_file_is_one_line(write: Any, read: Any, length: int, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write(path)
    os.truncate(path, length if length >= 0 else path.stat().st_size + length)
    expected = {0: "is empty", 1: "neither HDF5 nor binaryproto"}.get(length, "damaged or truncated")
    assert expected in one_line(path, read)


@pytest.mark.parametrize(("write", "read"), KINDS)
def test_without_its_checksum_a_file_is_still_whole(write: Any, read: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write(path)
    expected = contents(read(path))
    os.truncate(path, path.stat().st_size - 16)
    assert same(contents(read(path)), expected)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(data=st.data())
@pytest.mark.parametrize(("write", "read"), KINDS)
def test_no_changed_byte_goes_unnoticed(
    write: Any, read: Any, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.h5"
    write(path)
    image = bytearray(path.read_bytes())
    image[data.draw(st.integers(0, len(image) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(image)
    one_line(path, read)


@pytest.mark.parametrize("count", [1, 16, 100, 0.5], ids=str)
@pytest.mark.parametrize(("write", "read"), KINDS)
def test_zeros_at_the_end_are_noticed(write: Any, read: Any, count: float, tmp_path: Path) -> None:
    """What a crashed file system leaves: the right length, and zeros where data never arrived."""
    path = tmp_path / "a.h5"
    write(path)
    image = path.read_bytes()
    zeros = int(count if count >= 1 else count * len(image))
    path.write_bytes(image[:-zeros] + bytes(zeros))
    assert "damaged or truncated" in one_line(path, read)


def hdf5(fill: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            fill(file)

    return write


def no_iteration(file: h5py.File) -> None:
    file["iter"] = np.zeros(0, np.int32)
    file["current_step"] = np.zeros(1, np.int32)
    file["learned_net"] = "m"
    file.create_group("history")


def ten_times(file: h5py.File) -> None:
    for index in range(10):
        file[f"data/l/{index}"] = np.zeros(1, np.float32)
    file["data/l/x"] = np.zeros(1, np.float32)


@pytest.mark.parametrize(
    ("write", "read", "says"),
    [
        (lambda path: None, read_model, "cannot read .*: no such file or directory; check the path"),
        (lambda path: path.mkdir(), read_model, "cannot read .*: it is a folder"),
        (
            lambda path: path.write_text('name: "LeNet"\n'),
            read_model,
            "this is text; expected a snapshot: ",
        ),
        (small_state, read_model, "is a solver state, expected a model; give its model, m.caffemodel.h5; this"),
        (small_model, read_state, r"is a model, expected a solver state; give the \.solverstate"),
        (hdf5(lambda file: file.create_group("x")), read_model, "holds neither a model .* nor a solver state"),
        (hdf5(lambda file: file.create_dataset("data", data=1.0)), read_model, "holds neither a model .group 'data'"),
        (hdf5(lambda file: file.create_group("history")), read_state, "not a Caffe solver state: it lacks 'iter'"),
        (hdf5(no_iteration), read_state, "'/iter' holds 0 values of type int32; expected one whole number"),
        (hdf5(ten_times), read_model, "layer 'l' has a dataset 'x' of type float32, expected numbered floats"),
        (hdf5(lambda file: file.create_dataset("data/l/0", data=[1])), read_model, "'0' of type int64, expected"),
        (hdf5(lambda file: file.create_dataset("data/l/01", data=[1.0])), read_model, "a dataset '01'"),
    ],
    ids=[
        *("missing", "folder", "text", "state-as-model", "model-as-state", "no-data", "data-is-no-group"),
        *("no-iter", "empty-iter", "named", "integers", "padded"),
    ],
)
def test_other_files_are_said_to_be_what_they_are(write: Any, read: Any, says: str, tmp_path: Path) -> None:
    write(tmp_path / "a.h5")
    with pytest.raises(ForceregError, match=says) as caught:
        read(tmp_path / "a.h5")
    assert str(tmp_path / "a.h5") in str(caught.value) and "\n" not in str(caught.value)


def test_a_gap_in_the_history_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "s"
    small_state(path)
    with h5py.File(path, "r+") as file:
        del file["history/0"]
    assert "history has datasets [1], expected 0 to 0" in one_line(path, read_state)


def test_what_the_system_cannot_read(tmp_path: Path) -> None:
    """A disk's errors come while a file is read, not when it is opened."""
    if not os.path.exists("/proc/self/mem"):  # nothing can be read at its beginning
        pytest.skip("no /proc")
    (tmp_path / "a.caffemodel").symlink_to("/proc/self/mem")
    with pytest.raises(ForceregError) as raised:
        read_model(tmp_path / "a.caffemodel")
    assert str(raised.value).startswith(f"cannot read {tmp_path}/a.caffemodel: input/output error; ")


def test_a_text_with_a_nul_is_one_line_in_hdf5(tmp_path: Path) -> None:
    """As damage to a binary file leaves it; h5py would raise ValueError."""
    path = tmp_path / "m.caffemodel.h5"
    with pytest.raises(ForceregError, match="'forcereg_net' holds a NUL character"):
        write_model(path, {"a": {0: np.zeros(1, np.float32)}}, attrs={"forcereg_net": "na\0me"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("extra", [{"type": "S\0GD"}, {"": 1.0}], ids=["text", "name"])
def test_what_only_damage_leaves_in_a_state_is_one_line(extra: dict[str, object], binary: bool, tmp_path: Path) -> None:
    with pytest.raises(ForceregError, match="holds a NUL character or what else HDF5 can't store"):
        write_state(tmp_path / "s.solverstate", 1, 0, "m.caffemodel", [], {"solver": extra}, binary)
    assert not list(tmp_path.iterdir())
