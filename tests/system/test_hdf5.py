"""What an HDF5 file may hold: whatever leaves the file, has no end or takes memory for nothing is one line."""

from __future__ import annotations

import functools
import io
import os
import re
import zlib
from collections.abc import Callable
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from forcereg.data.feed import FeedContext
from forcereg.data.hdf5_data import HDF5Feed
from forcereg.errors import ForceregError
from forcereg.layers.output import append, create
from forcereg.snapshot import ModelFile, container, read, write_model, write_state
from forcereg.system import hdf5
from forcereg.system.hdf5 import Reader, Refused
from tests.conftest import RunCli
from tests.data.lmdbs import data_spec

NET = """
name: "n"
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 1 dim: 4 dim: 4 } } }
layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 4 kernel_size: 3 } }
"""
VALUES = np.arange(36, dtype=np.float32).reshape(4, 1, 3, 3)

Put = Callable[[h5py.Group, str, Path], None]
"""Puts something hostile as member `name` into a group; files beside it lie in the folder."""


def external(group: h5py.Group, name: str, folder: Path) -> None:
    (folder / "secret").write_bytes(bytes(144))
    group.create_dataset(name, VALUES.shape, "f4", external=[(str(folder / "secret"), 0, 144)])


def virtual(group: h5py.Group, name: str, folder: Path, source: str = "other.h5", path: str = "0") -> None:
    layout = h5py.VirtualLayout(VALUES.shape, "f4")
    layout[...] = h5py.VirtualSource(str(folder / source) if source != "." else ".", path, VALUES.shape)
    with h5py.File(folder / "other.h5", "w") as other:
        other["0"] = VALUES
    group.create_virtual_dataset(name, layout)


def own_source(group: h5py.Group, name: str, folder: Path) -> None:
    virtual(group, name, folder, ".", f"{group.name}/{name}")


