"""scripts/paper/sparse_lowrank.py: every way comes to its budget, in rows that aren't made again."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import pytest

from tests.conftest import TOP, RunCli
from tests.nursery import Nursery

SCRIPT = TOP / "scripts" / "paper" / "sparse_lowrank.py"


def run(nursery: Nursery, cwd: Path, *args: str) -> str:
    code = f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = nursery.run("-c", code, "--scale", "0.001", *args, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dead(base: Path) -> None:
    """Zeroes what so short a training won't: 30 of conv2's 50 filters, and what reads them."""
    with h5py.File(base, "r+") as file:
        for blob in file["data/conv2"].values():
            blob[20:] = 0
        file["data/ip1/0"][:, 20 * 16 :] = 0


def test_ways_come_to_the_budget(long_form: bool, nursery: Nursery, run_cli: RunCli, tmp_path: Path) -> None:
    run_cli("configs", "copy", ".", "examples/mnist/*", cwd=tmp_path)
    run_cli("data", "digits", "examples/mnist", cwd=tmp_path)
    run(nursery, tmp_path, "--ways", "cut", "--budgets", "0.3")
    dead(tmp_path / "runs" / "lenet_1" / "base_iter_20.caffemodel.h5")
    ways = ["lasso", "force+cut+lasso"] if long_form else ["lasso"]
    told = run(nursery, tmp_path, "--ways", ",".join(ways), "--budgets", "0.5,0.05")
    assert [line.split()[0] for line in told.splitlines() if "tuned=" in line] == [
        f"way={way}" for way in ways for _ in range(2)
    ]
    with (tmp_path / "results" / "sparse_lowrank_1.csv").open() as stream:
        rows = {(row["way"], row["budget"]): row for row in csv.DictReader(stream)}
    assert len(rows) == 2 * len(ways) + 1
    for way in ways:
        row = rows[way, "0.5"]
        assert 0.3 < float(row["macs"]) <= 0.5 and row["until"] == "1"
        assert 0 <= float(row["cut"]) <= 1 and 0 <= float(row["tuned"]) <= 1
        # what so few iterations can't come to is a row without numbers
        assert not rows[way, "0.05"]["macs"] and not rows[way, "0.05"]["tuned"]
    assert rows["lasso", "0.5"]["left"] == "conv2=20x20x5x5 ip1=500x320"
    assert float(rows["cut", "0.3"]["macs"]) <= 0.3
    assert "tuned=" not in run(nursery, tmp_path, "--ways", "lasso", "--budgets", "0.5,0.05")


@pytest.mark.parametrize(("args", "message"), [(("--ways", "lasso,shrink"), "'shrink' is none of cut, force+cut")])
def test_wrong_words_are_told(args: tuple[str, ...], message: str, nursery: Nursery, tmp_path: Path) -> None:
    code = f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = nursery.run("-c", code, *args, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and not list(tmp_path.iterdir())
