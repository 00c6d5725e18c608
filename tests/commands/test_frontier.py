"""`forcereg frontier`: several nets and methods on the command line, and what it won't do twice or can't do."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import forcereg.study.latency as latency
import forcereg.study.tuning as tuning
from forcereg.errors import ForceregError, UsageError
from forcereg.snapshot import read_model, write_model
from forcereg.solver.loop import Solver
from forcereg.study.several import labels_of
from tests.commands.conftest import Cli, said
from tests.conftest import RunCli
from tests.nursery import Nursery
from tests.solver.nets import IMAGES, write_images, write_solver

pytest.importorskip("matplotlib")

NETS = ("none/net_iter_8.caffemodel.h5", "force/net_iter_8.caffemodel.h5")
SOLVER = ("--solver", "solver.prototxt", "--device", "cpu")
QUICK = (*SOLVER, "--latency", "no", "-o", "out.svg")
SCHEDULE = "max_iter: 8 snapshot_after_train: true test_iter: 2 test_interval: 8"
HEAD, TRAIN, TEST, *REST = IMAGES.replace("num_output: 4", "num_output: 8").split("\nlayer {\n  name: ")


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a solver and two trained nets."""
    root = write_images(tmp_path_factory.mktemp("frontier"), "\nlayer {\n  name: ".join((HEAD, TRAIN, TEST, *REST)))
    for name, decay in (("none", 0.0), ("force", 0.01)):
        (root / name).mkdir()
        Solver(write_solver(root, f'{SCHEDULE} force_decay: {decay} snapshot_prefix: "{name}/net"')).solve()
    for name, own in (("train", TRAIN), ("test", TEST)):
        (root / f"{name}.prototxt").write_text("\nlayer {\n  name: ".join((HEAD, own, *REST)))
    write_solver(root, SCHEDULE, "apart.prototxt", 'train_net: "train.prototxt" test_net: "test.prototxt"')
    write_solver(root, SCHEDULE)
    return root


