"""Silence and HDF5Output: layers without tops."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forcereg.errors import ForceregError
from forcereg.layers.output import Staged, append, create
from forcereg.net.load import load_net, shape_net
from forcereg.net.module import Net
from tests.layers.nets import layer_error, layer_text, noise
from tests.nursery import Nursery
from tests.small_nets import module_copies


def text(path: Path | str, data: tuple[int, ...] = (3, 2), label: tuple[int, ...] = (3,)) -> str:
    return layer_text("HDF5Output", f'hdf5_output_param {{ file_name: "{path}" }}', data, label, tops=0)


def feed(net: Net, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """One forward; what should be in the file of it."""
    data, label = noise(rows, 2, seed=seed).float(), noise(rows, seed=seed + 100).float()
    assert net(x0=data, x1=label) == {}
    return {"data": data.reshape(rows, 2, 1, 1).numpy(), "label": label.reshape(rows, 1, 1, 1).numpy()}


def content(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: item[()] for name, item in file.items()}


def same(path: Path, *batches: dict[str, np.ndarray]) -> None:
    found = content(path)
    assert found.keys() == {"data", "label"}
    for name, values in found.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, np.concatenate([batch[name] for batch in batches]))


# -- Silence


def test_silence_makes_no_output_and_gives_no_gradient() -> None:
    net = load_net(layer_text("Silence", "", (2, 3), (4,), tops=0))
    assert net.spec.outputs == ()
    x = torch.ones(2, 3, requires_grad=True)
    loss, outputs = net.forward_loss({"x0": x, "x1": torch.ones(4)})
    assert (float(loss), loss.requires_grad, outputs) == (0, False, {})


def test_silence_beside_a_loss_adds_no_gradient() -> None:
    blobs = layer_text("Silence", "", (2, 3), (2, 3), tops=0)
    net = load_net(blobs + '\nlayer { name: "loss" type: "EuclideanLoss" bottom: "x0" bottom: "x1" top: "loss" }')
    x, y = noise(2, 3).requires_grad_(), noise(2, 3, seed=1)
    net(x0=x, x1=y)["loss"].backward()
    torch.testing.assert_close(x.grad, (x - y).detach() / 2)


def test_silence_takes_bottoms_only() -> None:
    assert layer_error("Silence", "", tops=0) == "has 0 bottom blobs; type Silence takes at least 1"
    assert layer_error("Silence", "", (2,), tops=1) == "has 1 top blobs; type Silence takes 0"


# -- HDF5Output: what is written


@pytest.mark.parametrize(
    ("shape", "written"),
    [((), (1, 1, 1, 1)), ((3,), (3, 1, 1, 1)), ((3, 2), (3, 2, 1, 1)), ((3, 2, 4), (3, 2, 4, 1)), ((3, 2, 4, 5),) * 2],
)
def test_missing_axes_are_1(shape: tuple[int, ...], written: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    x = noise(*shape)
    load_net(text(path, shape, shape[:1]))(x0=x, x1=torch.zeros(shape[:1]))
    found = content(path)
    assert (found["data"].shape, found["label"].shape) == (written, (*written[:1], 1, 1, 1))
    np.testing.assert_array_equal(found["data"], x.reshape(written).float())


def test_channels_last_is_written_in_order(tmp_path: Path) -> None:
    x = noise(2, 3, 4, 5).float()
    net = load_net(text(tmp_path / "out.h5", (2, 3, 4, 5), (2,)))
    net(x0=x.contiguous(memory_format=torch.channels_last), x1=torch.zeros(2))
    np.testing.assert_array_equal(content(tmp_path / "out.h5")["data"], x)


def test_every_forward_appends_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    net, batches = load_net(text(path)), []
    for seed, rows in enumerate([3, 1, 0, 5, 3]):
        batches.append(feed(net, rows, seed))
        same(path, *batches)
    assert os.listdir(tmp_path) == ["out.h5"]


def test_the_first_rows_may_be_none(tmp_path: Path) -> None:
    net = load_net(text(tmp_path / "out.h5"))
    same(tmp_path / "out.h5", *[feed(net, rows) for rows in (0, 2)])


@settings(max_examples=15)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    row=st.tuples(st.integers(0, 40), st.integers(1, 9), st.integers(1, 60)),
)
def test_any_rows_come_back(counts: list[int], row: tuple[int, ...], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("rows") / "out.h5"
    random = np.random.default_rng(0)
    batches = [
        {"data": random.random((n, *row), np.float32), "label": random.random((n, 1, 1, 1), np.float32)} for n in counts
    ]
    for index, batch in enumerate(batches):
        (append if index else create)(path, batch)
    same(path, *batches)


def test_single_rows_share_chunks(tmp_path: Path) -> None:
    """An index entry per row would make the file of a long run many times its contents."""
    net = load_net(text(tmp_path / "out.h5", (1, 2), (1,)))
    for _ in range(50):
        feed(net, 1)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["data"].chunks[0] >= 1000 and file["label"].chunks[0] >= 1000
    assert (tmp_path / "out.h5").stat().st_size < 100_000


# -- HDF5Output: when the file is touched


def test_building_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "out.h5").write_text("old")
    load_net(text(tmp_path / "out.h5"))
    shape_net(text(tmp_path / "out.h5"))
    load_net(text(tmp_path / "missing" / "out.h5"))
    assert (tmp_path / "out.h5").read_text() == "old" and os.listdir(tmp_path) == ["out.h5"]


def test_the_first_forward_replaces_an_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    feed(load_net(text(path)), 3, 1)
    same(path, feed(load_net(text(path)), 2, 2))


def test_a_relative_name_starts_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = load_net(text("out.h5"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    same(tmp_path / "out.h5", feed(net, 3), feed(net, 2, 1))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save"])
def test_a_copy_of_the_net_goes_on_with_the_file(how: str, tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    net = load_net(text(path))
    first = feed(net, 3)
    again = module_copies(net)[how]
    same(path, first, feed(again, 2, 1), feed(net, 1, 2))


def test_a_file_that_was_taken_away_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    net = load_net(text(path))
    first = feed(net, 3)
    path.rename(tmp_path / "part1.h5")
    same(path, feed(net, 2, 1))
    same(tmp_path / "part1.h5", first)


def test_a_reader_does_not_stop_the_net(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    net = load_net(text(path))
    first = feed(net, 3)
    with h5py.File(path) as reader:
        second = feed(net, 2, 1)
        np.testing.assert_array_equal(reader["data"][:3], first["data"])
    same(path, first, second)


def test_bottoms_get_no_gradient(tmp_path: Path) -> None:
    blobs = text(tmp_path / "out.h5", (3, 2), (3, 2))
    net = load_net(blobs + '\nlayer { name: "loss" type: "EuclideanLoss" bottom: "x0" bottom: "x1" top: "loss" }')
    x, y = noise(3, 2).requires_grad_(), noise(3, 2, seed=1)
    net(x0=x, x1=y)["loss"].backward()
    torch.testing.assert_close(x.grad, (x - y).detach() / 3)


# -- HDF5Output: what is refused


@pytest.mark.parametrize(
    ("param", "shapes", "message"),
    [
        ("", ((3, 2), (3,)), 'has no file to write; give hdf5_output_param { file_name: "out.h5" }'),
        ('file_name: ""', ((3, 2), (3,)), "has no file to write"),
        (
            'file_name: "a"',
            ((3, 2), (4,)),
            "bottom 0 has 3 rows and bottom 1 has 4; make axis 0 of [3, 2] and [4] equal",
        ),
        ('file_name: "a"', ((3, 2), ()), "bottom 0 has 3 rows and bottom 1 has 1"),
        (
            'file_name: "a"',
            ((1, 2, 3, 4, 5), (1,)),
            "bottom 0 has shape [1, 2, 3, 4, 5]; a dataset has 4 axes, put a Fl",
        ),
        ('file_name: "a"', ((1,), (1, 2, 3, 4, 5)), "bottom 1 has shape [1, 2, 3, 4, 5]"),
        ('file_name: "a"', ((3, 2),), "has 1 bottom blobs; type HDF5Output takes 2"),
    ],
)
def test_bad_hdf5_output(param: str, shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    assert message in layer_error("HDF5Output", f"hdf5_output_param {{ {param} }}", *shapes, tops=0)


def refused(net: Net, rows: int = 3) -> str:
    with pytest.raises(ForceregError) as info:
        feed(net, rows)
    found = str(info.value)
    assert found.startswith("<text>:3: layer 'l': cannot ") and "\n" not in found
    return found


def test_a_missing_folder(tmp_path: Path) -> None:
    path = tmp_path / "none" / "out.h5"
    assert f"cannot write {path}: there is no folder {path.parent}; make it first" in refused(load_net(text(path)))


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    assert "it is no regular file; choose another name" in refused(load_net(text(tmp_path)))


def test_rows_fed_must_agree(tmp_path: Path) -> None:
    net = load_net(text(tmp_path / "out.h5"))
    with pytest.raises(ForceregError, match="layer 'l': bottom 0 has 2 rows and bottom 1 has 1"):
        net(x0=torch.ones(2, 2), x1=torch.ones(1))


def test_rows_of_another_shape(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    net = load_net(text(path))
    first = feed(net, 3)
    with pytest.raises(
        ForceregError, match=r"the rows of `data` are \[5, 1, 1\], those in the file \[2, 1, 1\]; keep one"
    ):
        net(x0=torch.ones(3, 5), x1=torch.ones(3))
    same(path, first)


@pytest.mark.parametrize("damage", ["text", "no datasets", "cut"])
def test_a_file_that_something_else_changed(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    net = load_net(text(path))
    feed(net, 3)
    if damage == "text":
        path.write_text("not HDF5")
    elif damage == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        with h5py.File(path, "w") as file:
            file.create_group("data")
    before = path.read_bytes()
    assert f"cannot append to {path}: " in refused(net) and path.read_bytes() == before


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = load_net(text(tmp_path / "out.h5"))
    feed(net, 3)

    def deny(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("forcereg.layers.output.Staged.__init__", deny)  # root may write everywhere
    path = tmp_path / "out.h5"
    assert f"cannot write {path}: permission denied; make its folder writable or write elsewhere" in refused(net)


def test_a_full_disk_leaves_the_rows_written_before(tmp_path: Path, nursery: Nursery) -> None:
    path = tmp_path / "out.h5"
    script = """