def external_link(group: h5py.Group, name: str, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["0"] = VALUES
    group[name] = h5py.ExternalLink(str(folder / "other.h5"), "/0")


def soft_link(group: h5py.Group, name: str, folder: Path) -> None:
    group["real"] = VALUES
    group[name] = h5py.SoftLink(f"{group.name}/real")


def dangling(group: h5py.Group, name: str, folder: Path) -> None:
    group[name] = h5py.SoftLink("/nowhere")


def huge(group: h5py.Group, name: str, folder: Path) -> None:
    group.create_dataset(name, (1 << 40,), "f4", chunks=(1024,))


def huge_contiguous(group: h5py.Group, name: str, folder: Path) -> None:
    group.create_dataset(name, (1 << 40,), "f4")


def huge_chunk(group: h5py.Group, name: str, folder: Path) -> None:
    group.create_dataset(name, (4,), "f4", maxshape=(None,), chunks=(1 << 29,))


def bomb(group: h5py.Group, name: str, folder: Path) -> None:
    """Deflated twice, 100 MB need less than a KB."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((25 << 20,))
    for _ in range(2):
        settings.set_deflate(9)
    space = h5py.h5s.create_simple((25 << 20,))
    dataset = h5py.h5d.create(group.id, name.encode(), h5py.h5t.IEEE_F32LE, space, settings)
    dataset.write_direct_chunk((0,), deflated())


@functools.cache
def deflated() -> bytes:
    return zlib.compress(zlib.compress(bytes(100 << 20), 9), 9)


def reference(group: h5py.Group, name: str, folder: Path) -> None:
    group[name] = group.ref


def compound(group: h5py.Group, name: str, folder: Path) -> None:
    group[name] = np.zeros(4, "f4,f4")


def ragged(group: h5py.Group, name: str, folder: Path) -> None:
    group.create_dataset(name, (4,), h5py.vlen_dtype(np.float32))


def enumerated(group: h5py.Group, name: str, folder: Path) -> None:
    group.create_dataset(name, (4,), h5py.enum_dtype({"A": 0, "B": 1, "C": 2}))


def named_type(group: h5py.Group, name: str, folder: Path) -> None:
    group[name] = np.dtype("f4")


def empty(group: h5py.Group, name: str, folder: Path) -> None:
    group[name] = h5py.Empty("f4")


def foreign_filter(group: h5py.Group, name: str, folder: Path) -> None:
    """Of a number that nobody has registered; it may be left out, so that writing works."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((4, 1, 3, 3))
    settings.set_filter(h5py.h5z.FILTER_DEFLATE, h5py.h5z.FLAG_OPTIONAL, (1,))
    space = h5py.h5s.create_simple(VALUES.shape)
    h5py.h5d.create(group.id, name.encode(), h5py.h5t.IEEE_F32LE, space, settings)


LEAVES = (external, virtual, own_source, external_link, soft_link, dangling)
ENDLESS = (huge, huge_contiguous, huge_chunk, bomb)
FOREIGN = (reference, compound, ragged, enumerated, named_type, empty)
HOSTILE = pytest.mark.parametrize("put", [*LEAVES, *ENDLESS, *FOREIGN], ids=lambda put: put.__name__)


def says(put: Put) -> str:
    if put in ENDLESS:
        return "declares"
    if put in FOREIGN:
        return "expected"
    return "which isn't read" if put in (external, virtual, own_source) else "is a link, which isn't followed"


def group_for(path: Path, where: str) -> None:
    """A snapshot, without our checksum, which lacks what `where` (a member's path) will be."""
    state = not where.startswith("data")
    if state:
        write_state(path, 3, 0, "x.caffemodel.h5", [VALUES], {"loss_count": 3, "feeds": {"0": {"name": "a"}}})
    else:
        write_model(path, {"c": {0: VALUES}}, attrs={"forcereg_net": NET})
    with h5py.File(path, "r+") as file:
        if where in file:
            del file[where]


def one_line(call: Callable[[], object], *texts: str) -> None:
    with pytest.raises(ForceregError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line and "damaged" not in line
    for text in texts:
        assert text in line


@HOSTILE
@pytest.mark.parametrize("where", ["data/c/0", "history/0", "iter", "forcereg/loss_count", "forcereg/feeds/0/name"])
def test_snapshots_hold_plain_datasets(put: Put, where: str, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    group_for(path, where)
    with h5py.File(path, "r+") as file:
        put(file[where.rpartition("/")[0] or "/"], where.rpartition("/")[2], tmp_path)
    one_line(lambda: read(path), f"{path}: '/{where}' ", says(put))


@pytest.mark.parametrize("where", ["data", "data/c", "history", "forcereg", "forcereg/feeds"])
@pytest.mark.parametrize("put", [external_link, soft_link, dangling], ids=lambda put: put.__name__)
def test_groups_are_no_links_either(put: Put, where: str, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    group_for(path, where)
    with h5py.File(path, "r+") as file:
        put(file[where.rpartition("/")[0] or "/"], where.rpartition("/")[2], tmp_path)
    one_line(lambda: read(path), f"{path}: '/{where}' is a link")


@HOSTILE
@pytest.mark.parametrize("top", ["y", "group/y"])
def test_data_are_plain_datasets(put: Put, top: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = VALUES
        put(file.require_group("group") if "/" in top else file["/"], "y", tmp_path)
    (tmp_path / "list.txt").write_text("a.h5")
    param = 'hdf5_data_param { source: "list.txt" batch_size: 2 }'
    text = f'layer {{ name: "d" type: "HDF5Data" top: "x" top: "{top}" {param} }}'
    context = FeedContext(tmp_path, torch.device("cpu"), 1)
    one_line(lambda: HDF5Feed(data_spec(text), context), f"a.h5: '/{top}' ", says(put))


@HOSTILE
def test_what_nobody_reads_may_be_anything(put: Put, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = VALUES
        put(file["/"], "y", tmp_path)
    with h5py.File(tmp_path / "a.h5") as file:
        assert Reader(file, 1 << 20).find("x") == file["x"]


OPTIONS = [
    {"compression": "gzip"},
    {"compression": "gzip", "shuffle": True, "fletcher32": True},
    {"compression": "lzf"},
    {"chunks": (50, 5)},
    {"maxshape": (None, 1000)},
]
KINDS = ["f2", "f4", "f8", "u1", "i8", "?"]


@pytest.mark.parametrize(
    ("options", "kind"), [*product(OPTIONS, KINDS), ({"scaleoffset": 2}, "i8"), ({"scaleoffset": 2}, "f4")], ids=str
)
def test_what_hdf5_data_hold_is_read(options: dict[str, object], kind: str, tmp_path: Path) -> None:
    values = (np.arange(100_000).reshape(100, 1000) % 2).astype(kind)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values, **options)
        file["again"] = file["x"]
    with h5py.File(tmp_path / "a.h5") as file:
        reader = Reader(file, os.path.getsize(tmp_path / "a.h5"))
        for name in ("x", "again"):
            dataset = reader.find(name)
            assert isinstance(dataset, h5py.Dataset)
            np.testing.assert_array_equal(reader.values(dataset), values)


def circle(file: h5py.File) -> None:
    file["data/c/again"] = file["data"]


def many_circles(file: h5py.File) -> None:
    for number in range(100):
        file[f"data/c/{number}g"] = file["data/c"]


def diamonds(file: h5py.File) -> None:
    """2^60 ways, no circle."""
    group = file["data/c"]
    for _ in range(60):
        below = group.create_group("l")
        group["r"] = below
        group = below


def deep(file: h5py.File) -> None:
    file.create_group("data/" + "/".join("g" * 3000))


@pytest.mark.parametrize("put", [circle, many_circles, diamonds, deep], ids=lambda put: put.__name__)
def test_groups_come_to_an_end(put: Callable[[h5py.File], None], tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    group_for(path, "data/none")
    with h5py.File(path, "r+") as file:
        put(file)
    one_line(lambda: read(path), "within groups" if put is deep else "lies in two places")


@pytest.mark.parametrize("parts", [60, 61])
def test_what_can_be_written_can_be_read(parts: int, tmp_path: Path) -> None:
    layers = {"/".join("n" * parts): {0: VALUES}}
    if parts > 60:
        one_line(lambda: write_model(tmp_path / "a.h5", layers), "61 parts between `/`")
    else:
        write_model(tmp_path / "a.h5", layers)
        found = read(tmp_path / "a.h5")
        assert isinstance(found, ModelFile) and list(found.layers) == list(layers)


def test_members_and_attributes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "MOST", 50)
    write_model(tmp_path / "a.h5", {f"l{i}": {0: VALUES} for i in range(26)})
    one_line(lambda: read(tmp_path / "a.h5"), "holds more than 50 members")
    write_model(tmp_path / "b.h5", {"c": {0: VALUES}}, attrs={f"a{i}": "x" for i in range(1001)})
    one_line(lambda: read(tmp_path / "b.h5"), "'/' has 1,001 attributes; expected at most 1,000")


def test_values_in_one_place_are_counted_for_each_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "SPARE", 1000)
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file["0"] = np.zeros(10_000, "f4")
        for number in range(1, 20):
            file[str(number)] = file["0"]
        reader = Reader(file, 50_000)
        with pytest.raises(Refused, match="declares 40,000 bytes of values"):
            for _, member in reader.members(reader.root):
                assert isinstance(member, h5py.Dataset)
                reader.values(member)


def test_memory_that_is_not_there_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "SPARE", 1000)
    monkeypatch.setattr(hdf5, "free_memory", lambda: 39_999)
    with h5py.File(io.BytesIO(), "w") as file:
        file["x"] = np.zeros(10_000, "f4")
        with pytest.raises(Refused, match="40,000 bytes of values, but only 39,999 bytes of memory are free"):
            Reader(file, 50_000).values(file["x"])


def test_many_texts_may_be_one() -> None:
    with h5py.File(io.BytesIO(), "w") as file:
        file["x"] = ["a", "b"]
        with pytest.raises(Refused, match="'/x' holds 2 values of type object; expected one text"):
            Reader(file, 50_000).text(file["x"])


@pytest.mark.parametrize("length", [1 << 20, (1 << 32) - 1])
@pytest.mark.parametrize("kind", ["attribute", "name"])
def test_texts_are_as_long_as_the_file_holds(kind: str, length: int, tmp_path: Path) -> None:
    """HDF5 reserves the memory before it looks."""
    path, text = tmp_path / "a.h5", "t" * 1234
    if kind == "attribute":
        write_model(path, {"c": {0: VALUES}}, attrs={"forcereg_net": text, "ä": "x"})
    else:
        write_state(path, 3, 0, "x.caffemodel.h5", [], {"name": text})
    content = path.read_bytes()[:-16]
    (place,) = re.finditer(re.escape((1234).to_bytes(4, "little")) + rb".{8}[\1-\20]\0\0\0", content, re.DOTALL)
    path.write_bytes(content[: place.start()] + length.to_bytes(4, "little") + content[place.start() + 4 :])
    with pytest.raises(ForceregError, match=f"a text of {length:,} bytes isn't in the heap that it should be in"):
        read(path)


@pytest.mark.parametrize("count", [1, 5, 40])
def test_texts_come_back_however_many(count: int, tmp_path: Path) -> None:
    """Beyond some the header goes on elsewhere."""
    attrs = {f"name {'x' * (7 * i)} ä{i}": "text" * 99 * i for i in range(count)}
    write_model(tmp_path / "a.h5", {"c": {0: VALUES}}, attrs=attrs)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs["number"] = 3
        file.attrs["later"] = attrs["later"] = "é" * 5000
        del file.attrs["number"]
    found = read(tmp_path / "a.h5")
    assert isinstance(found, ModelFile) and found.attrs == attrs


def test_filters_of_others_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        foreign_filter(file, "0", tmp_path)
    content = path.read_bytes()
    at = content.index(b"deflate\0")  # behind number, length of the name, flags and count of values, two bytes each
    path.write_bytes(content[: at - 8] + (32001).to_bytes(2, "little") + content[at - 6 :])
    with h5py.File(path) as file, pytest.raises(Refused, match=r"'/0' needs filter 32001 'deflate.*isn't loaded"):
        Reader(file, 50_000).find("0")


@pytest.mark.parametrize("put", [external, virtual, soft_link], ids=lambda put: put.__name__)
def test_output_is_appended_to_what_it_made(put: Put, tmp_path: Path) -> None:
    path, rows = tmp_path / "out.h5", {"data": np.zeros((2, 1, 1, 1), "f4"), "label": np.zeros((2, 1, 1, 1), "f4")}
    create(path, rows)
    append(path, rows)
    with h5py.File(path, "r+") as file:
        del file["label"]
        put(file["/"], "label", tmp_path)
    one_line(lambda: append(path, rows), f"cannot append to {path}", "let nothing else change it")


@pytest.mark.parametrize("put", [external, own_source, huge, soft_link, bomb], ids=lambda put: put.__name__)
def test_a_command_says_it_in_one_line(put: Put, tmp_path: Path, run_cli: RunCli) -> None:
    path = tmp_path / "a.caffemodel.h5"
    group_for(path, "data/c/0")
    with h5py.File(path, "r+") as file:
        put(file["data/c"], "0", tmp_path)
    result = run_cli("ranks", path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"forcereg: {path}: '/data/c/0' ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[]", "3", '{"x": 3}', '{"x": [1e999]}', "{", '{"x": [true]}', "9" * 9999]
)
def test_input_shapes_in_another_form_are_none(text: str, tmp_path: Path) -> None:
    write_model(tmp_path / "a.h5", {"c": {0: VALUES}}, attrs={"forcereg_input_shapes": text})
    found = read(tmp_path / "a.h5")
    assert getattr(found, "input_shapes", 0) is None


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
@pytest.mark.parametrize("name", ["a.h5", "list.txt"])
def test_what_is_no_file_is_not_waited_for(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.h5")
    path = tmp_path / name
    path.unlink(missing_ok=True)
    {"fifo": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    text = 'layer { name: "d" type: "HDF5Data" top: "x" hdf5_data_param { source: "list.txt" batch_size: 2 } }'
    context = FeedContext(tmp_path, torch.device("cpu"), 1)
    what = {"fifo": "a pipe", "device": "a device", "folder": "a folder"}[kind]
    one_line(lambda: HDF5Feed(data_spec(text), context), f"it is {what}, expected a regular file")


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    """Caffe takes any bytes for a layer's name; those of HDF5Data's datasets are told."""
    write_model(tmp_path / "a.h5", {"c": {0: VALUES}})
    data = (tmp_path / "a.h5").read_bytes()[: -container.FOOTER]
    (tmp_path / "a.h5").write_bytes(data)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        h5py.h5g.GroupID.move(file["data"].id, b"c", b"c\xe9")
    model = read(tmp_path / "a.h5")
    assert isinstance(model, ModelFile) and list(model.layers) == ["c\udce9"]
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = VALUES
        h5py.h5g.GroupID.move(file.id, b"x", b"x\xe9")
    (tmp_path / "list.txt").write_text("b.h5")
    text = 'layer { name: "d" type: "HDF5Data" top: "x" hdf5_data_param { source: "list.txt" batch_size: 2 } }'
    context = FeedContext(tmp_path, torch.device("cpu"), 1)
    one_line(lambda: HDF5Feed(data_spec(text), context), r"b.h5: no dataset 'x'; ", r"x\udce9")
