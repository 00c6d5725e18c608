"""Commands that choose or show ranks by a net's accuracy: decompose --max-accuracy-drop, sensitivity, --data-aware."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import pytest

from forcereg import snapshot
from forcereg.schema.text import read_net, read_solver
from forcereg.study.evaluate import Evaluator
from tests.commands.conftest import Cli, said
from tests.solver.nets import IMAGES, write_images, write_solver

NET = "net_iter_30.caffemodel.h5"
SOLVER = ("--solver", "solver.prototxt")
SCHEDULE = 'max_iter: 30 snapshot_prefix: "net" snapshot_after_train: true test_iter: 2 test_interval: 30'


@pytest.fixture
def trained(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a trained net, which is the working directory."""
    wide = IMAGES.replace("num_output: 4", "num_output: 16")
    monkeypatch.chdir(write_images(tmp_path, wide))
    write_solver(tmp_path, SCHEDULE)
    code, _, err = cli("train", *SOLVER)
    assert code == 0, err
    return tmp_path


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_max_accuracy_drop(trained: Path, cli: Cli, drop: float) -> None:
    args = ("decompose", "--snapshot", NET, "--max-accuracy-drop", str(drop), *SOLVER, "--fc", "--out", "low", "--json")
    code, out, err = cli(*args)
    assert code == 0, err
    told = re.findall(r"net (\d+) of at most 10: ([\d.]+)% of the MACs, accuracy ([\d.]+)(: too low)?", err)
    assert [int(number) for number, *_ in told] == list(range(1, len(told) + 1)) and 2 <= len(told) <= 10
    whole, least = float(told[0][2]), min(float(share) for _, share, _, low in told if not low)
    report = json.loads(out)["net"]
    assert 100 * report["macs_after"] / report["macs_before"] == pytest.approx(least, abs=0.06)
    weights = snapshot.read_model(trained / "low.caffemodel.h5").layers
    score = Evaluator(read_solver(trained / "solver.prototxt")).score(read_net(trained / "low.prototxt"), weights)
    assert score.accuracy is not None and score.accuracy >= whole - drop - 1e-4

    # a second run scores nothing, and comes to the same
    before = (trained / "low.scores.json").read_bytes()
    assert len(json.loads(before)) == len(told)
    (trained / "test_lmdb" / "lock.mdb").unlink(missing_ok=True)
    stat = (trained / "test_lmdb" / "data.mdb").stat()
    (trained / "test_lmdb" / "data.mdb").write_bytes(b"x" * stat.st_size)  # it isn't even read
    os.utime(trained / "test_lmdb" / "data.mdb", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    code, again, err = cli(*args)
    assert code == 0, err
    assert json.loads(again) == json.loads(out) and (trained / "low.scores.json").read_bytes() == before


def test_a_drop_without_a_solver(trained: Path, cli: Cli) -> None:
    code, _, err = cli("decompose", "--snapshot", NET, "--max-accuracy-drop", "0.1")
    assert code == 2 and "--max-accuracy-drop needs --solver FILE" in said(err)


def test_sensitivity(trained: Path, cli: Cli) -> None:
    pytest.importorskip("matplotlib")
    args = ("sensitivity", NET, *SOLVER, "--error", "0.01,0.3", "--fc", "-o", "out.svg")
    code, out, err = cli(*args)
    assert code == 0, err
    with open(trained / "out.csv", newline="") as file:
        whole, *rows = csv.DictReader(file)
    assert (whole["layer"], whole["rank"]) == ("", "0")
    assert [(row["layer"], row["bound"]) for row in rows] == [
        ("conv", "0.01"), ("conv", "0.3"), ("ip", "0.01"), ("ip", "0.3"),
    ]  # fmt: skip
    for row in rows:
        assert float(row["error"]) <= float(row["bound"]) and int(row["rank"]) <= int(row["full_rank"])
        assert float(row["drop"]) == pytest.approx(float(whole["accuracy"]) - float(row["accuracy"]), abs=1e-5)
    assert f"the whole net's is {float(whole['accuracy']):.2%}" in out
    assert f"{float(rows[0]['accuracy']):.2%} ({rows[0]['rank']})" in out
    assert b"<svg" in (trained / "out.svg").read_bytes()
    scored = re.search(r"wrote out.svg and out.csv; (\d) nets scored", out)
    assert scored and 3 <= int(scored[1]) <= 5 and err.count("net ") >= 5

    # a second run knows them all, and one that asks for more scores only that
    assert "; 0 nets scored, the others were known" in cli(*args)[1]
    code, out, _ = cli(*args[:4], "--error", "0.01,0.3,0.9", *args[6:])
    assert code == 0 and int(out.split(" nets scored")[0].rsplit(maxsplit=1)[1]) in (1, 2)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        pytest.param(("-o", "out.svg"), "--solver is missing: its test net scores", id="no-solver"),
        pytest.param((*SOLVER, "-o", "out.txt"), "--out is 'out.txt'; expected a name that ends in .png", id="ending"),
        pytest.param((*SOLVER, "--error", "2"), "--error is '2'; expected bounds from 0 to 1", id="error"),
        pytest.param((*SOLVER, "--except-layers", "conv"), "nothing to decompose", id="nothing"),
    ],
)
def test_sensitivity_of_what_cannot_be(trained: Path, cli: Cli, args: tuple[str, ...], message: str) -> None:
    code, _, err = cli("sensitivity", NET, *args)
    assert code in (1, 2) and message in said(err)


def test_data_aware(trained: Path, cli: Cli) -> None:
    """Other weights at the same rank, the same each time; an error that is of the responses."""
    common = ("decompose", "--snapshot", NET, "--ranks", "2", "--json", "--out")
    plain, aware, again = (
        json.loads(cli(*common, name, *more)[1])
        for name, more in (("plain", ()), ("aware", ("--data-aware", "3")), ("again", ("--data-aware", "3", *SOLVER)))
    )
    errors = [one["layers"][0]["error"] for one in (plain, aware, again)]
    assert errors[1] < errors[0]  # noise has more directions in the weights than the images show
    assert errors[2] == pytest.approx(errors[1], rel=0.2)  # another seed mirrors others of the images
