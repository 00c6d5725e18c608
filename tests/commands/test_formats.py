"""What decompose, split-groups and merge-groups write: in the format of the snapshot, or as --format says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import forcereg.snapshot.binary as binary
from forcereg.net.convert import convert
from forcereg.net.load import load_net
from forcereg.schema import NetParameter
from forcereg.snapshot import NET as TEXT
from forcereg.snapshot import ModelFile, is_binary, read_model, write_model
from tests.commands.conftest import Cli, said
from tests.commands.decomposing import NET, fresh_snapshot

SHARING = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 4 dim: 9 dim: 9 } } }
layer { name: "a" type: "Convolution" bottom: "data" top: "a" param { name: "w" } param { name: "b" }
  convolution_param { num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "c" type: "Convolution" bottom: "a" top: "c" param { name: "w" } param { name: "b" }
  convolution_param { num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "d" type: "Convolution" bottom: "c" top: "d"
  convolution_param { num_output: 6 kernel_size: 3 group: 2 weight_filler { type: "xavier" } } }
"""
CUT = ("decompose", "--ranks", "4,2", "--json", "--snapshot")


@pytest.fixture
def snapshots(tmp_path: Path) -> dict[str, Path]:
    """The same in both formats."""
    path = fresh_snapshot(tmp_path)
    other = tmp_path / "bin_iter_7.caffemodel"
    convert(path, other)
    return {"hdf5": path, "binary": other}


def alike(one: ModelFile, other: ModelFile) -> bool:
    return all(
        np.array_equal(values, other.layers[name][i]) for name, of in one.layers.items() for i, values in of.items()
    )


@pytest.mark.parametrize("asked", [None, "binary", "hdf5"])
@pytest.mark.parametrize("given", ["binary", "hdf5"])
def test_decompose_writes_the_format_of_the_snapshot(
    given: str, asked: str | None, snapshots: dict[str, Path], cli: Cli
) -> None:
    options = () if asked is None else ("--format", asked)
    code, out, err = cli(*CUT, snapshots[given], "--out", snapshots[given].with_name("cut"), *options)
    assert code == 0, err
    printed, form = json.loads(out), asked or given
    assert printed["weights"].endswith("cut.caffemodel" if form == "binary" else "cut.caffemodel.h5")
    assert is_binary(printed["weights"]) == (form == "binary")
    found, old = read_model(printed["weights"]), read_model(snapshots["hdf5"])
    expected = json.loads(cli(*CUT, snapshots["hdf5"], "--out", snapshots[given].with_name("plain"))[1])
    assert alike(read_model(expected["weights"]), found)
    assert found.attrs[TEXT] == Path(printed["model"]).read_text()
    assert found.attrs["forcereg_seed"] == "1" and found.input_shapes == old.input_shapes
    (made,) = json.loads(found.attrs["forcereg_decomposed"])
    assert made["snapshot"] == snapshots[given].name and [one["rank"] for one in made["layers"]] == [4, 2]
    data = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, two = (load_net(p["model"], p["weights"])(data=data)["ip"] for p in (printed, expected))
    assert torch.equal(one, two)
    data_of = Path(printed["weights"]).read_bytes()
    Path(printed["weights"]).write_bytes(data_of[:-40] + bytes([data_of[-40] ^ 1]) + data_of[-39:])
    assert "damaged" in said(cli("ranks", printed["weights"])[2])


def test_a_binary_model_is_what_other_readers_expect(snapshots: dict[str, Path], cli: Cli) -> None:
    """A NetParameter whose layers have types, settings and, once by each name, blobs."""
    printed = json.loads(cli(*CUT, snapshots["binary"])[1])
    net = NetParameter.FromString(Path(printed["weights"]).read_bytes())
    layers = {layer.name: layer for layer in net.layer}
    assert len(layers) == len(net.layer)
    low, linear = layers["conv1_lowrank"], layers["conv1_linear"]
    assert low.type == linear.type == "Convolution" and low.convolution_param.num_output == 4
    assert [list(blob.shape.dim) for blob in low.blobs] == [[4, 3, 3, 3]]
    assert [list(blob.shape.dim) for blob in linear.blobs] == [[8, 4, 1, 1], [8]]
    assert len(layers["ip"].blobs) == 2 and "conv1" not in layers


