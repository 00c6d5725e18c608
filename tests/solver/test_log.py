"""Log lines: what Caffe prints, in its order, as the scripts made for its logs expect them."""

from __future__ import annotations

import io
import re
import threading
from pathlib import Path

import numpy as np
import pytest

from forcereg import snapshot
from forcereg.net.scoring import Output
from forcereg.solver.log import GlogWriter, ProgressBar, describe
from forcereg.system.events import Event
from forcereg.system.terminal import on_terminal
from tests.solver.nets import TESTED, batches, regression

# level, month and day in four digits, time to the microsecond, thread, source
PREFIX = re.compile(r"([IWEF])(0[1-9]|1[0-2])([0-3]\d) ([0-2]\d):([0-5]\d):([0-5]\d)\.(\d{6}) (\d+) [\w.]+:\d+\] (.*)")
NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?"
PACE = rf"\({NUMBER} iter/s, {NUMBER}s/2 iters\)"

# what tools/extra/parse_log.py searches for in each line
ITERATION = re.compile(r"Iteration (\d+)")
TRAIN_OUTPUT = re.compile(r"Train net output #(\d+): (\S+) = ([\.\deE+-]+)")
TEST_OUTPUT = re.compile(r"Test net output #(\d+): (\S+) = ([\.\deE+-]+)")
RATE = re.compile(r"lr = ([-+]?[0-9]*\.?[0-9]+([eE]?[-+]?[0-9]+)?)")

EXTRA = (
    'test_iter: 1 test_interval: 2 test_compute_loss: true display: 2 max_iter: 4 snapshot: 4 snapshot_prefix: "s" '
    'lr_policy: "multistep" gamma: 0.5 stepvalue: 2 weights: "start.h5" average_loss: 2'
)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """All lines of a run from given weights, then of its resume."""
    root = tmp_path_factory.mktemp("log")
    values = {"ip": {0: np.ones((2, 3)), 1: np.zeros(2)}, "elsewhere": {0: np.zeros(1)}}
    snapshot.write_model(root / "start.h5", values)
    stream = io.StringIO()
    solver, _ = regression(root, EXTRA, net=TESTED.replace('top: "loss"', 'top: "loss" loss_weight: 2'))
    log = GlogWriter(stream)
    solver.observers = [log]
    solver.load_weights(root / "start.h5")
    solver.solve(batches)
    solver.emit("warning", text="careful")
    solver.restore(root / "s_iter_4.solverstate.h5")
    solver.stop_requested = True
    solver.param.max_iter = 5
    solver.solve(batches)
    return stream.getvalue().splitlines()


def messages(lines: list[str]) -> list[str]:
    return [PREFIX.fullmatch(line)[9] for line in lines]


def test_every_line_has_glogs_prefix(lines: list[str]) -> None:
    found = [PREFIX.fullmatch(line) for line in lines]
    assert all(found)
    assert [match[1] for match in found] == ["W" if "careful" in line else "I" for line in lines]
    assert {int(match[8]) for match in found} == {threading.get_native_id()}


def test_lines_in_order(lines: list[str]) -> None:
    output = rf"{NUMBER} \(\* 2 = {NUMBER} loss\)"
    test = [
        rf"Test loss: {NUMBER}",
        rf"    Test net output #0: test_loss = {NUMBER} \(\* 1 = {NUMBER} loss\)",
    ]
    expected = [
        r"Finetuning from .*start\.h5",
        r"Ignoring source layer elsewhere",
        r"Loaded layers: ip",
        r"Solving regression",
        r"Learning Rate Policy: multistep",
        r"Iteration 0, Testing net \(#0\)",
        *test,
        rf"Iteration 0 {PACE}, loss = {NUMBER}",
        rf"    Train net output #0: loss = {output}",
        r"Iteration 0, lr = 0\.1",
        r"Iteration 2, Testing net \(#0\)",
        *test,
        rf"Iteration 2 {PACE}, loss = {NUMBER}",
        rf"    Train net output #0: loss = {output}",
        r"MultiStep Status: Iteration 2, step = 1",
        r"Iteration 2, lr = 0\.05",
        r"Snapshotting to HDF5 file .*s_iter_4\.caffemodel\.h5",
        r"Snapshotting solver state to HDF5 file .*s_iter_4\.solverstate\.h5",
        rf"Iteration 4, loss = {NUMBER}",
        r"Iteration 4, Testing net \(#0\)",
        *test,
        r"Optimization Done\.",
        r"careful",
        r"Restoring previous solver status from .*s_iter_4\.solverstate\.h5",
        r"Solving regression",
        r"Learning Rate Policy: multistep",
        r"Iteration 4, Testing net \(#0\)",
        r"Optimization stopped early\.",
    ]
    found = messages(lines)
    assert len(found) == len(expected)
    for message, pattern in zip(found, expected, strict=True):
        assert re.fullmatch(pattern, message), (message, pattern)


