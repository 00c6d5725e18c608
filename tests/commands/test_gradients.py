"""--gradients: several processes by every way of averaging, a report on what it is worth, and slips in one line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from forcereg.snapshot import read_model
from tests.conftest import RunCli
from tests.nursery import Nursery
from tests.solver import ranks
from tests.solver.nets import write_images, write_solver

ENV = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
Train = Callable[..., "CompletedProcess[str]"]
TERNARY = ("--gradients", "ternary", "--dense-layers", "last", "--min-size", "5")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_images(tmp_path, ranks.CONV.replace("BATCH", "2"))
    write_solver(tmp_path, 'max_iter: 6 snapshot: 3 snapshot_prefix: "s" momentum: 0.9 display: 2 iter_size: 2')
    return tmp_path


@pytest.fixture
def train(nursery: Nursery, root: Path) -> Train:
    """`forcereg train` by two processes, forked."""

    def run(*options: str, cwd: Path = root) -> CompletedProcess[str]:
        command = ("-m", "tests.solver.launched", "train", "--solver", "solver.prototxt", "--nproc", "2", *options)
        return nursery.run(*command, cwd=cwd, env=ENV)

    return run


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(root: Path, train: Train, tmp_path: Path) -> None:
    """With the seed drawn anew: the generator is the state's."""
    whole = train(*TERNARY)
    assert whole.returncode == 0, whole.stderr
    assert "Gradients between 2 processes are ternary: 2 blobs' gradients are sent in two bits a value" in whole.stderr
    (again := root / "again").mkdir()
    for path in root.iterdir():
        if path.is_dir() and path != again:
            shutil.copytree(path, again / path.name)
        elif path.is_file() and "iter_6" not in path.name:
            shutil.copy(path, again)
    resumed = train(*TERNARY, "--resume", "auto", "--seed", "99", cwd=again)
    assert resumed.returncode == 0, resumed.stderr
    found, expected = (read_model(folder / "s_iter_6.caffemodel.h5").layers for folder in (again, root))
    for name, blobs in expected.items():
        for index, blob in blobs.items():
            assert torch.equal(torch.as_tensor(found[name][index]), torch.as_tensor(blob)), name


def test_report(root: Path, train: Train) -> None:
    """It trains and saves nothing; its numbers stand in the log, and with --log-json as an event."""
    done = train("--gradients", "report", "--bandwidth", "1M", "--log-json", "log.json")
    assert done.returncode == 0, done.stderr
    (event,) = [json.loads(line) for line in (root / "log.json").read_text().splitlines() if '"gradients"' in line]
    assert event["ranks"] == 2 and event["bandwidth"] == 1e6 and event["given"] is True
    schemes = {one["scheme"]: one for one in event["schemes"]}
    assert list(schemes) == ["dense", "bf16", "fp16", "powersgd", "ternary"]
    assert schemes["dense"]["bits"] == 2 * schemes["bf16"]["bits"] > 10 * schemes["ternary"]["bits"] > 0
    assert schemes["dense"]["gain"] == schemes["dense"]["work"] == 0
    assert event["share"] == pytest.approx(1 - event["alone"] / schemes["dense"]["seconds"])
    assert re.search(r"\] At 1 Mbit/s, communication takes \d+% of an iteration; of each scheme:$", done.stderr, re.M)
    assert "Optimization Done" not in done.stderr and not list(root.glob("s_iter_*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--clip-sigma 2", "--clip-sigma is of --gradients ternary, which is dense; leave it out"),
        ("--gradients bf16 --dense-layers last", "--dense-layers is of --gradients ternary, which is bf16"),
        ("--gradients ternary --powersgd-rank 2", "--powersgd-rank is of --gradients powersgd, which is ternary"),
        ("--gradients ternary --bandwidth 1G", "--bandwidth is of --gradients report, which is ternary"),
        ("--gradients report --bandwidth 1X", "'1X' is no bandwidth; expected bits a second, as in 1e9, 100M or 1G"),
        ("--gradients report --bandwidth 0", "'0' is no bandwidth"),
        ("--gradients report", "a report on gradients needs several processes; add --nproc 2, or start"),
        ("--gradients ternery", "unknown way to average gradients 'ternery'; did you mean \"ternary\"?"),
        ("--gradients ternary --clip-sigma nan", "--clip-sigma is nan; expected a number of 0 (none) or more"),
    ],
)  # fmt: skip
def test_slips(options: str, said: str, root: Path, run_cli: RunCli) -> None:
    done = run_cli("train", "--solver", "solver.prototxt", *options.split(), cwd=root, env=ENV)
    assert done.returncode != 0
    assert said in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_one_process_says_that_it_sends_nothing(root: Path, run_cli: RunCli) -> None:
    done = run_cli("train", "--solver", "solver.prototxt", *TERNARY, "--max-iter", "1", cwd=root, env=ENV)
    assert done.returncode == 0 and "] One process alone sends no gradients: they aren't ternary" in done.stderr