import resource, sys, torch
from forcereg.errors import ForceregError
from forcereg.net.load import load_net
net = load_net(sys.argv[1])
net(x0=torch.full((100, 50), 1.0), x1=torch.zeros(100))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, 1 << 17))
for value in range(2, 20):
    try:
        net(x0=torch.full((100, 50), float(value)), x1=torch.zeros(100))
    except ForceregError as exc:
        print(value, exc)
        break
"""
    done = nursery.run("-c", script, text(path, (100, 50), (100,)))
    assert done.returncode == 0, done.stderr
    number, line = done.stdout.rstrip("\n").split(" ", 1)
    assert line == (
        f"<text>:3: layer 'l': cannot write {path}: file too large; raise the file size limit (`ulimit -f`) or "
        "write elsewhere"
    )
    assert done.stderr == ""
    whole = int(number) - 1
    assert whole >= 3
    found = content(path)
    np.testing.assert_array_equal(found["data"][:, 0, 0, 0], np.repeat(np.arange(1, whole + 1), 100))
    assert found["data"].shape == (100 * whole, 50, 1, 1) and found["label"].shape == (100 * whole, 1, 1, 1)


# -- Staged


@settings(max_examples=60)
@given(data=st.data())
def test_staged_is_a_file(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Reads give what was written, and `commit` what an ordinary file would hold."""
    path = tmp_path_factory.mktemp("staged") / "a"
    old = data.draw(st.binary(max_size=20))
    path.write_bytes(old)
    expected = bytearray(old)
    with Staged(path) as staged:
        for _ in range(data.draw(st.integers(0, 8))):
            at, part = data.draw(st.integers(0, len(expected))), data.draw(st.binary(max_size=12))
            staged.seek(at)
            assert staged.write(part) == len(part)
            expected[at : at + len(part)] = part
            low, size = data.draw(st.integers(0, 30)), data.draw(st.integers(0, 30))
            buffer = bytearray(size)
            staged.seek(low)
            got = staged.readinto(buffer)
            assert buffer[:got] == expected[low : low + size]
        grown = len(expected) + data.draw(st.integers(0, 5))
        staged.truncate(grown)
        assert (staged.seek(0, os.SEEK_END), staged.tell()) == (grown, grown)
        assert path.read_bytes() == old
        staged.commit()
    assert path.read_bytes() == bytes(expected).ljust(grown, b"\0")


def test_staged_does_not_shrink(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1234")
    with Staged(tmp_path / "a") as staged, pytest.raises(OSError, match="would shrink from 4 to 2 bytes"):
        staged.truncate(2)
    assert (tmp_path / "a").read_bytes() == b"1234"
