"""`forcereg sweep`: nets cut by one rule, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from forcereg.lowrank.decompose import Prepared
from forcereg.study import judged
from forcereg.study.moments import moments_of
from tests.commands.conftest import Cli
from tests.solver.nets import IMAGES, write_images, write_solver

SCHEDULE = "max_iter: 6 test_iter: 2 test_interval: 3 display: 2 weight_decay: 0.001"

TWO = (
    IMAGES.replace(
        'layer { name: "bn"',
        """layer {
  name: "conv2" type: "Convolution" bottom: "conv" top: "conv2"
  convolution_param { num_output: 5 kernel_size: 3 weight_filler { type: "xavier" } }
}
layer { name: "bn\"""",
    )
    .replace('bottom: "conv" top: "conv" ', 'bottom: "conv2" top: "conv2" ')
    .replace('bottom: "conv" top: "ip"', 'bottom: "conv2" top: "ip"')
)
"""Two convolutions: of 4 filters 1x3x3 at 16 places, and of 5 filters 4x3x3 at 4; an inner product of 20 x 3."""
MACS = 4 * 9 * 16 + 5 * 36 * 4 + 20 * 3
ASK = ("sweep", "--solver", "solver.prototxt", "--set", "force_decay=0,0.01", "--max-iter", "3")


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a solver of that net."""
    monkeypatch.chdir(tmp_path)
    write_solver(write_images(tmp_path, TWO), SCHEDULE)
    return tmp_path


def rows_of(root: Path) -> list[dict[str, str]]:
    with open(root / "sweep/results.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        pytest.param(("--max-macs", "0.7"), "max-macs 0.7", id="macs"),
        pytest.param(("--max-params", "0.8", "--method", "svd"), "max-params 0.8 by svd", id="params"),
        pytest.param(("--max-macs", "0.7", "--choose", "responses"), "max-macs 0.7 responses", id="responses"),
        pytest.param(("--ranks", "2,3"), "ranks 2,3", id="ranks"),
        pytest.param(("--max-accuracy-drop", "1", "--only-layers", "conv2"), "max-accuracy-drop 1", id="accuracy"),
        pytest.param(("--ranks", "2,3", "--method", "tucker2"), "ranks 2,3 by tucker2", id="pairs"),
        pytest.param(("--error", "0.3"), "error 0.3", id="error"),
    ],
)
def test_nets_cut_by_one_rule(two: Path, cli: Cli, rule: tuple[str, ...], words: str) -> None:
    code, out, err = cli(*ASK, *rule, "--finetune", "1")
    assert code == 0, err
    assert out.splitlines()[0].strip() == f"cut by {words}"
    rows = rows_of(two)
    assert [row["setting"] for row in rows] == ["force_decay=0", "force_decay=0.01"]
    for row in rows:
        assert int(row["macs"]) == MACS and row["accuracy_whole_tuned"] and row["accuracy_tuned"]
        if "max-macs" in words:
            assert int(row["macs_cut"]) <= 0.7 * MACS
        if "ranks" in words:
            assert row["ranks"].split("-")[0][0] == "2" and ("-" in row["ranks"]) == ("tucker2" in words)


def test_responses_are_those_to_training_data(two: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a test net of its own, whose ranks they choose: tests are not to be looked at before."""
    for name, phase in (("train", "TEST"), ("test", "TRAIN")):
        head, *layers = (two / "net.prototxt").read_text().split("\nlayer {")
        own = [layer for layer in layers if f"include {{ phase: {phase} }}" not in layer]
        (two / f"{name}.prototxt").write_text("\nlayer {".join([head, *own]))
    write_solver(two, SCHEDULE, net='train_net: "train.prototxt" test_net: "test.prototxt"')
    read = []

    def watched(reading: Prepared, *rest: Any) -> Any:
        read.append((Path(reading.file.name).name, *rest[:1]))
        return moments_of(reading, *rest)

    monkeypatch.setattr(judged, "moments_of", watched)
    code, _, err = cli(*ASK, "--max-macs", "0.7", "--choose", "responses")
    assert code == 0, err
    assert read and set(map(str, read)) == {"('train.prototxt', ['conv', 'conv2'])"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="warns only without a GPU")
def test_what_training_data_are_warned_of_is_told_once(two: Path, cli: Cli) -> None:
    write_solver(two, f"{SCHEDULE} solver_mode: GPU")
    code, _, err = cli(*ASK, "--max-macs", "0.7", "--choose", "responses")
    assert code == 0 and err.count("no CUDA device") == 1, err


