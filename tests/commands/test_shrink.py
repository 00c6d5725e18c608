"""`forcereg shrink`: the net computes what it did, is written whole, says what it lost; before and after decompose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import forcereg
from forcereg.net.load import load_net
from forcereg.net.module import Net
from forcereg.net.shrink.flows import Mixing
from tests.commands.conftest import Cli, said
from tests.commands.decomposing import NET, fresh_snapshot, write_snapshot
from tests.conftest import RunCli
from tests.lowrank.test_rewrite import outputs_agree

SNAPSHOT = "snap_iter_7.caffemodel.h5"
ROWS = [1, 2, 5, 6]
"""Filters of conv1 that are zero: two of each of conv2's groups."""


def zeroed(folder: Path) -> Net:
    """A net with such filters, and its snapshot in `folder`."""
    net = load_net(NET, seed=1)
    with torch.no_grad():
        net.params["conv1"][0][ROWS] = 0
        # behind relu1 that is 0, too
        net.params["conv1"][1][ROWS] = -1
    write_snapshot(folder / SNAPSHOT, net)
    return net


def test_a_snapshot_shrinks(tmp_path: Path, run_cli: RunCli) -> None:
    old = zeroed(tmp_path)
    done = run_cli("shrink", SNAPSHOT, "--latency", "cpu", "--batch", "1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {
        cells[0]: cells[2:4] for line in done.stdout.splitlines() if len(cells := line.replace("│", " ").split()) > 5
    }
    assert rows["conv1"] == ["8x3x3x3", "4x3x3x3"]
    *_, timed, equal, wrote = done.stdout.splitlines()
    assert "ms before, " in timed and timed.endswith(", batch 1")
    assert equal.startswith("outputs for random data, in float64: equal to ")
    assert wrote == "wrote snap_iter_7_shrunk.prototxt and snap_iter_7_shrunk.caffemodel.h5"

    text = (tmp_path / "snap_iter_7_shrunk.prototxt").read_text()
    assert text.startswith(f"# {SNAPSHOT}: shrunk by forcereg: conv1 8x3x3x3 -> 4x3x3x3, conv2 6x4x5x5 -> 6x2x5x5\n")
    new = load_net(tmp_path / "snap_iter_7_shrunk.prototxt", tmp_path / "snap_iter_7_shrunk.caffemodel.h5")
    outputs_agree(old, new)
    # and trains on: no weight is of another shape in the TRAIN net
    shapes = {"data": (4, 3, 12, 12), "label": (4,)}
    net = load_net(
        tmp_path / "snap_iter_7_shrunk.prototxt",
        tmp_path / "snap_iter_7_shrunk.caffemodel.h5",
        phase="TRAIN",
        input_shapes=shapes,
    )
    assert tuple(net.params["conv2"][0].shape) == (6, 2, 5, 5)


def test_json(tmp_path: Path, cli: Cli) -> None:
    zeroed(tmp_path)
    code, out, err = cli("shrink", tmp_path / SNAPSHOT, "--json", "--format", "binary", "--out", tmp_path / "s")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert [(one["name"], one["before"], one["after"]) for one in report["layers"]] == [
        ("conv1", [8, 3, 3, 3], [4, 3, 3, 3]),
        ("conv2", [6, 4, 5, 5], [6, 2, 5, 5]),
    ]
    assert report["layers"][0]["macs_before"] == 2 * report["layers"][0]["macs_after"] == 21600
    assert report["net"]["params_before"] - report["net"]["params_after"] == 4 * 28 + 6 * 2 * 25
    assert report["difference"] < 1e-6 and "latency" not in report
    assert (report["gone"], report["whole"], report["phase"]) == ([], {}, "TEST")
    assert Path(report["weights"]).name == "s.caffemodel"


@pytest.mark.parametrize("first", ["shrink", "decompose"])
def test_in_either_order_with_decompose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """Rank 3 of 4 filters that aren't zero: a chain of three and four."""
    monkeypatch.chdir(tmp_path)
    zeroed(tmp_path)
    rule = forcereg.Ranks([3])
    if first == "shrink":
        whole = forcereg.shrink(SNAPSHOT)
        made = forcereg.decompose(whole, rule=rule, layers="conv1", even_if_dearer=True)
        old = whole
    else:
        old = forcereg.decompose(SNAPSHOT, rule=rule, layers="conv1", even_if_dearer=True)
        made = forcereg.shrink(old)
    files = [one.write(name) for name, one in (("old", old), ("new", made))]
    assert {name: made.weights[name][0].shape for name in ("conv1_lowrank", "conv1_linear", "conv2")} == {
        "conv1_lowrank": (3, 3, 3, 3), "conv1_linear": (4, 3, 1, 1), "conv2": (6, 2, 5, 5),
    }  # fmt: skip
    if first == "decompose":
        outputs_agree(*(load_net(one["model"], one["weights"]) for one in files))


def test_a_binary_snapshot_of_caffe_s(tmp_path: Path, cli: Cli) -> None:
    zeroed(tmp_path)
    assert cli("convert", tmp_path / SNAPSHOT, tmp_path / "net.caffemodel")[0] == 0
    (tmp_path / "net.prototxt").write_text(NET)
    code, out, _ = cli("shrink", tmp_path / "net.caffemodel", "--model", tmp_path / "net.prototxt")
    assert code == 0 and "net_shrunk.caffemodel\n" in out and (tmp_path / "net_shrunk.caffemodel").is_file()


DATA = NET.replace('"Input"', '"Data"').replace("input_param { shape { dim: 2 dim: 3 dim: 12 dim: 12 } }", "")
PYTHON = NET.replace('type: "ReLU"', 'type: "Python" python_param { module: "m" layer: "L" }')


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        pytest.param((SNAPSHOT, "--out", "snap_iter_7"), 2, f"would overwrite {SNAPSHOT}", id="overwrites"),
        pytest.param(
            ("fresh.caffemodel.h5",), 1, "no channel, neuron or branch of zeros, so nothing to cut", id="dense"
        ),
        pytest.param((SNAPSHOT, "--batch", "2"), 2, "--batch is what --latency cpu or cuda measures with", id="batch"),
        pytest.param((SNAPSHOT, "--latency", "tpu"), 2, "tpu", id="device"),
        pytest.param((SNAPSHOT, "--model", "python.prototxt"), 1, "blob shapes are unknown", id="python"),
        pytest.param((SNAPSHOT, "--input-shape", "x=1"), 1, "a shape is given for 'x', which is no input", id="shape"),
        pytest.param(("gone.h5",), 1, "gone.h5", id="no-file"),
    ],
)
def test_what_cannot_be(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fresh_snapshot(tmp_path).rename("fresh.caffemodel.h5")
    zeroed(tmp_path)
    Path("python.prototxt").write_text(PYTHON)
    found, _, err = cli("shrink", *args)
    assert found == code and message in said(err)


def test_outputs_that_differ_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a rule that is wrong: the constant is lost."""
    net = load_net(NET.replace('"ReLU"', '"AbsVal"'), seed=1)
    with torch.no_grad():
        net.params["conv1"][0][ROWS] = 0
        net.params["conv1"][1][ROWS] = 1
    assert forcereg.shrink(net).report["difference"] < 1e-6
    monkeypatch.setattr(Mixing, "without", lambda self, *given: (self.weight, 0 * self.bias))
    with pytest.warns(UserWarning, match="the outputs differ by "):
        forcereg.shrink(net)
