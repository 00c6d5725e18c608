"""forcereg decompose --recalibrate: BatchNorm's statistics of the cut net, written, told, refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from forcereg.net.load import load_net
from forcereg.snapshot import read_model
from tests.commands.conftest import Cli, said
from tests.solver.nets import IMAGES, write_images, write_solver

SNAPSHOT = "net_iter_40.caffemodel.h5"
CUT = ("decompose", "--snapshot", SNAPSHOT, "--ranks", "1")
SOLVER = ("--solver", "solver.prototxt")
SCHEDULE = 'max_iter: 40 snapshot_prefix: "net" snapshot_after_train: true test_iter: 2 test_interval: 40'


@pytest.fixture
def trained(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a trained net, which is the working directory."""
    monkeypatch.chdir(write_images(tmp_path))
    assert cli("train", "--solver", write_solver(tmp_path, SCHEDULE))[0] == 0
    return tmp_path


def loss(model: str, weights: str) -> float:
    """On the training images, 2 batches of the test net's kind."""
    net = load_net(model, weights, "TEST")
    with torch.no_grad():
        return sum(float(net.forward_loss()[0]) for _ in range(2))


def test_the_cut_net_gets_statistics_of_its_own(trained: Path, cli: Cli) -> None:
    """A first layer scaled and cut so that its old statistics are far off: the loss comes back down."""
    plain = json.loads(cli(*CUT, "--json", "--out", "plain")[1])
    code, out, err = cli(*CUT, *SOLVER, "--recalibrate", 10, "--json", "--out", "anew")
    printed = json.loads(out)
    assert code == 0, err
    assert printed["recalibrated"] == {"batches": 10, "layers": ["bn"]} and "recalibrated" not in plain
    before, after = (read_model(one["weights"]).layers for one in (plain, printed))
    assert after["bn"][2] == 10 and not np.allclose(before["bn"][1] / before["bn"][2], after["bn"][1] / 10, rtol=0.05)
    assert all(np.array_equal(before[name][i], v) for name in after if name != "bn" for i, v in after[name].items())
    assert loss(printed["model"], printed["weights"]) < loss(plain["model"], plain["weights"])
    again = json.loads(cli(*CUT, *SOLVER, "--recalibrate", 10, "--json", "--out", "again")[1])
    assert all(np.array_equal(read_model(again["weights"]).layers["bn"][i], after["bn"][i]) for i in range(3))
    assert "recomputed the statistics of bn on 3 training batches" in cli(*CUT, *SOLVER, "--recalibrate", 3)[1]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        pytest.param(["--recalibrate", "2"], 2, "--recalibrate needs --solver FILE, whose training", id="solver"),
        pytest.param([*SOLVER, "--recalibrate", "0"], 2, "'--recalibrate': 0 is not in the range", id="none"),
        pytest.param(
            [*SOLVER, "--recalibrate", "2", "--fold-bn"], 1, "no BatchNorm is left after --fold-bn", id="folded"
        ),
        pytest.param([*SOLVER, "--recalibrate", "2", "--model", "bare.prototxt"], 1, "no BatchNorm is in the net",
                     id="bare"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*Ignoring source layer bn")
def test_errors_are_one_line(options: list[str], code: int, message: str, trained: Path, cli: Cli) -> None:
    text = IMAGES.replace('layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }', "")
    (trained / "bare.prototxt").write_text(text)
    found, out, err = cli(*CUT, *options)
    assert (found, out) == (code, "") and message in said(err)
    assert not list(trained.glob("*_lowrank*"))
