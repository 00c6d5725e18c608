"""`forcereg sweep`: the grid, its runs, what they leave, and going on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from forcereg.errors import UsageError
from forcereg.report.sweep import as_csv, by_setting, spread
from forcereg.sweep import Result, alternatives, grid
from tests.conftest import RunCli
from tests.solver.nets import write_images, write_solver

SCHEDULE = "max_iter: 6 test_iter: 2 test_interval: 3 display: 2 weight_decay: 0.001"


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("force_decay=0,1e-4", "force_decay", ["0", "1e-4"]),
        ("stepvalue=[5000,7000],[6000]", "stepvalue", ["[5000,7000]", "[6000]"]),
        ('train_state={stage: "a,b"}, {}', "train_state", ['{stage: "a,b"}', "{}"]),
        ("net='a,b'", "net", ["'a,b'"]),
    ],
)
def test_alternatives(text: str, name: str, values: list[str]) -> None:
    assert alternatives(text) == (name, values)


@pytest.mark.parametrize("text", ["", "force_decay", "=1", "force_decay=", "force_decay=1,,2"])
def test_no_alternatives(text: str) -> None:
    with pytest.raises(UsageError, match="expected FIELD=VALUE,VALUE"):
        alternatives(text)


def test_grid() -> None:
    settings = grid(["force_decay=0,0.1", "force_type=Constant,Linear", "base_lr=1,2"], 2)
    # without force the type says nothing: 2 rates; with it 2 types x 2 rates; each with 2 seeds
    assert len(settings) == 2 * (2 + 4)
    assert settings[0].folder == "force_decay=0,base_lr=1,seed=1"
    assert len({setting.folder for setting in settings}) == len(settings)
    with pytest.raises(UsageError, match="names a field twice"):
        grid(["base_lr=1", "base_lr=2"], 1)


def result(decay: str, seed: int, accuracy: float) -> Result:
    return Result({"force_decay": decay}, seed, accuracy, 0.5, [2, 3], [4, 8], 1000, 500, 0.25, None, 1.5)


def test_report() -> None:
    results = [result("0", 1, 0.5), result("0", 2, 0.75), result("1", 1, 1.0)]
    assert list(by_setting(results)) == ["force_decay=0", "force_decay=1"]
    assert as_csv(results).splitlines()[:2] == [
        "force_decay,seed,accuracy,loss,ranks,full_ranks,macs,macs_cut,accuracy_cut,accuracy_tuned,seconds",
        "0,1,0.5,0.5,2/3,4/8,1000,500,0.25,,1.5",
    ]
    assert spread([0.5, 0.75], ".1%") == "62.5% (50.0% to 75.0%)"
    assert (spread([1.0, 1.0], "g"), spread([None], "g")) == ("1", "-")


def test_a_sweep_and_going_on(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "work").mkdir()
    write_solver(write_images(tmp_path), SCHEDULE)
    asked = ("--set", "force_decay=0,0.01", "--set", "force_type=Constant", "--finetune", "2", "--error", "0.1")
    args = ("sweep", "--solver", "../solver.prototxt", *asked)
    done = run_cli(*args, cwd=tmp_path / "work")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "work" / "sweep"
    with open(out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["force_decay"], row["force_type"], row["seed"]) for row in rows] == [
        ("0", "", "1"),
        ("0.01", "Constant", "1"),
    ]
    for row in rows:
        assert 1 <= int(row["ranks"]) <= 4 == int(row["full_ranks"])
        assert all(0 <= float(row[name]) <= 1 for name in ("accuracy", "accuracy_cut", "accuracy_tuned"))
        assert int(row["macs"]) == 4 * 9 * 16 + 64 * 3
    assert "force_decay=0.01 force_type=Constant" in done.stdout and (out / "sweep.svg").stat().st_size > 1000
    logs = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.log"))
    assert logs == sorted(f"{folder}/{log}.log" for folder in _folders(out) for log in ("train", "tune"))

    # one run is lost, half of it: it goes on from its snapshot, the other isn't done again
    first, second = _folders(out)
    (out / second / "result.json").unlink()
    before = json.loads((out / first / "result.json").read_text())
    again = run_cli(*args, cwd=tmp_path / "work")
    assert again.returncode == 0 and f"{first}: done before" in again.stderr and f"{second}: done" not in again.stderr
    assert json.loads((out / first / "result.json").read_text()) == before
    with open(out / "results.csv", newline="") as file:
        same = [{**row, "seconds": ""} for row in csv.DictReader(file)]
    assert same == [{**row, "seconds": ""} for row in rows]


def _folders(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if path.is_dir())


def test_a_solver_without_a_test(tmp_path: Path, run_cli: RunCli) -> None:
    write_solver(write_images(tmp_path), "max_iter: 1")
    done = run_cli("sweep", "--solver", "solver.prototxt", "--set", "base_lr=1", cwd=tmp_path)
    assert done.returncode == 1 and "has no test net, so a sweep can't compare" in done.stderr
