"""`forcereg deploy`: nets and snapshots of every kind, the files written, and what is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from forcereg.net.convert import convert
from forcereg.net.load import load_net
from forcereg.schema import NetParameter
from forcereg.schema.text import parse_net, read_net, to_text
from forcereg.snapshot import is_binary, net_message, read_model, write_model, write_state
from tests.commands.conftest import Cli, said
from tests.commands.decomposing import NET, write_snapshot
from tests.conftest import RunCli

INPUT = NET[NET.index('layer { name: "data" type: "Input"') : NET.index('layer { name: "conv1"')]
TESTED = NET.replace(INPUT, "").replace("include { phase: TRAIN }", "")
"""The same with data of one layer for both phases, which isn't there."""
SHAPES = "data=4,3,12,12"


def outputs(net: Path, weights: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    """Of a net for use."""
    made = load_net(net, weights)
    fed = torch.rand(made.shapes["data"], generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return made(data=fed)


def test_a_snapshot_in_either_format(tmp_path: Path, run_cli: RunCli) -> None:
    """The pair lies beside it, in its format; the data's source isn't needed, its shape is in the snapshot."""
    path = fresh(tmp_path)
    convert(path, tmp_path / "bin.caffemodel")
    for name, end, binary in ((path.name, ".caffemodel.h5", False), ("bin.caffemodel", ".caffemodel", True)):
        stem = name.removesuffix(end)
        done = run_cli("deploy", name, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [
            "input data 1x3x12x12: pixels from 0 to 255 (colours in the order of the data: blue, green, red of image "
            "files), times 0.5",
            "output prob 1x5",
            f"wrote {stem}_deploy.prototxt and {stem}_deploy{end}",
        ]
        net, weights = tmp_path / f"{stem}_deploy.prototxt", tmp_path / f"{stem}_deploy{end}"
        assert is_binary(weights) == binary
        made, before = read_model(weights), read_model(tmp_path / name)
        assert [one.name for one in read_net(net).message.layer] == ["data", "conv1", "relu1", "conv2", "ip", "prob"]
        assert made.attrs == {
            **before.attrs,
            "forcereg_net": net.read_text(),
            "forcereg_input_shapes": '{"data": [1, 3, 12, 12]}',
        }
        assert {name: sorted(held) for name, held in made.layers.items() if held} == {
            "conv1": [0, 1], "conv2": [0, 1], "ip": [0, 1],
        }  # fmt: skip
        assert all(
            np.array_equal(values, before.layers[layer][index])
            for layer, held in made.layers.items()
            for index, values in held.items()
        )
        assert net.read_text().splitlines()[:2] == [
            f"# {name}: for use, by forcereg deploy",
            "# data: pixels from 0 to 255 (colours in the order of the data: blue, green, red of image files), "
            "times 0.5",
        ]


def fresh(folder: Path) -> Path:
    """A snapshot of a net whose data are not there."""
    text = TESTED.replace("backend: LMDB }", "backend: LMDB } transform_param { scale: 0.5 }")
    net = load_net(text, phase="TRAIN", input_shapes={"data": (4, 3, 12, 12), "label": (4,)}, seed=1)
    return write_snapshot(folder / "snap_iter_7.caffemodel.h5", net)


def test_the_layers_of_a_binary_file_are_those_of_the_net(tmp_path: Path, cli: Cli) -> None:
    """Also of one that comes from HDF5 in which Caffe's own layers were kept for the way back."""
    model = read_model(fresh(tmp_path))
    (tmp_path / "net.prototxt").write_text(model.attrs["forcereg_net"])
    net = load_net(model.attrs["forcereg_net"], phase="TRAIN", input_shapes={"data": (4, 3, 12, 12), "label": (4,)})
    write_model(tmp_path / "caffe.caffemodel", model.layers, None, {}, net_message(net.spec))
    convert(tmp_path / "caffe.caffemodel", tmp_path / "c.caffemodel.h5")
    assert "forcereg_message" in read_model(tmp_path / "c.caffemodel.h5").attrs
    args = ("--weights", tmp_path / "c.caffemodel.h5", "--input-shape", SHAPES, "-o", tmp_path / "use.prototxt")
    assert cli("deploy", tmp_path / "net.prototxt", *args)[0] == 0
    assert "forcereg_message" not in read_model(tmp_path / "use.caffemodel.h5").attrs
    convert(tmp_path / "use.caffemodel.h5", tmp_path / "use.caffemodel")
    layers = NetParameter.FromString((tmp_path / "use.caffemodel").read_bytes()).layer
    assert [layer.name for layer in layers] == ["data", "conv1", "relu1", "conv2", "ip", "prob"]


def test_again_it_is_what_it_was(tmp_path: Path, cli: Cli) -> None:
    assert cli("deploy", fresh(tmp_path), "-o", tmp_path / "a.prototxt")[0] == 0
    assert cli("deploy", tmp_path / "a.caffemodel.h5", "-o", tmp_path / "b.prototxt")[0] == 0
    assert read_net(tmp_path / "a.prototxt").message == read_net(tmp_path / "b.prototxt").message
    assert (tmp_path / "b.prototxt").read_text().splitlines()[0] == "# a.caffemodel.h5: for use, by forcereg deploy"


def test_what_was_done_to_the_net_stays(tmp_path: Path, cli: Cli) -> None:
    """After decompose and split-groups, also by a solver state; outputs as of the net itself."""
    path = fresh(tmp_path)
    assert cli("decompose", "--snapshot", path, "--ranks", "2,3", "--out", tmp_path / "low")[0] == 0
    assert cli("split-groups", path, "--out", tmp_path / "split")[0] == 0
    write_state(tmp_path / "s.solverstate.h5", 7, 0, str(path), [])
    for name, layers in (
        ("low.caffemodel.h5", "conv1_lowrank conv1_linear relu1 conv2_lowrank conv2_linear ip prob"),
        ("split.caffemodel.h5", "conv1 relu1 conv2_slice conv2_group0 conv2_group1 conv2_concat ip prob"),
        ("s.solverstate.h5", "conv1 relu1 conv2 ip prob"),
    ):
        code, _, err = cli("deploy", tmp_path / name, "-o", tmp_path / "use.prototxt", "--batch", "3")
        assert (code, err) == (0, "")
        assert [one.name for one in read_net(tmp_path / "use.prototxt").message.layer] == ["data", *layers.split()]
        found = outputs(tmp_path / "use.prototxt", tmp_path / "use.caffemodel.h5")
        assert list(found) == ["prob"] and found["prob"].shape == (3, 5)
        model = read_model(path if name.startswith("s.") else tmp_path / name)
        whole = load_net(
            model.attrs["forcereg_net"], model.path, "TEST", input_shapes={"data": (3, 3, 12, 12), "label": (3,)}
        )
        fed = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            logits = whole(data=fed, label=torch.zeros(3), blobs=["ip"])["ip"]
        assert torch.equal(found["prob"], logits.softmax(1))


def test_a_net_with_its_weights(tmp_path: Path, cli: Cli) -> None:
    """As Caffe's models come: without the net's text."""
    model = read_model(fresh(tmp_path))
    (tmp_path / "net.prototxt").write_text(model.attrs["forcereg_net"])
    write_model(tmp_path / "caffe.caffemodel.h5", model.layers)
    args = ("deploy", tmp_path / "net.prototxt", "--input-shape", SHAPES)
    code, out, err = cli(*args)
    assert (code, err) == (0, "") and out.splitlines()[-1] == f"wrote {tmp_path / 'net_deploy.prototxt'}"
    assert not list(tmp_path.glob("net_deploy*model*"))
    code, out, err = cli(*args, "--weights", tmp_path / "caffe.caffemodel.h5", "-o", tmp_path / "use.prototxt")
    assert (code, err) == (0, "") and outputs(tmp_path / "use.prototxt", tmp_path / "use.caffemodel.h5")
    code, _, err = cli("deploy", tmp_path / "caffe.caffemodel.h5")
    assert code == 1 and "holds no net text" in said(err)


SHARED = """
layer { name: "d" type: "DummyData" top: "data" top: "label"
  dummy_data_param { shape { dim: 2 dim: 6 } shape { dim: 2 } } }
layer { name: "aux" type: "InnerProduct" bottom: "data" top: "aux" param { name: "w" } param { name: "v" }
  inner_product_param { num_output: 4 } }
layer { name: "la" type: "SoftmaxWithLoss" bottom: "aux" bottom: "label" loss_weight: 0.2 }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" param { name: "w" } param { name: "v" }
  inner_product_param { num_output: 4 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" }
"""


def test_weights_whose_owner_goes(tmp_path: Path, cli: Cli) -> None:
    """HDF5 has a shared blob under its owner, here an auxiliary classifier; who is left keeps it."""
    weight = np.arange(24, dtype=np.float32).reshape(4, 6)
    blobs = {"aux": {0: weight, 1: np.ones(4, np.float32)}, "ip": {}}
    write_model(tmp_path / "m.caffemodel.h5", blobs, attrs={"forcereg_net": SHARED})
    code, out, err = cli("deploy", tmp_path / "m.caffemodel.h5")
    assert (code, err) == (0, "")
    assert "auxiliary, left out: la; --outputs names blobs to end in instead" in out.splitlines()
    net = load_net(tmp_path / "m_deploy.prototxt", tmp_path / "m_deploy.caffemodel.h5")
    assert np.array_equal(net.params["ip"][0].detach().numpy(), weight)


def test_own_layers_and_python_layers(tmp_path: Path, run_cli: RunCli) -> None:
    """A Python layer that brings the data, one that prepares labels, and a type of one's own among the rest."""
    (tmp_path / "mine.py").write_text(
        "import torch, forcereg\n"
        "@forcereg.layer('Doubled')\n"
        "class Doubled(torch.nn.Module):\n"
        "    def forward(self, x): return 2 * x\n"
    )
    (tmp_path / "theirs.py").write_text(
        "import caffe\n"
        "class Feed(caffe.Layer):\n"
        "    def setup(self, bottom, top): pass\n"
        "    def reshape(self, bottom, top):\n"
        "        top[0].reshape(2, 6)\n"
        "        top[1].reshape(2)\n"
        "    def forward(self, bottom, top): pass\n"
        "class Same(Feed):\n"
        "    def reshape(self, bottom, top): top[0].reshape(*bottom[0].data.shape)\n"
    )
    python = 'python_param { module: "theirs" layer: "%s" }'
    (tmp_path / "net.prototxt").write_text(f"""
        layer {{ name: "feed" type: "Python" top: "data" top: "raw" {python % "Feed"} }}
        layer {{ name: "label" type: "Python" bottom: "raw" top: "label" {python % "Same"} }}
        layer {{ name: "two" type: "Doubled" bottom: "data" top: "two" }}
        layer {{ name: "ip" type: "InnerProduct" bottom: "two" top: "ip" inner_product_param {{ num_output: 4 }} }}
        layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" }}
    """)
    args = ("deploy", "net.prototxt", "--import", "mine")
    done = run_cli(*args, "--allow-python-layers", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:2] == ["input data 1x6", "output prob 1x4"]
    names = [one.name for one in read_net(tmp_path / "net_deploy.prototxt").message.layer]
    assert names == ["data", "two", "ip", "prob"]
    done = run_cli(*args, "--input-shape", "data=3,6", cwd=tmp_path)  # what is left needs no code of the net's
    assert (done.returncode, done.stdout.splitlines()[:2]) == (0, ["input data 3x6", "output prob 3x4"])
    done = run_cli(*args, cwd=tmp_path)
    assert done.returncode == 1 and "give --allow-python-layers" in said(done.stderr)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        pytest.param(("gone.prototxt",), 1, "gone.prototxt: no such file", id="no-file"),
        pytest.param(("net.prototxt",), 1, "; or give its shape: --input-shape data=1,C,H,W", id="no-data"),
        pytest.param(("net.prototxt", "--input-shape", SHAPES, "-o", "net.prototxt"), 2,
                     "net.prototxt is what was read; give another name by --out", id="overwrites-the-net"),
        pytest.param(("snap_iter_7.caffemodel.h5", "-o", "snap_iter_7.prototxt"), 2,
                     "snap_iter_7.caffemodel.h5 is what was read", id="overwrites-the-weights"),
        pytest.param(("net.prototxt", "-o", "x.txt"), 2, "expected a name that ends in .prototxt", id="ending"),
        pytest.param(("snap_iter_7.caffemodel.h5", "--weights", "snap_iter_7.caffemodel.h5"), 2,
                     "is a snapshot, which has weights; leave out --weights", id="weights-twice"),
        pytest.param(("snap_iter_7.caffemodel.h5", "--outputs", "nowhere"), 1, "has no blob 'nowhere'", id="no-blob"),
        pytest.param(("net.prototxt", "--input-shape", "label=4"), 1,
                     "a shape is given for 'label', which the net for use lacks", id="shape-of-none"),
    ],
)  # fmt: skip
def test_what_cannot_be(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = fresh(tmp_path)
    (tmp_path / "net.prototxt").write_text(to_text(parse_net(read_model(path).attrs["forcereg_net"]).message))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    found, out, err = cli("deploy", *args)
    assert (found, out) == (code, "") and message in said(err)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
