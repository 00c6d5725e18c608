"""Models as named arrays, .safetensors and .npz: what is written comes back, and no damage goes unnoticed."""

from __future__ import annotations

import os
import stat
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.snapshot import is_binary, npz, read_model, read_state, write_arrays, write_model
from forcereg.snapshot.flat import CHECKSUM
from tests.small_nets import inputs, ip
from tests.snapshot.test_content import PROPERTY, float32s, one_line, same, texts

FORMS = ("safetensors", "npz")
NET = inputs(x=(2, 3)) + ip("ip", "x", "y", 4)
BLOBS = {"ip": {0: np.arange(12, dtype=np.float32).reshape(4, 3), 1: np.ones(4, np.float32)}}
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6) | st.sampled_from(
    ["", ".", "a.b.0", "../x", "/abs", "__metadata__", "file", "a\nb", "a\\b", "conv1/3x3 reduce", "x.npy", "*?:"]
)
attributes = st.dictionaries(st.sampled_from(["forcereg_net", "forcereg_seed", "é", "__metadata__"]), texts, max_size=3)


def written(form: str, path: Path, layers: Any = BLOBS, attrs: dict[str, str] | None = None) -> Path:
    write_arrays(path / f"m.{form}", form, layers, {"forcereg_net": NET} if attrs is None else attrs)
    return path / f"m.{form}"


@pytest.mark.parametrize("form", FORMS)
@PROPERTY
@given(
    layers=st.dictionaries(names, st.dictionaries(st.integers(0, 12), float32s, min_size=1, max_size=3), max_size=4),
    attrs=attributes,
)
def test_a_model_comes_back(form: str, layers: Any, attrs: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = read_model(written(form, tmp_path_factory.getbasetemp(), layers, attrs))
    assert same(model.layers, layers) and dict(model.attrs) == attrs and not model.legacy
    assert all(list(blobs) == sorted(blobs) for blobs in model.layers.values())


@pytest.mark.parametrize("form", FORMS)
def test_the_formats_own_programs_read_it(form: str, tmp_path: Path) -> None:
    path = written(form, tmp_path)
    if form == "npz":
        with np.load(path, allow_pickle=False) as file:
            found, told = {name: file[name] for name in file.files if "." in name}, file["forcereg_net"].item()
    else:
        with safe_open(path, framework="np") as file:
            found, told = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()["forcereg_net"]  # noqa: SIM118
    assert told == NET and same(found, {"ip.0": BLOBS["ip"][0], "ip.1": BLOBS["ip"][1]})
    assert not is_binary(path)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_cut_anywhere_is_one_line(form: str, tmp_path: Path) -> None:
    path = written(form, tmp_path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert any(text in one_line(path, read_model) for text in ("is empty", "damaged or trunc", "expected a snapsh"))


@pytest.mark.parametrize("form", FORMS)
def test_a_changed_byte_is_noticed_or_changes_nothing(form: str, tmp_path: Path) -> None:
    path = written(form, tmp_path)
    whole, model = path.read_bytes(), read_model(path)
    # where safetensors calls the checksum by its name: by another one there is none
    name = whole.find(CHECKSUM.encode()) if form == "safetensors" else len(whole)
    for at in {*range(len(whole))} - {*range(name, name + len(CHECKSUM))}:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            found = read_model(path)
        except ForceregError as error:
            assert "\n" not in str(error) and str(path) in str(error)
        else:
            assert same(found.layers, model.layers) and found.attrs == model.attrs


def foreign(path: Path, **arrays: Any) -> Path:
    """A file by another program, compressed."""
    np.savez_compressed(path, **arrays)
    return path


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "bfloat16"])
def test_other_floats_become_float32(kind: str, tmp_path: Path) -> None:
    values = torch.tensor([[1.5, -2.0], [0.25, 1e30 if kind != "float16" else 8]], dtype=getattr(torch, kind))
    save_file({"ip.0": values}, tmp_path / "a.safetensors")
    paths = [tmp_path / "a.safetensors"]
    if kind != "bfloat16":
        paths.append(foreign(tmp_path / "a.npz", **{"ip.0": np.asfortranarray(values.numpy())}))
    for path in paths:
        assert same(read_model(path).layers, {"ip": {0: values.float().numpy()}})


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def npy(shape: str, kind: str = "<f4", data: bytes = b"") -> bytes:
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