@pytest.fixture
def folder(nets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same with nothing else in it, which is the working directory."""
    for path in nets.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(folder: Path, name: str = "out.csv") -> list[dict[str, str]]:
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def test_two_nets_two_methods(folder: Path, run_cli: RunCli) -> None:
    args = ("frontier", *NETS, *SOLVER, "--method", "pca,vh", "--ranks", "2", "--finetune", "2", "--batch", "3")
    done = run_cli(*args, "-o", "pictures/out.png", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("wrote pictures/out.png and pictures/out.csv; 12 nets scored, the others were known\n")
    assert "net 6 of at most 6: force vh ranks 2: accuracy " in done.stderr
    found = rows(folder, "pictures/out.csv")
    assert [(row["net"], row["method"], row["target"], row["ranks"]) for row in found] == [
        (net, method, target, ranks)
        for net in ("none", "force")
        for method, target, ranks in (("", "whole", ""), ("pca", "ranks 2", "conv=2"), ("vh", "ranks 2", "conv=2"))
    ]
    for row in found:
        assert 0 <= float(row["accuracy"]) <= 1 and 0 <= float(row["accuracy_tuned"]) <= 1
        assert float(row["milliseconds"]) > 0
        assert f"{float(row['accuracy']):.2%}" in done.stdout
    whole, pca, vh = found[:3]
    assert whole["macs"] == str(8 * 9 * 16 + 8 * 16 * 3)
    assert pca["macs"] == str((2 * 9 + 2 * 8) * 16 + 8 * 16 * 3)
    assert vh["macs"] == str(2 * 3 * 4 * 6 + 2 * 3 * 8 * 16 + 8 * 16 * 3)
    assert whole["milliseconds"] == found[3]["milliseconds"]  # one structure, one time
    command, versions, how = (folder / "pictures/out.csv").read_text().splitlines()[:3]
    assert command.startswith("# forcereg frontier none/net_iter_8") and "torch" in versions
    assert how == "# times: batch 3 on cpu, 1 thread, medians; fine-tuned for 2 iterations"
    with Image.open(folder / "pictures/out.png") as image:
        assert image.format == "PNG" and image.width > 400


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every fine-tuning that isn't known yet; the second one of a list that begins with None is interrupted."""
    seen: list[Any] = []
    real = tuning.train

    def train(solver: Solver) -> None:
        seen.append(solver)
        if seen[0] is None and len(seen) == 3:
            raise KeyboardInterrupt
        real(solver)

    monkeypatch.setattr(tuning, "train", train)
    return seen


def test_what_was_interrupted_goes_on(folder: Path, cli: Cli, trainings: list[Any]) -> None:
    args = ("frontier", NETS[0], *QUICK, "--ranks", "2", "--ranks", "4", "--finetune", "2")
    trainings.append(None)
    code, _, err = cli(*args)
    assert code == 130 and err.endswith("forcereg: interrupted\n") and err.count("net ") == 1
    assert not (folder / "out.csv").exists()
    assert len(json.loads((folder / "out.scores.json").read_text())) == 3  # whole, tuned, and rank 2 as decomposed
    trainings.clear()
    code, out, err = cli(*args)
    assert code == 0 and len(trainings) == 2, err
    assert out.endswith("; 3 nets scored, the others were known\n")
    text = (folder / "out.csv").read_text()
    # and once more, with nothing left to do
    trainings.clear()
    code, out, _ = cli(*args)
    assert code == 0 and not trainings and out.endswith("; 0 nets scored, the others were known\n")
    assert (folder / "out.csv").read_text() == text
    # one more aim is all that is new
    code, out, _ = cli(*args, "--ranks", "6")
    assert code == 0 and len(trainings) == 1 and out.endswith("; 2 nets scored, the others were known\n")


def test_control_c_saves_the_fine_tuning(folder: Path, nursery: Nursery) -> None:
    args = ("frontier", NETS[0], *QUICK, "--ranks", "2", "--finetune", "1000000")
    child = nursery.start("-m", "forcereg", *args, cwd=folder, out=folder / "stdout", err=folder / "stderr")
    log = folder / "out.tuned" / "tune.log"
    try:
        while child.poll() is None and not (log.exists() and "Iteration 0, Testing" in log.read_text()):
            time.sleep(0.01)
        child.send_signal(2)
        assert child.wait() == 130
    finally:
        child.kill()
    assert (folder / "stderr").read_text().endswith("forcereg: interrupted\n")
    assert len(list((folder / "out.tuned").glob("tuned_*.solverstate.h5"))) == 1
    assert len(json.loads((folder / "out.scores.json").read_text())) == 1


def test_what_one_method_cannot_take(folder: Path, cli: Cli) -> None:
    code, _, err = cli("frontier", NETS[0], *QUICK, "--method", "vh,pca", "--fc", "--ranks", "2,2", "--ranks", "3")
    assert code == 0, err
    assert [(row["method"], row["ranks"]) for row in rows(folder)] == [
        ("", ""), ("vh", "conv=3"), ("pca", "conv=2 ip=2"),
    ]  # fmt: skip
    told = err.splitlines()
    name = "net_iter_8"
    assert f"{name}, vh: ip stays whole: vh needs a kernel of two axes; this weight's has 0" in told
    asked = "left out: 2 ranks given; the net has 1 layers to decompose: conv"
    assert f"{name}, vh, ranks 2,2: {asked}" in told
    # without any layer left for it the method has no points; without any method there is nothing to do
    args = ("frontier", NETS[0], *QUICK, "--fc", "--only-layers", "ip", "--ranks", "2")
    code, _, err = cli(*args, "--method", "vh,pca")
    assert code == 0 and [row["method"] for row in rows(folder)] == ["", "pca"], err
    code, _, err = cli(*args, "--method", "vh")
    assert code == 1 and "nothing to decompose in" in said(err) and "ip: vh needs a kernel" in said(err)


def test_what_a_net_lacks_is_told_once_for_all_methods(folder: Path, cli: Cli) -> None:
    net = "\nlayer {\n  name: ".join((HEAD, TRAIN, TEST, *REST))
    more = 'layer { name: "extra" type: "InnerProduct" bottom: "data" top: "x" include { stage: "s" } '
    (folder / "more.prototxt").write_text(f"{net}\n{more} inner_product_param {{ num_output: 2 }} }}\n")
    args = ("--model", "more.prototxt", "--method", "pca,svd", "--max-macs", "0.8")
    with pytest.warns(UserWarning, match="Layers left as initialised: extra") as told:
        code, _, err = cli("frontier", NETS[0], *QUICK, *args)
    assert code == 0 and len(told) == 1, err


def test_budgets_and_bounds(folder: Path, cli: Cli) -> None:
    code, _, err = cli("frontier", NETS[0], *QUICK, "--max-macs", "0.1,0.8", "--max-params", "0.9", "--error", "0.3")
    assert code == 0, err
    found = {row["target"]: row for row in rows(folder)}
    assert list(found) == ["whole", "max-macs 0.8", "max-params 0.9", "error 0.3"]
    assert int(found["max-macs 0.8"]["macs"]) <= 0.8 * int(found["whole"]["macs"])
    assert int(found["max-params 0.9"]["params"]) <= 0.9 * int(found["whole"]["params"])
    assert "max-macs 0.1: left out: a share of 0.1 of the net's MACs can't be reached: the least is " in err


def test_ways_to_spread_a_budget_side_by_side(folder: Path, cli: Cli) -> None:
    code, _, err = cli("frontier", NETS[0], *QUICK, "--max-macs", "0.7", "--choose", "minmax,energy", "--error", "0.3")
    assert code == 0, err
    assert [row["target"] for row in rows(folder)] == ["whole", "max-macs 0.7 minmax", "error 0.3"]
    # of a net of one layer the best rank is the same
    assert "pca, max-macs 0.7: left out: a net that is there already: max-macs 0.7 minmax" in err


@pytest.mark.parametrize("solver", ["solver.prototxt", "apart.prototxt"])
def test_ways_that_look_at_data_and_at_directions(folder: Path, cli: Cli, solver: str) -> None:
    args = ("--solver", solver, *QUICK[2:], "--method", "vh,tucker2", "--max-macs", "0.8")
    code, _, err = cli("frontier", NETS[0], *args, "--choose", "responses, remainder")
    assert code == 0, err
    whole, *found = rows(folder)
    assert {row["method"] for row in found} == {"vh", "tucker2"}
    assert all(int(row["macs"]) <= 0.8 * int(whole["macs"]) for row in found)


def test_defaults(folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of the MACs, and times on the CPU with batches of 32."""
    fed: list[int] = []

    def interleaved(runs: list[Any], device: torch.device, seconds: float) -> list[list[float]]:
        fed.extend(len(run.args[0]["data"]) for run in runs)
        return [[1.0, 7.0, 2.0 + number] for number, _ in enumerate(runs)]

    monkeypatch.setattr(latency, "interleaved", interleaved)
    code, _, err = cli("frontier", NETS[0], *SOLVER, "-o", "out.svg")
    assert code == 0, err
    found = rows(folder)
    assert {row["target"] for row in found} == {"whole", "max-macs 0.5", "max-macs 0.7"}  # others can't be reached
    assert set(fed) == {32} and [row["milliseconds"] for row in found] == ["2", "3", "4"]
    assert "measuring 3 nets on cpu" in err and "batch 32 on cpu" in (folder / "out.csv").read_text()
    assert "milliseconds, batch 32 on cpu" in (folder / "out.svg").read_text()


def test_nets_that_cannot_be_measured_are_shown_without(
    folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def net_run(*args: Any) -> Any:
        raise ForceregError("its label is no class")

    monkeypatch.setattr(latency, "net_run", net_run)
    code, _, err = cli("frontier", NETS[0], *SOLVER, "--ranks", "2", "-o", "out.svg")
    assert code == 0 and "not measured: its label is no class" in err
    assert [row["milliseconds"] for row in rows(folder)] == ["", ""]
    assert "# times: not measured; fine-tuned for 0 iterations" in (folder / "out.csv").read_text()
    assert "milliseconds" not in (folder / "out.svg").read_text()


@pytest.mark.parametrize("finetune", [0, 2])
def test_a_test_net_of_its_own(folder: Path, cli: Cli, finetune: int) -> None:
    own = ("--solver", "apart.prototxt", "--device", "cpu", "--latency", "no", "-o", "out.svg")
    more = ("--ranks", "2", "--finetune", finetune)
    code, _, err = cli("frontier", NETS[0], *own, *more)
    assert code == 0, err
    apart = rows(folder)
    code, _, err = cli("frontier", NETS[0], *QUICK, *more)
    together = rows(folder)
    assert code == 0 and apart[0]["accuracy"] == together[0]["accuracy"]
    assert [row["accuracy"] for row in apart] == [row["accuracy"] for row in together]
    assert all(bool(row["accuracy_tuned"]) == bool(finetune) for row in apart)


def test_a_teacher_of_what_is_fine_tuned(folder: Path, cli: Cli) -> None:
    """What was tuned by one is neither that without, nor another's; none is tuned twice."""
    again = ("frontier", NETS[0], *QUICK, "--ranks", "2", "--finetune", "2")
    tuned, known = list[int](), list[bool]()
    for teacher in (NETS[1], NETS[0], NETS[1]):
        code, out, err = cli(*again, "--teacher", teacher)
        assert code == 0, err
        tuned.append(len([*(folder / "out.tuned").glob("*.caffemodel*")]))
        known.append("; 0 nets scored" in out)
        assert f"fine-tuned for 2 iterations, taught by {teacher}" in (folder / "out.csv").read_text()
    assert (tuned, known) == ([2, 4, 4], [False, False, True])
    log = (folder / "out.tuned/tune.log").read_text()
    assert log.count("Taught by") == 4 and "force/net_iter_8.caffemodel.h5 at temperature 4" in log
    code, _, err = cli(*again[:-2], "--teacher", NETS[1])
    assert code == 2 and "--teacher teaches the nets that --finetune N trains" in said(err)


def test_folded_batch_norm(folder: Path, cli: Cli) -> None:
    code, _, err = cli("frontier", NETS[0], *QUICK, "--ranks", "8", "--fold-bn", "--labels", "folded")
    assert code == 0, err
    whole, full = rows(folder)
    assert whole["net"] == full["net"] == "folded" and whole["accuracy"] == full["accuracy"]


def test_data_aware_for_the_methods_that_can(folder: Path, cli: Cli) -> None:
    args = ("frontier", NETS[0], *QUICK, "--ranks", "2")
    code, _, err = cli(*args, "--data-aware", "2", "--method", "pca,vh,svd")
    assert code == 0, err
    assert "vh: minimises the weights' error; --data-aware holds for pca and svd only" in err.splitlines()
    scores = json.loads((folder / "out.scores.json").read_text())
    code, out, _ = cli(*args, "--method", "vh")
    assert code == 0 and "; 0 nets scored" in out  # whole and vh are what they were
    code, out, _ = cli(*args, "--method", "pca")
    assert code == 0 and "; 1 nets scored" in out and len(scores) == 4
    code, _, err = cli(*args, "--data-aware", "2", "--method", "vh,kmeans")
    assert code == 2 and "--data-aware needs a layer to decompose by pca or svd; there is vh" in said(err)


def test_a_decomposed_net_is_one_of_them(folder: Path, cli: Cli) -> None:
    """The chain is there as it is, and at lower ranks."""
    assert cli("decompose", "--snapshot", NETS[0], "--ranks", "4", "--out", "low")[0] == 0
    code, _, err = cli("frontier", "low.caffemodel.h5", NETS[0], *QUICK, "--ranks", "2")
    assert code == 0, err
    low, lower, whole, cut = rows(folder)
    assert (low["net"], whole["net"]) == ("low", "none/net_iter_8")
    assert int(low["macs"]) < int(whole["macs"]) and lower["macs"] == cut["macs"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        pytest.param((*NETS, "-o", "out.svg", "--ranks", "2"), "--solver is missing: its test net scores", id="solver"),
        pytest.param((*NETS, *SOLVER, "-o", "out.txt"), "--out is 'out.txt'; expected a name", id="ending"),
        pytest.param((NETS[0], NETS[0], *QUICK), f"SNAPSHOT {NETS[0]} is given twice", id="twice"),
        pytest.param((*NETS, *QUICK, "--labels", "a"), "--labels is 'a'; expected 2 different names", id="few-labels"),
        pytest.param((*NETS, *QUICK, "--labels", "a,a"), "--labels is 'a,a'; expected 2 different", id="equal-labels"),
        pytest.param((*NETS, *QUICK, "--labels", "a,"), "--labels is 'a,'; expected 2 different", id="empty-label"),
        pytest.param(
            (*NETS, *QUICK, "--choose", "minimax"),
            "way to spread a budget 'minimax'; did you mean \"minmax\"",
            id="choose",
        ),
        pytest.param(
            (*NETS, *QUICK, "--choose", ""), "unknown way to spread a budget ''; known are energy", id="choose-nothing"
        ),
        pytest.param(
            (*NETS, *QUICK, "--error", "0.1", "--choose", "minmax"),
            "--choose says how a budget is spread",
            id="choose-error",
        ),
        pytest.param((*NETS, *QUICK, "--max-macs", "half"), "--max-macs is 'half'; expected numbers", id="no-number"),
        pytest.param((*NETS, *QUICK, "--max-params", "0.5,2"), "--max-params is '0.5,2'; expected numbers", id="share"),
        pytest.param((*NETS, *QUICK, "--ranks", "2;3"), "--ranks is '2;3'; expected whole numbers", id="ranks"),
        pytest.param((*NETS, *QUICK, "--ranks", "2,3"), "every target was left out", id="too-many-ranks"),
        pytest.param((*NETS, *QUICK, "--max-macs", "0.01"), "every target was left out", id="unreachable"),
        pytest.param((*NETS, *QUICK, "--method", "pca,mixed"), "--method mixed has one rank", id="mixed"),
        pytest.param((*NETS, *QUICK, "--method", "pca,pcb"), "unknown decomposition method 'pcb'", id="method"),
        pytest.param(("gone.h5", *QUICK), "gone.h5", id="no-snapshot"),
        pytest.param((*NETS, *SOLVER, "-o", "out.svg", "--latency", "gpu"), "unknown device 'gpu'", id="device"),
        pytest.param((*NETS, *QUICK, "--threads", "2"), "--threads is how --latency cpu measures", id="threads"),
        pytest.param((*NETS, *SOLVER, "-o", "out.svg", "--runtime", "x"), "unknown runtime 'x'", id="runtime"),
        pytest.param(
            (*NETS, *SOLVER, "-o", "out.svg", "--latency", "cuda"),
            "no CUDA device to measure on",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
            id="cuda",
        ),
    ],
)
def test_what_cannot_be(folder: Path, cli: Cli, args: tuple[str, ...], message: str) -> None:
    before = sorted(folder.iterdir())
    code, out, err = cli("frontier", *args)
    assert code in (1, 2) and out == "" and message in said(err)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("head", "gone", "message"),
    [
        pytest.param((TRAIN, TEST), 'layer { name: "accuracy"', "has no Accuracy layer in its test phase", id="score"),
        pytest.param(
            ('"data" type: "Input" top: "data" input_param { shape { dim: 5 dim: 1 dim: 6 dim: 6 } } }',),
            'layer { name: "loss"',
            r"its test phase reads no data (input data; a deploy net?)",
            id="deploy",
        ),
    ],
)
def test_nets_without_a_score(folder: Path, cli: Cli, head: tuple[str, ...], gone: str, message: str) -> None:
    text = "\nlayer {\n  name: ".join((HEAD, *head, *REST))
    model = read_model(NETS[0])
    write_model(folder / "other.caffemodel.h5", model.layers, attrs={"forcereg_net": text[: text.index(gone)]})
    code, _, err = cli("frontier", "other.caffemodel.h5", *QUICK, "--ranks", "2")
    assert code == 1 and message in said(err)


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        pytest.param(["net_iter_5.caffemodel.h5"], ["net_iter_5"], id="one"),
        pytest.param(["/x/net.solverstate"], ["net"], id="state"),
        pytest.param(["a/net.caffemodel", "b/net.caffemodel.h5"], ["a", "b"], id="folders"),
        pytest.param(["a.caffemodel", "b.caffemodel"], ["a", "b"], id="names"),
        pytest.param(["s/d=0,seed=1/n.h5", "s/d=1,seed=1/n.h5"], ["d=0,seed=1", "d=1,seed=1"], id="sweep"),
        pytest.param(["a/x/n.h5", "a/y/n.h5", "b/x/n.h5"], ["a/x", "a/y", "b/x"], id="two-levels"),
        pytest.param(["a/n.h5", "n.h5"], ["a/n", "n"], id="one-below"),
        pytest.param(["n.caffemodel", "n.caffemodel.h5"], ["n.caffemodel", "n.caffemodel.h5"], id="endings"),
        pytest.param(["a/b/n.h5", "b/a/n.h5"], ["a/b", "b/a"], id="same-parts"),
    ],
)
def test_labels(paths: list[str], labels: list[str]) -> None:
    assert labels_of(paths, None) == labels


def test_one_net_by_two_paths() -> None:
    with pytest.raises(UsageError, match=r"^SNAPSHOT \./a\.h5 is given twice$"):
        labels_of(["a.h5", "./a.h5"], None)
