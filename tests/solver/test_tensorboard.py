"""TensorBoard curves: loss, rate, scores, and per forced layer rank, cosine and force ratio."""

from __future__ import annotations

import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from forcereg.errors import ForceregError
from forcereg.solver.diagnostics import coordination, force_ratios, forced_ranks, mean_cosine
from forcereg.solver.loop import Solver
from forcereg.system.events import Event
from tests.conftest import TOP
from tests.solver.nets import Recorder, write_images, write_solver

pytest.importorskip("tensorboard", reason="needs the tensorboard extra")

EXTRA = (
    "max_iter: 6 display: 2 test_iter: 2 test_interval: 3 force_decay: 0.01 weight_decay: 0.1 "
    'force_type: "Degradation" snapshot_after_train: false'
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, dict[str, list[tuple[int, float]]]]:
    """The events of a run and, by tag, what TensorBoard reads back."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from forcereg.solver.trackers.tensorboard import TensorBoard

    root = write_images(tmp_path_factory.mktemp("board"))
    recorder, board = Recorder(), TensorBoard(root / "logs")
    solver = Solver(write_solver(root, EXTRA), observers=[recorder, board])
    solver.measure_force = True
    solver.solve()
    board.close()
    reader = EventAccumulator(str(root / "logs"))
    reader.Reload()
    return recorder, {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_sparsity(tmp_path: Path) -> None:
    """Of each blob, its blocks, and the term that is added to the loss."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from forcereg.solver.trackers.tensorboard import TensorBoard

    layer = {"layer": "ip", "index": 0, "element": 50.0, "column": 25.0, "row": 0.0}
    blocks = [{"x": 3, "y": 1, "percent": 75.0}]
    told = [{**layer, "blocks": blocks}, {**layer, "index": 1, "blocks": []}]
    with TensorBoard(tmp_path) as board:
        board(Event("sparsity", {"iteration": 4, "layers": told, "regularization": 0.5, "total": 1.5}))
    reader = EventAccumulator(str(tmp_path))
    reader.Reload()
    found = {tag: [(one.step, one.value) for one in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
    assert found["sparsity/ip/block_3x1"] == [(4, 75.0)] and found["train/regularization"] == [(4, 0.5)]
    assert found["sparsity/ip/element"] == found["sparsity/ip/1/element"] == [(4, 50.0)]


def test_curves(run: tuple[Recorder, dict[str, list[tuple[int, float]]]]) -> None:
    recorder, curves = run
    assert curves.keys() == {
        *("train/loss", "train/lr", "train/output/loss"),
        *("test_0/accuracy", "test_0/loss"),
        *(f"force/conv/{name}" for name in ("rank", "cosine", "ratio")),
    }
    assert curves["train/loss"] == [(e.iteration, pytest.approx(e.loss)) for e in recorder.of("train")]
    assert curves["train/lr"] == [(i, pytest.approx(0.1)) for i in (0, 2, 4)]
    tests = recorder.of("test")
    assert curves["test_0/accuracy"] == [(e.iteration, pytest.approx(e.outputs[0].value)) for e in tests]
    assert [e.iteration for e in tests] == [0, 3, 6]


def test_force_curves_at_each_test(run: tuple[Recorder, dict[str, list[tuple[int, float]]]]) -> None:
    _, curves = run
    """But for the last test, where no update follows whose force could be measured."""
    for name, steps in {"rank": [0, 3, 6], "cosine": [0, 3, 6], "ratio": [0, 3]}.items():
        assert [step for step, _ in curves[f"force/conv/{name}"]] == steps
    assert all(1 <= value <= 4 for _, value in curves["force/conv/rank"])
    assert all(-1 <= value <= 1 for _, value in curves["force/conv/cosine"])
    assert all(0 < value < 10 for _, value in curves["force/conv/ratio"])


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    from forcereg.solver.trackers.tensorboard import TensorBoard

    (tmp_path / "file").write_text("")
    with pytest.raises(ForceregError, match=r"--log-dir .*file/logs"):
        TensorBoard(tmp_path / "file" / "logs")


def test_full_disk_is_one_line(tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk; the curves outgrow it while training."""
    path = write_solver(write_images(tmp_path), "max_iter: 100000 display: 1 snapshot_after_train: false")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

    done = subprocess.run(
        [sys.executable, "-m", "forcereg", "train", "--solver", path, "--log-dir", tmp_path / "logs"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TOP)},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )
    assert done.returncode == 1
    *log, last = done.stderr.splitlines()
    assert last == f"forcereg: --log-dir {tmp_path}/logs: File too large; choose a folder that can be written"
    assert all("] " in line for line in log)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([[1.0, 0], [2, 0], [3, 0]], 1, id="parallel"),
        pytest.param([[1.0, 0], [0, 2]], 0, id="orthogonal"),
        pytest.param([[1.0, 0], [-2, 0]], -1, id="opposite"),
        pytest.param([[1.0, 2]], 0, id="single"),
        pytest.param([[0.0, 0], [1, 0], [1, 0]], 1 / 3, id="zero-row"),
    ],
)
def test_mean_cosine(rows: list[list[float]], expected: float) -> None:
    assert float(mean_cosine(torch.tensor(rows))) == pytest.approx(expected)


def test_coordination() -> None:
    weight = torch.diag(torch.tensor([10.0, 3.0, 0.1]))
    layers = {"conv": weight, "ip": weight * math.inf}
    ranks = forced_ranks(layers)
    assert ranks == {"conv": (2, 3)}
    assert coordination(layers, ranks) == [{"layer": "conv", "rank": 2, "cosine": pytest.approx(0)}]


def test_force_ratios() -> None:
    gradient, zero = torch.full((3, 3), 2.0), torch.zeros(3, 3)
    ratios = force_ratios(["conv", "still"], [gradient, zero], [gradient * 1.5, zero])
    assert ratios == [{"layer": "conv", "ratio": pytest.approx(0.5)}, {"layer": "still", "ratio": 0}]
