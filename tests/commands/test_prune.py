"""`forcereg prune` from solver and model to the pruned files, what it goes on from, and what is refused."""

from __future__ import annotations

import csv
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

import forcereg
from forcereg.errors import ForceregError
from forcereg.snapshot import read_model
from forcereg.solver.loop import Solver
from forcereg.solver.pruning import Limit
from forcereg.study.prune.limits import LayerTimes
from forcereg.workflows.prune import of_owners
from tests.commands.conftest import Cli, said
from tests.conftest import RunCli
from tests.solver.nets import IMAGES, write_images, write_solver

SOLVER = 'momentum: 0.9 snapshot_prefix: "s" test_iter: 2 test_interval: 100 max_iter: 30 display: 0'


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_images(tmp_path_factory.mktemp("trained"))
    Solver(write_solver(root, SOLVER)).solve()
    return root


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for module in ("forcereg.study.sparse", "forcereg.study.prune.limits"):
        # as few rounds as there may be
        monkeypatch.setattr(f"{module}.SECONDS", 0.0)
    return trained


def asked(root: Path, *more: str | Path) -> tuple[str | Path, ...]:
    return ("prune", "--solver", root / "solver.prototxt", "--weights", root / "s_iter_30.caffemodel.h5", *more)


def rows(folder: str = "pruned") -> dict[str, dict[str, str]]:
    with Path(folder, "layers.csv").open() as file:
        return {row["layer"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("method", ["magnitude", "dns", "l1"])
def test_a_net_is_pruned_and_fine_tuned(method: str, here: Path, cli: Cli) -> None:
    more = ("--method", method, "--target", "0.75", "--over", "6", "--every", "2", "--finetune", "4", "--l1", "0.01")
    code, out, err = cli(*asked(here, *more))
    assert code == 0, err
    layers = read_model("pruned/net_pruned.caffemodel.h5").layers
    gone = {name: int((layers[name][0] == 0).sum()) for name in ("conv", "ip")}
    total = sum(layers[name][0].size for name in gone)
    least = round(0.75 * total)
    assert sum(gone.values()) == least if method != "l1" else sum(gone.values()) >= least
    for name, row in rows().items():
        assert float(row["share"]) == pytest.approx(1 - gone[name] / layers[name][0].size, abs=1e-5)
        assert float(row["dense_ms"]) > 0
    assert float(rows()["conv"]["sparse_ms"]) > 0 and rows()["conv"]["form"] in out
    assert "accuracy " in out and " pruned, " in out and " fine-tuned" in out
    # what is done isn't done again, and comes to the same
    logs = {path: path.read_bytes() for path in Path("pruned").glob("*_iter_*")}
    before = Path("pruned/net_pruned.caffemodel.h5").read_bytes()
    code, _, _ = cli(*asked(here, *more))
    assert code == 0 and Path("pruned/net_pruned.caffemodel.h5").read_bytes() == before
    assert [path for path in logs if path.name.startswith("tune_")]


def test_as_far_as_the_accuracy_allows_by_sensitivity(here: Path, cli: Cli) -> None:
    code, out, err = cli(*asked(here, "--max-accuracy-drop", "0.2", "--spread", "sensitivity", "--out", "p"))
    assert code == 0, err
    assert "of the weights may go at a drop of at most 0.2 before fine-tuning" in err
    (line,) = [line for line in out.splitlines() if line.startswith("accuracy ")]
    before, after = (float(word.rstrip("%")) / 100 for word in line.split() if word.endswith("%"))
    assert before - after <= 0.2 + 1e-9
    assert Path("p/scores.json").is_file()


def test_of_each_layer_the_same_share(here: Path, cli: Cli) -> None:
    code, _, err = cli(*asked(here, "--target", "0.5", "--spread", "uniform", "--out", "u"))
    assert code == 0, err
    layers = read_model("u/net_pruned.caffemodel.h5").layers
    for name in ("conv", "ip"):
        assert int((layers[name][0] == 0).sum()) == round(layers[name][0].size / 2)


def test_guided_by_times_each_decision_is_told(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"conv": Limit(0.9, 0.5, 1.1), "ip": None}
    monkeypatch.setattr(LayerTimes, "limit", lambda self, name: known[name])
    code, _, err = cli(*asked(here, "--target", "0.8", "--guided", "--over", "4", "--every", "1"))
    assert code == 0, err
    assert "conv: faster than dense below 90.0% of its weights, alpha 1.10; below 50.0% no gain" in err
    assert "iteration 0: ip is skipped: no sparse form runs it" in err
    assert re.search(r"iteration [123]: conv is stopped with 50.0% of its weights left: fewer gain nothing", err)
    found = rows()
    assert [found[name]["decision"] for name in ("conv", "ip")] == ["stopped", "skipped"]
    assert [found[name]["share"] for name in ("conv", "ip")] == ["0.5", "1"]
    log, events = next(Path("pruned").glob("prune_*.log")), next(Path("pruned").glob("prune_*.jsonl"))
    assert "Iteration 0, ip is skipped" in log.read_text() and '"decision": "stopped"' in events.read_text()


def test_dense_weights_come_back_where_zeros_don_t_pay(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LayerTimes, "limit", lambda self, name: Limit(0.1, 0.05, 9))
    code, _, err = cli(*asked(here, "--target", "0.3", "--guided"))
    assert code == 0, err
    assert "iteration 0: conv is restored, its dense weights are back: " in err
    before = read_model(here / "s_iter_30.caffemodel.h5").layers["conv"][0]
    assert (read_model("pruned/net_pruned.caffemodel.h5").layers["conv"][0] == before).all()


def test_where_zeros_pay_nowhere_that_is_the_answer(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LayerTimes, "limit", lambda self, name: Limit(None))
    code, _, err = cli(*asked(here, "--target", "0.3", "--guided"))
    assert code == 1
    assert "no layer that is to be pruned becomes faster than dense on this machine" in said(err)


SHARING = (
    IMAGES.replace("param { lr_mult: 1 force_mult: 1 }", 'param { name: "w" decay_mult: 1 }')
    .replace('bottom: "data" top: "conv"', 'bottom: "data" top: "one"')
    .replace(
        'layer { name: "bn"',
        """layer { name: "other" type: "Convolution" bottom: "data" top: "other" param { name: "w" decay_mult: 1 }
  convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "sum" type: "Eltwise" bottom: "one" bottom: "other" top: "conv" }
layer { name: "bn\"""",
    )
)


@pytest.mark.parametrize("form", ["HDF5", "BINARYPROTO"])
def test_what_layers_share_is_pruned_once(form: str, tmp_path: Path, here: Path) -> None:
    solver = write_solver(
        write_images(tmp_path, SHARING),
        f"{SOLVER.replace('30', '2')} weight_decay: 0.01 snapshot_format: {form}",
    )
    Solver(solver).solve()
    (weights,) = tmp_path.glob("s_iter_2.caffemodel*")
    # binary models have shared weights under both layers, HDF5 only the second one's own bias
    assert ("other" in read_model(weights).layers) and (0 in read_model(weights).layers["other"]) == (form != "HDF5")
    found = forcereg.prune(solver, weights=weights, method="l1", target=0.5, over=1, spread="sensitivity")
    assert [row.layer for row in found.layers] == ["conv", "ip"]
    left = read_model(found.weights).layers
    gone = sum(int((left[row.layer][0] == 0).sum()) for row in found.layers)
    assert gone == round(0.5 * sum(row.weights for row in found.layers))
    with pytest.raises(ForceregError, match="layer 'other' has the weights of 'conv'; name 'conv'"):
        forcereg.prune(solver, weights=weights, target=0.5, layers="other")


def test_of_what_is_shared_the_last_one_s_values_count() -> None:
    weights = {"a": {0: np.zeros((2, 3)), 1: np.ones(2)}, "b": {0: np.ones((3, 2)), 1: np.zeros(3)}}
    made = of_owners(weights, {"b/0": "a/0"})
    assert made["a"][0].tolist() == [[1, 1, 1]] * 2 and list(made["a"]) == [0, 1] and list(made["b"]) == [1]
    # an owner that the weights lack has none
    assert of_owners({"b": weights["b"]}, {"b/0": "a/0"}) == {"b": weights["b"]}


def test_layers_that_don_t_learn_stay_as_they_are(tmp_path: Path, here: Path, cli: Cli) -> None:
    root = write_images(tmp_path, IMAGES.replace("param { lr_mult: 1 force_mult: 1 }", "param { lr_mult: 0 }"))
    write_solver(root, SOLVER)
    shutil.copy(here / "s_iter_30.caffemodel.h5", root)
    code, _, err = cli(*asked(root, "--target", "0.5"))
    assert code == 0 and "conv has no weights that learn and stays as it is" in err and list(rows()) == ["ip"]
    code, _, err = cli(*asked(root, "--target", "0.5", "--only-layers", "conv"))
    assert code == 1 and "layer 'conv' has no weights that learn; leave it out" in said(err)


def test_weights_of_another_net_are_named_by_their_file(tmp_path: Path, here: Path, cli: Cli) -> None:
    root = write_images(tmp_path, IMAGES.replace("num_output: 4", "num_output: 5"))
    write_solver(root, SOLVER)
    shutil.copy(here / "s_iter_30.caffemodel.h5", root)
    code, _, err = cli(*asked(root, "--target", "0.5"))
    assert code == 1 and "s_iter_30.caffemodel.h5: layer 'conv' blob 0: shape (4, 1, 3, 3) in the file" in said(err)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ((), "--target and --max-accuracy-drop say how far: neither is given; give one"),
        (("--target", "0.5", "--max-accuracy-drop", "0.1"), "both are given; give one"),
        (("--target", "1"), "target is 1; expected a share of zeros above 0, below 1, as in 0.9"),
        (("--target", "1.5"), "target is 1.5; expected 0 to 1"),
        (("--target", "0.5", "--method", "magnitud"), "unknown method 'magnitud'; did you mean \"magnitude\"?"),
        (("--target", "0.5", "--spread", "even"), "unknown spread 'even'; expected magnitude, uniform, sensitivity"),
        (("--target", "0.5", "--method", "l1"), "method l1 prunes while it trains; say for how many iterations"),
        (("--target", "0.5", "--rate", "0"), "rate is 0.0; expected a number above 0"),
        (("--target", "0.5", "--only-layers", "con"), "there is no Convolution or InnerProduct layer 'con'"),
        (("--target", "0.5", "--only-layers", ","), "--only-layers names no layer"),
        (("--target", "0.5", "--except-layers", "conv,ip"), "no Convolution or InnerProduct layer is left to prune"),
        (("--target", "0.5", "--weights", "none.caffemodel"), "none.caffemodel: no such file"),
    ],
)
def test_what_doesn_t_go_together_is_one_line(more: tuple[str, ...], line: str, here: Path, cli: Cli) -> None:
    code, _, err = cli(*asked(here, *more))
    assert code in (1, 2) and line in said(err)