def test_equal_cost_and_the_ranks_that_an_error_asks_for(two: Path, cli: Cli) -> None:
    """The error goes on telling what the force did; another rule, or another error, trains nothing anew."""
    ranks = []
    for error in ("0.01", "0.9"):
        code, out, err = cli(*ASK, "--max-macs", "0.7", "--error", error)
        assert code == 0 and "done before" not in err, err
        assert f"ranks at {100 * float(error):g}%" in out.replace("\n", "")
        rows = rows_of(two)
        assert all(int(row["macs_cut"]) <= 0.7 * MACS for row in rows)
        ranks.append([row["ranks_at_error"] for row in rows])
    assert ranks[1] == ["1/1", "1/1"] != ranks[0]
    logs = [path.read_text() for path in two.rglob("train.log")]
    assert len(logs) == 2 and all(
        log.count("] Iteration 0 (") == log.count("] Restoring previous") == 1 for log in logs
    )


def test_max_iter(two: Path, cli: Cli) -> None:
    code, _, err = cli(*ASK, "--set", "max_iter=1,2")
    assert code == 2 and "--max-iter and --set max_iter are both given" in err
    assert cli(*ASK)[0] == 0
    assert len(list(two.rglob("net_iter_3.solverstate.h5"))) == 2


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        pytest.param(("--max-macs", "0.01"), "a share of 0.01 of the net's MACs can't be reached", id="out-of-reach"),
        pytest.param(("--ranks", "2"), "1 ranks given; the net has 2 layers", id="count"),
        pytest.param(("--max-macs", "0.5", "--ranks", "2,2"), "found --ranks and --max-macs", id="two-rules"),
        pytest.param(("--error", "2"), "the error bound is 2; expected 0 to 1", id="error"),
        pytest.param(("--choose", "minmax"), "--choose says how a budget is spread; give --max-macs", id="choose"),
        pytest.param(("--max-macs", "0.5", "--error", "2"), "the error bound is 2; expected 0 to 1", id="told-error"),
        pytest.param(("--rank-config", "gone.json"), "gone.json", id="no-file"),
        pytest.param(("--only-layers", "conv7"), "no Convolution or InnerProduct layer 'conv7'", id="no-layer"),
    ],
)
def test_a_cut_that_cannot_be_is_told_before_anything_is_trained(
    two: Path, cli: Cli, rule: tuple[str, ...], message: str
) -> None:
    code, _, err = cli(*ASK, *rule)
    assert code in (1, 2) and message in err, err
    assert not list(two.rglob("*iter*")) and "Iteration" not in "".join(p.read_text() for p in two.rglob("*.log"))


def test_a_rank_config_is_known_by_what_it_says(two: Path, cli: Cli) -> None:
    for rank, before in ((2, 0), (2, 2), (3, 0)):
        (two / "ranks.json").write_text(json.dumps({"conv2": rank}))
        code, _, err = cli(*ASK, "--rank-config", "ranks.json")
        assert code == 0 and err.count("done before") == before, err
        assert [row["ranks"] for row in rows_of(two)] == [str(rank)] * 2


def test_a_teacher_of_what_is_fine_tuned(two: Path, cli: Cli) -> None:
    """Another one fine-tunes anew, and trains nothing anew."""
    ask = ("sweep", "--solver", "solver.prototxt", "--set", "force_decay=0", "--max-iter", "3", "--ranks", "2,3")
    assert cli("train", "--solver", "solver.prototxt", "--max-iter", "2", "--set", "snapshot_prefix=whole")[0] == 0
    trained, logs = set[float](), []
    for more in ((), ("--teacher", "whole_iter_2.caffemodel.h5"), ("--teacher", "whole_iter_2.caffemodel.h5")):
        code, _, err = cli(*ask, "--finetune", "2", *more)
        assert code == 0, err
        (model,) = (two / "sweep").rglob("net_iter_3.caffemodel*")
        trained.add(model.stat().st_mtime)
        logs.append("".join(path.read_text() for path in (two / "sweep").rglob("tune.log")))
    assert len(trained) == 1
    # of the cut net and of the whole one
    assert [log.count("Taught by") for log in logs] == [0, 2, 2]
    code, _, err = cli(*ask, "--teacher", "whole_iter_2.caffemodel.h5")
    assert code == 2 and "--finetune N trains, which isn't given; add it" in err
