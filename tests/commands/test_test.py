"""`forcereg test`: each batch's outputs on standard error, their means on standard output."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from forcereg.solver.loop import Solver
from tests.commands.conftest import Cli, said
from tests.solver.nets import Recorder, write_images, write_solver


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, Recorder]:
    """A folder with net, data and s_iter_5, and the events of its training."""
    write_images(tmp_path)
    recorder = Recorder()
    extra = 'max_iter: 5 test_iter: 2 test_interval: 5 snapshot_prefix: "s"'
    Solver(write_solver(tmp_path, extra), observers=[recorder]).solve()
    return tmp_path, recorder


def values(text: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf"\b{name} = (\S+)", text)]


def test_prints_the_means(trained: tuple[Path, Recorder], cli: Cli) -> None:
    root, recorder = trained
    args = ["--model", root / "net.prototxt", "--weights", root / "s_iter_5.caffemodel.h5"]
    code, out, err = cli("test", *args, "--iterations", 2, "--device", "cpu")
    assert code == 0
    assert re.search(r"\] accuracy = 0\.\d+$|\] accuracy = [01]$", out, re.MULTILINE)
    assert re.search(r"\] loss = [\d.e-]+ \(\* 1 = [\d.e-]+ loss\)$", out, re.MULTILINE)
    (accuracy,), (loss,) = values(out, "accuracy"), values(out, "loss")
    batches = re.findall(r"Batch (\d+), (\w+) = (\S+)$", err, re.MULTILINE)
    assert [batch[:2] for batch in batches] == [(str(i), name) for i in range(2) for name in ("accuracy", "loss")]
    assert accuracy == pytest.approx(np.mean(values(err, "accuracy")), rel=1e-5)
    assert values(out, "Loss:") == []
    assert float(re.search(r"\] Loss: (\S+)$", out, re.MULTILINE)[1]) == pytest.approx(loss)
    # ten images in two batches: what the last test in training saw, from the first image on
    told = {output.name: output.value for output in recorder.of("test")[-1].outputs}
    assert (accuracy, loss) == (pytest.approx(told["accuracy"]), pytest.approx(told["loss"], rel=1e-4))


def test_solver_states_and_missing_files_are_one_line(
    trained: tuple[Path, Recorder],
    cli: Cli,
) -> None:
    root, _ = trained
    for weights, says in (("s_iter_5.solverstate.h5", "this is a solver state"), ("none.h5", "none.h5")):
        code, out, err = cli("test", "--model", root / "net.prototxt", "--weights", root / weights)
        assert (code, out) == (1, "")
        assert says in said(err)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param(["--weights", "x"], "Missing option '--model'", id="no-model"),
        pytest.param(["--model", "x"], "Missing option '--weights'", id="no-weights"),
        pytest.param(["--model", "x", "--weights", "x", "--iterations", "0"], "'--iterations'", id="no-iterations"),
    ],
)
def test_bad_usage(args: list[str], says: str, cli: Cli) -> None:
    code, _, err = cli("test", *args)
    assert code == 2
    assert says in said(err)


@pytest.mark.parametrize(
    ("iterations", "says"),
    [
        (1, "1 batch of 5 covers 5 of the 10 records"),
        (2, None),
        (3, "3 batches of 5 go round the 10 records 1.5 times"),
    ],
)
def test_says_how_much_of_the_data_is_seen(
    iterations: int, says: str | None, trained: tuple[Path, Recorder], cli: Cli
) -> None:
    root, _ = trained
    args = ["--model", root / "net.prototxt", "--weights", root / "s_iter_5.caffemodel.h5"]
    code, _, err = cli("test", *args, "--iterations", iterations, "--device", "cpu")
    lines = [line.partition("] ")[2] for line in err.splitlines() if line.startswith("W")]
    assert code == 0 and lines == ([says] if says else [])
