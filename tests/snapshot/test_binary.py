"""Binary models and states: they come back, protobuf reads them, and no damage goes unnoticed."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given, settings
from hypothesis import strategies as st

from forcereg.errors import ForceregError
from forcereg.schema import NetParameter, SolverState
from forcereg.snapshot import binary, read, read_model, read_state, write_model, write_state
from tests.snapshot.test_content import PROPERTY, extras, float32s, one_line, same, texts

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
layer_lists = st.dictionaries(names, st.lists(float32s, max_size=3), max_size=4)
EXTRA = {"feeds": {"0": {"name": "train/data", "state": {"cursor": 7}}}, "random": np.arange(9, dtype=np.uint8)}


def numbered(layers: dict[str, list[Any]]) -> dict[str, dict[int, np.ndarray]]:
    return {name: {i: np.asarray(values, np.float32) for i, values in enumerate(v)} for name, v in layers.items()}


def net_of(layers: Any, name: str = "net") -> Any:
    """A NetParameter with a layer of each name."""
    net = NetParameter(name=name)
    for layer in layers:
        net.layer.add(name=layer, type="InnerProduct", top=[layer])
    return net


def small_model(path: Path) -> None:
    layers = numbered({"conv1": [np.arange(90).reshape(5, 2, 3, 3), np.ones(5)], "a/b": [np.ones(3)], "relu": []})
    write_model(path, layers, None, {"forcereg_net": 'name: "net"', "forcereg_version": "1"}, net_of(layers))


def small_state(path: Path) -> None:
    write_state(path, 5, 1, "m.caffemodel", [np.ones((5, 2)), np.ones(5)], EXTRA, binary=True)


KINDS: list[Any] = [pytest.param(small_model, id="model"), pytest.param(small_state, id="state")]


@PROPERTY
@given(layers=layer_lists, with_diffs=st.booleans(), name=texts, text=texts)
def test_a_model_comes_back(
    layers: Any, with_diffs: bool, name: str, text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path, blobs = tmp_path_factory.getbasetemp() / "m.caffemodel", numbered(layers)
    negated = {layer: [-values for values in listed] for layer, listed in layers.items()}
    diffs = numbered(negated) if with_diffs else None
    write_model(path, blobs, diffs, {"forcereg_net": text, "é": ""}, net_of(layers, name))
    model = read_model(path)
    assert (model.path, model.legacy) == (path, False)
    assert model.attrs == {"forcereg_net": text, "é": ""}
    assert list(model.layers) == list(layers) and same(model.layers, blobs)
    stored = {layer: {i: d for i, d in of.items() if d.size} for layer, of in (diffs or {}).items()}
    assert same(model.diffs, {layer: of for layer, of in stored.items() if of})


@PROPERTY
@given(
    extra=st.none() | extras, learned_net=texts, history=st.lists(float32s, max_size=9), iteration=st.integers(0, 9**9)
)
def test_a_state_comes_back(
    extra: Any, learned_net: str, history: Any, iteration: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "s.solverstate"
    write_state(path, iteration, 3, learned_net, history, extra, binary=True)
    state = read_state(path)
    assert (state.iteration, state.current_step, state.learned_net) == (iteration, 3, learned_net)
    assert len(state.history) == len(history) and all(map(same, state.history, history))
    assert state.extra is None if extra is None else same(state.extra, extra)


def test_protobuf_reads_what_we_write(tmp_path: Path) -> None:
    """All that is ours is in fields that Caffe's messages don't have."""
    small_model(tmp_path / "m")
    net = NetParameter.FromString((tmp_path / "m").read_bytes())
    assert {field.field_number for field in UnknownFieldSet(net)} == {16000, 16001, 16003}
    net.DiscardUnknownFields()
    assert [field.name for field, _ in net.ListFields()] == ["name", "layer"]
    assert [(layer.name, layer.type, len(layer.blobs)) for layer in net.layer] == [
        ("conv1", "InnerProduct", 2),
        ("a/b", "InnerProduct", 1),
        ("relu", "InnerProduct", 0),
    ]
    weight = net.layer[0].blobs[0]
    assert [field.name for field, _ in weight.ListFields()] == ["data", "shape"]
    assert (list(weight.shape.dim), list(weight.data)) == ([5, 2, 3, 3], list(range(90)))
    small_state(tmp_path / "s")
    state = SolverState.FromString((tmp_path / "s").read_bytes())
    assert {field.field_number for field in UnknownFieldSet(state)} == {16000, 16002, 16003}
    assert (state.iter, state.current_step, state.learned_net) == (5, 1, "m.caffemodel")
    assert [list(blob.shape.dim) for blob in state.history] == [[5, 2], [5]]


def test_without_our_fields_the_rest_is_read(tmp_path: Path) -> None:
    small_model(tmp_path / "m")
    expected = read_model(tmp_path / "m").layers
    net = NetParameter.FromString((tmp_path / "m").read_bytes())
    net.DiscardUnknownFields()
    (tmp_path / "m").write_bytes(net.SerializeToString())
    model = read_model(tmp_path / "m")
    assert same(model.layers, expected) and model.attrs == {}
    small_state(tmp_path / "s")
    state = SolverState.FromString((tmp_path / "s").read_bytes())
    state.DiscardUnknownFields()
    (tmp_path / "s").write_bytes(state.SerializeToString())
    assert read_state(tmp_path / "s").extra is None


def test_files_that_protobuf_edits_are_read(tmp_path: Path) -> None:
    """Our fields stay, behind the others; the old checksum is no sign of damage then."""
    small_model(tmp_path / "m")
    net = NetParameter.FromString((tmp_path / "m").read_bytes())
    net.layer[0].blobs[0].data[7] = 700
    (tmp_path / "m").write_bytes(net.SerializeToString())
    model = read_model(tmp_path / "m")
    assert model.layers["conv1"][0].flat[7] == 700
    assert model.attrs["forcereg_net"] == 'name: "net"'


@pytest.mark.parametrize("write", KINDS)
def test_wherever_a_file_is_cut_off_it_is_noticed(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path)
    image = path.read_bytes()
    for length in (*range(0, min(len(image), 1200)), len(image) - 17, len(image) - 16, len(image) - 1):
        path.write_bytes(image[:length])
        expected = "is empty" if length == 0 else "neither HDF5" if length < 3 else "damaged or truncated"
        assert expected in one_line(path, read), length


@pytest.mark.parametrize("count", [1, 16, 100, 0.5], ids=str)
@pytest.mark.parametrize("write", KINDS)
def test_zeros_at_the_end_are_noticed(write: Any, count: float, tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path)
    image = path.read_bytes()
    zeros = int(count if count >= 1 else count * len(image))
    path.write_bytes(image[:-zeros] + bytes(zeros))
    assert "damaged or truncated" in one_line(path, read)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(data=st.data())
@pytest.mark.parametrize("write", KINDS)
def test_no_changed_byte_goes_unnoticed(
    write: Any, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path, whole = (tmp_path_factory.getbasetemp() / f"{end}.{write.__name__}" for end in ("damaged", "whole"))
    if not whole.exists():
        write(whole)
    image = bytearray(whole.read_bytes())
    # half of them where the structure is: at the beginning, at the end
    place = data.draw(st.integers(0, len(image) - 1) | st.integers(0, 60) | st.integers(-30, -1))
    image[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(image)
    one_line(path, read)


@pytest.mark.parametrize("write", KINDS)
def test_no_flipped_bit_of_the_opening_goes_unnoticed(write: Any, tmp_path: Path) -> None:
    """One such flip makes the second field look like another opening, which only files written anew have elsewhere."""
    path = tmp_path / "a"
    write(path)
    image = path.read_bytes()
    for bit in range(8 * 80):
        flipped = bytearray(image)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        one_line(path, read)


def test_a_file_over_64_megabytes_takes_its_size_in_memory(tmp_path: Path) -> None:
    """Where protobuf's own readers stop by default; here 100 MB, read into arrays and written from them."""
    path = tmp_path / "big.caffemodel"
    weight = np.arange(25_000_000, dtype=np.float32).reshape(5000, 5000)
    layers = {"ip": {0: weight, 1: weight[0]}}
    tracemalloc.start()
    write_model(path, layers, net=net_of(layers))
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    found = read_model(path).layers["ip"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > weight.nbytes > 64 << 20
    assert np.array_equal(found[0], weight) and np.array_equal(found[1], weight[0])
    assert written < 4 << 20
    assert peak < weight.nbytes + (8 << 20)


def test_what_exceeds_a_message_is_refused_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.caffemodel"
    small_model(path)
    old = path.read_bytes()
    monkeypatch.setattr(binary, "LIMIT", len(old) - 1)
    with pytest.raises(ForceregError, match="at most; set snapshot_format: HDF5") as caught:
        small_model(path)
    assert str(caught.value).startswith(f"cannot write {path}: the model takes ")
    assert path.read_bytes() == old and os.listdir(tmp_path) == [path.name]
    monkeypatch.setattr(binary, "LIMIT", len(old))
    small_model(path)


def test_two_gigabytes_are_the_limit() -> None:
    binary.check_size("s", 2**31 - 1, 2**31 - 1)
    for model, state, what in ((2**31, 0, "model"), (0, 2**31, "solver state")):
        expected = f"^s: the {what} takes 2,147,483,648 bytes, a binaryproto file 2,147,483,647 at most; set "
        with pytest.raises(ForceregError, match=expected):
            binary.check_size("s", model, state)


@pytest.mark.parametrize("value", [None, 2**64, b"bytes"], ids=repr)
def test_what_a_state_cannot_hold(value: object, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot hold 'x'"):
        write_state(tmp_path / "a", 1, 0, "", [], {"deep": {"x": value}}, binary=True)
    assert os.listdir(tmp_path) == []


def message(kind: Any, **fields: Any) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(kind(**fields).SerializeToString())


def twins(path: Path) -> None:
    net = net_of(["ip", "ip"])
    for layer in net.layer:
        layer.blobs.add(data=[1]).shape.dim.append(1)
    path.write_bytes(net.SerializeToString())


def misshapen(path: Path) -> None:
    net = net_of(["ip"])
    net.layer[0].blobs.add(data=[1, 2]).shape.dim.extend([2, 3])
    path.write_bytes(net.SerializeToString())


@pytest.mark.parametrize(
    ("write", "reads", "says"),
    [
        (small_state, read_model, "a solver state, expected a model; give its model, m.caffemodel; .* --snapshot"),
        (small_model, read_state, r"a model, expected a solver state; give the \.solverstate .* for --weights"),
        (message(SolverState, iter=5, learned_net="m"), read_model, "this is a solver state, expected a model"),
        (message(NetParameter, layer=[{"name": "a"}]), read_state, "this is a model, expected a solver state"),
        (message(NetParameter, layers=[{"name": "a"}]), read_state, "this is a model, expected a solver state"),
        (message(SolverState, iter=5), read_state, "not a Caffe solver state: it lacks 'learned_net'"),
        (message(SolverState, iter=-5, learned_net="m"), read_state, r"damaged or truncated \(iteration -5, step 0\)"),
        (message(SolverState, iter=5, learned_net="m", current_step=-1), read_state, r"\(iteration 5, step -1\)"),
        (message(NetParameter, name="net"), read_model, "a binary message, but neither a model nor a solver state"),
        (lambda path: path.write_bytes(b"\x08\x01\x10\x03\x18\x02"), read, "a binary message, but neither"),
        (lambda path: path.write_bytes(b"PX\x03\x04" + bytes(99)), read, "this is neither HDF5 nor binaryproto; exp"),
        (lambda path: path.write_text('\nname: "net"\n'), read, "this is text; expected a snapshot: a .caffemodel or"),
        (lambda path: path.write_bytes(b""), read, "the file is empty"),
        (lambda path: None, read, "no such file or directory; check the path"),
        (lambda path: path.mkdir(), read, "it is a folder"),
        (twins, read_model, "two layers are called 'ip' and have weights; rename one of them"),
        (misshapen, read_model, r"layer 'ip' blob 0 holds 2 values in shape \[2, 3\]; expected one value each"),
        (
            message(NetParameter, layer=[{"name": "a"}], layers=[{"name": "b"}]),
            read_model,
            "holds `layer` and `layers`, two formats in one",
        ),
    ],
    ids=[
        *("state-as-model", "model-as-state", "caffes-state-as-model", "caffes-model-as-state", "v1-as-state"),
        *(
            "no-learned-net",
            "negative-iteration",
            "negative-step",
            "no-layers",
            "mean-image",
            "zip",
            "text",
            "empty",
            "missing",
            "folder",
        ),
        *("two-of-a-name", "shape", "two-formats"),
    ],
)
def test_other_files_are_said_to_be_what_they_are(write: Any, reads: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.caffemodel"
    write(path)
    with pytest.raises(ForceregError, match=says) as caught:
        reads(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_equal_names_without_weights_are_read(tmp_path: Path) -> None:
    """A net of two phases has two `data` layers."""
    net = net_of(["data", "ip", "data", "ip"])
    net.layer[3].blobs.add(data=[4]).shape.dim.append(1)
    (tmp_path / "m").write_bytes(net.SerializeToString())
    assert same(read_model(tmp_path / "m").layers, {"data": {}, "ip": {0: np.full(1, 4, np.float32)}})