def test_parse_log_reads_it(lines: list[str]) -> None:
    """parse_log.py ignores all before 'Solving', then takes the iteration from the newest line that names one."""
    start = next(i for i, line in enumerate(lines) if "Solving" in line)
    iteration, train, test, rates = -1, [], [], []
    for line in lines[start:]:
        if match := ITERATION.search(line):
            iteration = int(match[1])
        if match := TRAIN_OUTPUT.search(line):
            train.append((iteration, match[2], float(match[3])))
        if match := TEST_OUTPUT.search(line):
            test.append((iteration, match[2], float(match[3])))
        if match := RATE.search(line):
            rates.append((iteration, float(match[1])))
    assert [row[:2] for row in train] == [(0, "loss"), (2, "loss")]
    assert [row[:2] for row in test] == [(0, "test_loss"), (2, "test_loss"), (4, "test_loss")]
    assert rates == [(0, 0.1), (2, 0.05)]


def test_parse_log_sh_reads_it(lines: list[str]) -> None:
    """parse_log.sh takes awk's field 9 of rate lines and field 11 of test lines, after '] Solving '."""
    assert any("] Solving " in line for line in lines)
    rate = next(line for line in lines if ", lr = " in line)
    assert rate.split()[8] == "0.1"
    test = next(line for line in lines if "Test net output #0" in line)
    assert float(test.split()[10]) > 0


@pytest.mark.parametrize(
    ("output", "text"),
    [
        pytest.param(Output("accuracy", 0.9913), "accuracy = 0.9913", id="plain"),
        pytest.param(Output("loss", 0.03, 1.0), "loss = 0.03 (* 1 = 0.03 loss)", id="weighted"),
        pytest.param(Output("loss", 0.3, 0.5), "loss = 0.3 (* 0.5 = 0.15 loss)", id="half"),
        pytest.param(Output("x", 123456789.0), "x = 1.23457e+08", id="large"),
        pytest.param(Output("x", 1e-5), "x = 1e-05", id="small"),
        pytest.param(Output("x", 1 / 3), "x = 0.333333", id="six-digits"),
        pytest.param(Output("x", float("nan")), "x = nan", id="nan"),
    ],
)
def test_numbers_as_c_plus_plus_streams_print_them(output: Output, text: str) -> None:
    assert describe(output) == text


def test_progress_bar_gives_the_log_back(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    log = GlogWriter(stream)
    with ProgressBar(log) as bar:
        for iteration in range(1, 21):
            bar(Event("progress", {"iteration": iteration, "max_iter": 20}))
        bar(Event("train", {"loss": 0.25, "left": 61.0}))
        log.line("a line [with brackets] above the bar " + "x" * 200)
    assert "a line [with brackets] above the bar " + "x" * 200 in capsys.readouterr().err
    log.line("afterwards")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith("] afterwards")


@pytest.mark.parametrize(
    ("terminal", "kind", "shown"), [(True, "xterm", True), (True, "dumb", False), (False, "xterm", False)]
)
def test_bar_only_on_a_terminal(terminal: bool, kind: str, shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", type("Stream", (io.StringIO,), {"isatty": lambda self: terminal})())
    monkeypatch.setenv("TERM", kind)
    assert on_terminal() == shown


def test_stream_is_flushed_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w") as stream:
        GlogWriter(stream).line("seen at once")
        assert path.read_text().endswith("] seen at once\n")