@pytest.mark.parametrize("given", ["binary", "hdf5"])
@pytest.mark.parametrize("asked", ["binary", "hdf5"])
def test_blobs_that_layers_share(given: str, asked: str, tmp_path: Path, cli: Cli) -> None:
    """Under their owner in HDF5, under every layer in a binary file; and there and back through both commands."""
    net = load_net(SHARING, seed=1)
    path, source = tmp_path / "s.caffemodel.h5", tmp_path / ("s.caffemodel" if given == "binary" else "s.caffemodel.h5")
    held = {
        name: {i: b.detach().numpy() for i, b in enumerate(of) if f"{name}/{i}" not in net.shared}
        for name, of in net.params.items()
    }
    write_model(path, held, attrs={TEXT: SHARING})
    if given == "binary":
        convert(path, source)
    x = torch.rand(2, 4, 9, 9, generator=torch.Generator().manual_seed(0))
    expected = net(data=x)["d"]
    end = {"binary": "caffemodel", "hdf5": "caffemodel.h5"}[asked]
    for command, file, out in (
        ("split-groups", source, "split"),
        ("merge-groups", tmp_path / f"split.{end}", "merged"),
    ):
        code, _, err = cli(command, file, "--out", tmp_path / out, "--format", asked)
        assert code == 0, err
        written = read_model(tmp_path / f"{out}.{end}")
        assert is_binary(written.path) == (asked == "binary")
        assert bool(written.layers["c"]) == (asked == "binary")
        again = load_net(tmp_path / f"{out}.prototxt", written.path)
        torch.testing.assert_close(again(data=x)[again.spec.outputs[0]], expected)
    code, _, err = cli("split-groups", source, "--out", tmp_path / "plain")
    assert code == 0 and is_binary(next(tmp_path.glob("plain.caffemodel*"))) == (given == "binary"), err


def test_layers_of_the_old_net_do_not_survive_in_a_converted_model(snapshots: dict[str, Path], cli: Cli) -> None:
    """binary -> HDF5 keeps the binary's layers as an attribute; what is decomposed has others."""
    message = NetParameter.FromString(snapshots["binary"].read_bytes())
    for layer in message.layer:
        layer.ClearField("param")
    old = snapshots["binary"].with_name("caffes.caffemodel")
    old.write_bytes(message.SerializeToString())
    moved, model = old.with_name("moved.caffemodel.h5"), old.with_name("net.prototxt")
    convert(old, moved)
    model.write_text(NET)
    printed = json.loads(cli(*CUT, moved, "--model", model)[1])
    back = old.with_name("back.caffemodel")
    convert(printed["weights"], back)
    names = [layer.name for layer in NetParameter.FromString(back.read_bytes()).layer]
    assert "conv1_lowrank" in names and "conv1" not in names


def test_more_than_a_binary_file_holds(snapshots: dict[str, Path], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary, "LIMIT", 1000)
    code, out, err = cli(*CUT, snapshots["hdf5"], "--format", "binary", "--out", snapshots["hdf5"].with_name("big"))
    assert (code, out) == (1, "")
    assert said(err).endswith("bytes, a binary file holds 1,000 at most; give --format hdf5")
    assert not list(snapshots["hdf5"].parent.glob("big*"))


def test_no_file_that_was_read_gets_another_net_beside_it(snapshots: dict[str, Path], cli: Cli) -> None:
    stem = snapshots["hdf5"].with_name("snap_iter_7")
    for form, what in (("hdf5", "would overwrite"), ("binary", "would put another net beside")):
        code, _, err = cli(*CUT, snapshots["hdf5"], "--out", stem, "--format", form)
        assert code == 2 and f"{what} {snapshots['hdf5']}; choose another prefix" in said(err)


def test_weights_of_an_earlier_run_are_told(snapshots: dict[str, Path], cli: Cli) -> None:
    """In the other format, of another net than the one that lies there now; silent where they are the same."""
    out = snapshots["hdf5"].with_name("cut")
    for form in ("hdf5", "binary", "hdf5"):
        code, _, err = cli(*CUT, snapshots["hdf5"], "--out", out, "--format", form)
        assert (code, err) == (0, "")
    with pytest.warns(UserWarning, match=r"cut\.caffemodel\.h5 is an earlier run's: the net beside it is now that of"):
        cli("decompose", "--ranks", "3,2", "--snapshot", snapshots["hdf5"], "--out", out, "--format", "binary")


def test_formats_are_two(snapshots: dict[str, Path], cli: Cli) -> None:
    code, _, err = cli(*CUT, snapshots["hdf5"], "--format", "h5")
    assert code == 2 and "'h5' is not one of 'binary', 'hdf5'" in said(err)