KILLER = """
import os, signal
from pathlib import Path
from forcereg.solver.loop import Solver
write = Solver.snapshot
def killed(self):
    write(self)
    if Path(self.param.snapshot_prefix).name.startswith(os.environ["PHASE"]) and self.iter == int(os.environ["AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
Solver.snapshot = killed
"""


def test_a_pruning_killed_in_each_phase_goes_on_to_the_same_bytes(here: Path, run_cli: RunCli) -> None:
    write_solver(here, f"{SOLVER} snapshot: 2")
    Path("killer.py").write_text(KILLER)
    call = (*asked(here, "--target", "0.75", "--over", "6", "--every", "2", "--finetune", "4"), "--import", "killer")
    for out, kills in {"straight": [], "killed": [("prune", "4"), ("tune", "2")]}.items():
        for phase, iteration in kills:
            done = run_cli(*call, "--out", out, cwd=Path.cwd(), env={"PHASE": phase, "AT": iteration})
            assert done.returncode == -signal.SIGKILL, done.stderr
        done = run_cli(*call, "--out", out, cwd=Path.cwd(), env={"PHASE": "none", "AT": "0"})
        assert done.returncode == 0, done.stderr
        logs = {path.name.split("_")[0]: path.read_text() for path in Path(out).glob("*.log")}
        resumed = {name: log.count("Restoring previous solver status") for name, log in logs.items()}
        assert resumed == ({"prune": 2, "tune": 1} if kills else {"prune": 0, "tune": 0}), resumed
    for name in ("net_pruned.caffemodel.h5", "net_pruned.prototxt"):
        assert Path("straight", name).read_bytes() == Path("killed", name).read_bytes()