def headed(path: Path, header: bytes, length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)
    return path


def saved(path: Path) -> Path:
    torch.save({"ip": torch.ones(2)}, path)
    return path


def twice(path: Path) -> Path:
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        for _ in range(2):
            archive.writestr("ip.0.npy", npy("(1,)", data=bytes(4)))
    return path


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickle": (saved, "is a zip with .*; expected the arrays of an .npz (what torch.save writes"),
    "objects": (lambda p: np.savez(p, **{"ip.0": np.array([{}])}), "'ip.0.npy' holds Python objects, a pickle"),
    "whole numbers": (lambda p: np.savez(p, **{"ip.0": np.ones(2, int)}), "'ip.0' holds values of type int64"),
    "texts": (lambda p: np.savez(p, **{"ip.0": np.array(["a"])}), "'ip.0' holds values of type <U1; expected floats"),
    "structure": (lambda p: np.savez(p, **{"ip.0": np.zeros(2, "f4,i4")}), "holds values of type [('f0', '<f4'),"),
    "no name": (lambda p: np.savez(p, np.ones(2)), "holds an array 'arr_0'; expected names as 'conv1.0'"),
    "a word": (lambda p: foreign(p, **{"ip.weight": np.ones(2)}), "holds an array 'ip.weight'; expected names as"),
    "00": (lambda p: foreign(p, **{"ip.00": np.ones(2)}), "holds an array 'ip.00'; expected names as"),
    "no numpy": (lambda p: zipped(p, {"ip.0.npy": b"hello, this is no array"}), "opens with no header of an array"),
    "bomb": (lambda p: zipped(p, {"ip.0.npy": npy("(1099511627776,)")}), "declares shape"),
    "negative": (lambda p: zipped(p, {"ip.0.npy": npy("(-1, -1)", data=bytes(4))}), "declares shape [-1, -1]"),
    "too little": (lambda p: zipped(p, {"ip.0.npy": npy("(3,)", data=bytes(8))}), "declares shape [3] of float32 in 8"),
    "too much": (lambda p: zipped(p, {"ip.0.npy": npy("(1,)", data=bytes(8))}), "declares shape [1] of float32 in 8"),
    "axes": (lambda p: zipped(p, {"ip.0.npy": npy(f"({'1,' * 33})", data=bytes(4))}), "declares shape [1, 1, 1, 1,"),
    "call": (lambda p: zipped(p, {"ip.0.npy": npy("exit(3)")}), "('ip.0.npy' opens with no header of an array)"),
    "lzma": (lambda p: zipped(p, {"ip.0.npy": npy("()", data=bytes(4))}, zipfile.ZIP_LZMA), "compressed by method 14"),
    "twice": (twice, "damaged or truncated ('ip.0' is there twice)"),
    "ends early": (lambda p: headed(p, b"{}", 99), "damaged or truncated (its header tells 99 bytes, the file"),
    "long header": (lambda p: headed(p, b"{}", 1 << 31), "its header tells 2,147,483,648 bytes, safetensors"),
    "no JSON": (lambda p: headed(p, b"{]"), "damaged or truncated (Error while deserializing header"),
    "whole tensor": (lambda p: save_file({"ip.0": torch.ones(2).int()}, p), "'ip.0' holds values of type I32"),
    "state": (lambda p: save_file(torch.nn.Linear(1, 1).state_dict(), p), "'bias'; expected names as 'conv1.0'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_model_is_one_line(name: str, tmp_path: Path) -> None:
    make, says = WRONG[name]
    make(tmp_path / "a.npz")
    told = one_line(tmp_path / "a.npz", read_model)
    assert all(part in told for part in says.split(".*")), told


def test_what_memory_cannot_hold_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "_SPARE", 100)
    monkeypatch.setattr(npz, "free_memory", lambda: 1000)
    foreign(tmp_path / "a.npz", **{"ip.0": np.zeros((100, 100))})
    assert "its arrays take 80,128 bytes, but only 1,000 bytes of memory are" in one_line(
        tmp_path / "a.npz", read_model
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("layers", "attrs", "says"),
    [
        ({"a\0": BLOBS["ip"]}, {}, r"'a\\x00.0' holds a NUL character; write a .caffemodel"),
        ({"\udcff": BLOBS["ip"]}, {}, "isn't Unicode; write a .caffemodel"),
        ({"n" * 70_000: BLOBS["ip"]}, {}, "is longer than 60,000 bytes; choose a shorter one"),
        (BLOBS, {"forcereg_net": "a\0b"}, "holds a NUL character"),
        (BLOBS, {"ip.0": "text"}, "'ip.0' is a blob and an attribute; rename the layer"),
    ],
    ids=["nul", "surrogate", "long", "text", "both"],
)
def test_what_cannot_be_written(form: str, layers: Any, attrs: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ForceregError, match=says) as caught:
        written(form, tmp_path, layers, attrs)
    assert "\n" not in str(caught.value) and os.listdir(tmp_path) == []


@pytest.mark.parametrize("form", FORMS)
def test_the_file_is_everybodys_and_the_old_one_stays_until_it_is_whole(form: str, tmp_path: Path) -> None:
    path = written(form, tmp_path)
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    old = path.read_bytes()
    with pytest.raises(ForceregError, match="NUL"):
        written(form, tmp_path, {"a\0": BLOBS["ip"]})
    assert path.read_bytes() == old
    with pytest.raises(ForceregError, match=r"there is no folder .*; make it first"):
        written(form, tmp_path / "none")


def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written("safetensors", tmp_path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: read_model(path), lambda: written("safetensors", tmp_path)):
        with pytest.raises(ForceregError, match=r'needs the library of that name; .* pip install "forcereg\[export\]"'):
            call()


@pytest.mark.parametrize("form", FORMS)
def test_a_model_is_no_state(form: str, tmp_path: Path) -> None:
    with pytest.raises(ForceregError, match="this is a model, expected a solver state"):
        read_state(written(form, tmp_path))


# -- into nets


def every_form(path: Path, layers: Any, **attrs: str) -> list[Path]:
    """The same model in HDF5 and as named arrays."""
    write_model(path / "m.caffemodel.h5", layers, attrs=attrs)
    return [path / "m.caffemodel.h5", *(written(form, path, layers, attrs) for form in FORMS)]


SHARED = "\n".join(
    [inputs(a=(2, 3)), *(ip(name, "a", f"y{name}", 4, 'param { name: "w" } param { name: "b" }') for name in "pq")]
)


def test_a_net_takes_them_as_it_takes_hdf5(tmp_path: Path) -> None:
    for path in every_form(tmp_path, BLOBS):
        net = load_net(NET, path)
        assert same({0: net.params["ip"][0].detach().numpy()}, {0: BLOBS["ip"][0]})


@pytest.mark.parametrize("everywhere", [False, True])
def test_shared_blobs(everywhere: bool, tmp_path: Path) -> None:
    layers = {"p": BLOBS["ip"], **({"q": BLOBS["ip"]} if everywhere else {})}
    for path in every_form(tmp_path, layers):
        net = load_net(SHARED, path)
        assert net.params["q"][0] is net.params["p"][0] and net.params["p"][0][3, 2] == 11


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        (
            {"ip": {0: np.ones((1, 1, 4, 3)), 1: np.ones(4)}},
            r"layer 'ip' blob 0: shape \(1, 1, 4, 3\) in the file, \(4, 3",
        ),
        ({"ip": {0: np.ones((3, 4)), 1: np.ones(4)}}, r"blob 0: shape \(3, 4\) in the file, \(4, 3\) in the net"),
        ({"ip": {0: np.ones((4, 3)), 1: np.float32(1)}}, r"blob 1: shape \(\) in the file, \(4,\) in the net"),
        ({"ip": {0: np.ones((4, 3))}}, r"blob 1: not in the file \(has \[0\]\)"),
        ({"ip": {0: np.ones((4, 3)), 1: np.ones(4), 2: np.ones(1)}}, "has a blob 2 in the file, but only 2 blobs in"),
        ({"other": {0: np.ones(1)}}, "none of its layers with weights is in the net: it has other, the net has ip"),
    ],
    ids=["four-axes", "turned", "no-axes", "missing", "surplus", "another"],
)
def test_what_does_not_fit_is_told_as_of_hdf5(layers: Any, says: str, tmp_path: Path) -> None:
    told = []
    for path in every_form(tmp_path, layers):
        with pytest.raises(ForceregError, match=says) as caught:
            load_net(NET, path)
        told.append(str(caught.value).replace(str(path), "FILE"))
    assert len({*told}) == 1
