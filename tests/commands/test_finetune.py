"""`forcereg finetune`: the decomposed net under the original's solver."""

from __future__ import annotations

from pathlib import Path

import pytest

from forcereg import snapshot
from forcereg.commands.finetune import with_net
from forcereg.errors import UsageError
from forcereg.schema.text import parse_solver, read_solver
from tests.commands.conftest import Cli, said
from tests.solver.nets import IMAGES, write_images, write_solver

SCHEDULE = 'max_iter: 20 snapshot_prefix: "net" snapshot_after_train: true test_iter: 2 test_interval: 10'


@pytest.fixture
def trained(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a trained net and its decomposition, which is the working directory."""
    monkeypatch.chdir(write_images(tmp_path))
    write_solver(tmp_path, SCHEDULE)
    for args in (("train", "--solver", "solver.prototxt"), ("decompose", "--snapshot", NET, "--ranks", "2")):
        code, _, err = cli(*args)
        assert code == 0, err
    return tmp_path


NET = "net_iter_20.caffemodel.h5"
CUT = ("--model", "net_iter_20_lowrank.prototxt", "--weights", "net_iter_20_lowrank.caffemodel.h5")


def test_finetune(trained: Path, cli: Cli) -> None:
    before = (trained / NET).read_bytes()
    code, _, err = cli("finetune", *CUT, "--solver", "solver.prototxt", "--max-iter", "6", "--set", "base_lr=0.01")
    assert code == 0, err
    assert "Loaded layers: conv_lowrank, conv_linear, bn, scale, ip" in err and "left as initialised" not in err
    assert "Iteration 0, Testing net (#0)" in err
    assert (trained / NET).read_bytes() == before
    tuned = snapshot.read_model(trained / "net_finetuned_iter_6.caffemodel.h5").layers
    start = snapshot.read_model(trained / CUT[-1]).layers
    assert tuned["conv_lowrank"][0].shape == start["conv_lowrank"][0].shape == (2, 1, 3, 3)
    assert (tuned["conv_linear"][0] != start["conv_linear"][0]).any()
    # and on from there, with a prefix of one's own
    state = "net_finetuned_iter_6.solverstate.h5"
    go_on = ("--solver", "solver.prototxt", "--snapshot", state, "--set", "snapshot_prefix=other", "--max-iter", "8")
    code, _, err = cli("finetune", *CUT[:2], *go_on)
    assert code == 0 and (trained / "other_iter_8.caffemodel.h5").exists(), err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        pytest.param(CUT[:2], "--weights is missing: the model that decompose wrote", id="no-weights"),
        pytest.param((*CUT, "--test-model", "net.prototxt"), "has 0 test nets of their own", id="needless-test-net"),
        pytest.param((*CUT, "--snapshot", "x"), "--snapshot and --weights are both given", id="two-starts"),
        pytest.param(("--model", "gone.prototxt", *CUT[2:]), "gone.prototxt", id="no-such-net"),
    ],
)
def test_what_cannot_be(trained: Path, cli: Cli, args: tuple[str, ...], message: str) -> None:
    code, _, err = cli("finetune", *args, "--solver", "solver.prototxt")
    assert code in (1, 2) and message in said(err)


def test_test_nets_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("net", "low", "low_test"):
        (tmp_path / f"{name}.prototxt").write_text(IMAGES)
    text = 'train_net: "net.prototxt" test_net: "net.prototxt" test_iter: 3 base_lr: 0.5 force_decay: 0.1'
    solver = parse_solver(text, "solver.prototxt")
    made = with_net(solver, "low.prototxt", "low_test.prototxt", None).message
    assert (made.net, list(made.test_net), made.HasField("train_net")) == ("low.prototxt", ["low_test.prototxt"], False)
    assert (made.base_lr, made.force_decay, list(made.test_iter)) == (0.5, solver.message.force_decay, [3])
    assert solver.message.train_net == "net.prototxt"
    with pytest.raises(UsageError, match=r"solver.prototxt has 1 test nets of their own \(net.prototxt\)"):
        with_net(solver, "low.prototxt", None, None)


def test_paths_start_where_the_solver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, here = tmp_path / "tree", tmp_path / "here"
    (tree / "snapshots").mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    (tree / "net.prototxt").write_text(IMAGES)
    (here / "low.prototxt").write_text(IMAGES)
    made = with_net(read_solver(write_solver(tree, 'snapshot_prefix: "snapshots"')), "low.prototxt", None, "_finetuned")
    assert made.root == tree and made.message.net == str(here / "low.prototxt")
    assert made.message.snapshot_prefix == "snapshots/solver_finetuned"
