"""The force beside the gradient: said at tests in one line, warned of at extremes, and nothing of the run changes."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

import pytest
import torch

from forcereg.report.curves import read_run
from forcereg.solver.diagnostics import force_norms, ratios_of
from forcereg.solver.log import GlogWriter
from forcereg.solver.loop import Solver
from forcereg.solver.pull import LEAST, MOST, SOON
from tests.conftest import RunCli
from tests.solver.graphs import on_device
from tests.solver.nets import IMAGES, TESTED, Recorder, batches, blobs_of, regression, write_images, write_solver
from tests.solver.tape import Tape

FORCED = "param { lr_mult: 1 force_mult: 1 }"
TESTS = "test_iter: 1 test_interval: 2 base_lr: 0.01 snapshot_after_train: false"


def told(recorder: Recorder) -> list[str]:
    return [text for text in recorder.texts() if "||force||" in text]


def measured(recorder: Recorder) -> list[tuple[int, float]]:
    return [(event.iteration, event.ratio) for event in recorder.of("force")]


@pytest.mark.parametrize("kind", ["SGD", "Adam", "Nesterov"])
@pytest.mark.parametrize("settings", ["force_decay: 0.01", 'force_decay: 0.01 force_decay_type: "adaptive"'])
def test_the_ratio_is_that_of_the_update(kind: str, settings: str, tmp_path: Path) -> None:
    """Of weight decay's gradient too, as the force is added to that."""
    extra = f'{TESTS} max_iter: 5 type: "{kind}" weight_decay: 0.1 {settings}'
    solver, recorder = regression(tmp_path, extra, FORCED, TESTED)
    solver.solve(batches)
    assert [at for at, _ in measured(recorder)] == [0, 2, 4]
    if "adaptive" in settings:
        assert [ratio for _, ratio in measured(recorder)] == pytest.approx([0.01] * 3, rel=1e-4)
    assert all(0 < ratio < 1 for _, ratio in measured(recorder)) and told(recorder) == []


def test_several_weights_make_one_ratio() -> None:
    before = [torch.tensor([3.0, 4.0]), torch.tensor([0.0]), torch.tensor([12.0])]
    after = [torch.tensor([3.0, 4.5]), torch.tensor([0.0]), torch.tensor([13.2])]
    rows, ratio = ratios_of(["a", "b", "c"], force_norms(before, after))
    assert [row["layer"] for row in rows] == ["a", "b", "c"]
    assert [row["ratio"] for row in rows] == pytest.approx([0.1, 0, 0.1])
    assert ratio == pytest.approx(1.3 / 13)


@pytest.mark.parametrize("tape", [False, True], ids=["host", "graphs"])
def test_a_run_is_the_same_whether_measured_or_not(tape: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path)
    extra = "max_iter: 12 momentum: 0.9 force_decay: 0.01 weight_decay: 0.1 test_iter: 2 test_interval: 3 display: 1"
    found = []
    for measures in (True, False):
        if not measures:
            monkeypatch.setattr("forcereg.solver.pull.Pull.due", lambda *_: None)
        recorder = Recorder()
        with on_device(Tape() if tape else None):
            solver = Solver(write_solver(tmp_path, f"{extra} snapshot_after_train: false"), observers=[recorder])
            solver.solve()
        losses = [event.loss for event in recorder.of("train")]
        found.append((blobs_of(solver), losses, torch.get_rng_state(), recorder))
    (blobs, losses, random, recorder), (others, other_losses, other_random, silent) = found
    assert all(torch.equal(blob, others[name]) for name, blob in blobs.items())
    assert losses == other_losses and torch.equal(random, other_random)
    assert [at for at, _ in measured(recorder)] == [0, 3, 6, 9] and measured(silent) == []


def test_a_force_that_swamps_is_warned_of_once(tmp_path: Path) -> None:
    extra = f"{TESTS.replace('0.01', '1e-9')} max_iter: 7 force_decay: 1000"
    solver, recorder = regression(tmp_path, extra, FORCED, TESTED)
    solver.solve(batches)
    (text,) = told(recorder)
    assert re.fullmatch(
        r"\|\|force\|\| / \|\|gradient\|\| = \S+ at iteration 0: the force swamps the gradient; "
        r"lower force_decay \(it is 1000\)",
        text,
    )
    assert len(measured(recorder)) == 4


def test_how_long_a_force_may_seem_idle() -> None:
    assert (SOON, LEAST, MOST) == (1000, 1e-4, 1)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 iterations for 1,000."""
    monkeypatch.setattr("forcereg.solver.pull.SOON", 20)


@pytest.mark.parametrize(
    ("decay", "start", "steps", "warned"),
    [
        (1e-9, 0, 20, []),  # iteration 20 is still to come
        (1e-9, 0, 21, [20]),
        (1e-9, 0, 60, [20]),
        (1e-9, 100, 22, [120]),
        (1e-2, 0, 22, []),
    ],
)
def test_a_force_that_does_nothing(
    decay: float, start: int, steps: int, warned: list[int], tmp_path: Path, soon: None
) -> None:
    extra = f"{TESTS.replace('interval: 2', 'interval: 5')} max_iter: 900 force_decay: {decay}"
    solver, recorder = regression(tmp_path, extra, FORCED, TESTED)
    solver.iter = start
    solver.step(steps, batches(0, 0))
    idle = r"at iteration (\d+): the force has done next to nothing"
    assert [int(re.findall(idle, text)[0]) for text in told(recorder)] == warned


@pytest.mark.parametrize(
    ("extra", "at"),
    [
        ("display: 6 max_iter: 40", [0, 24]),
        ("max_iter: 40", []),
        ("display: 6 max_iter: 20", [0]),
        ("display: 6 max_iter: 40 force_iter: 24", [0]),
    ],
)
def test_without_tests_displays_tell(extra: str, at: list[int], tmp_path: Path, soon: None) -> None:
    settings = f"force_decay: 1e-9 base_lr: 1e-4 snapshot_after_train: false {extra}"
    solver, recorder = regression(tmp_path, settings, FORCED)
    solver.step(solver.param.max_iter, batches(0, 0))
    assert [iteration for iteration, _ in measured(recorder)] == at
    assert len(told(recorder)) == (at == [0, 24])


@pytest.mark.parametrize("extra", ["", "force_decay: 0", "force_decay: 0.1 force_iter: 0"])
def test_nothing_is_measured_where_no_force_is(extra: str, tmp_path: Path) -> None:
    solver, recorder = regression(tmp_path, f"{TESTS} max_iter: 3 {extra}", FORCED, TESTED)
    solver.solve(batches)
    assert measured(recorder) == []


def test_a_loss_that_is_not_finite_is_no_ratio(tmp_path: Path) -> None:
    solver, recorder = regression(tmp_path, f"{TESTS} max_iter: 3 force_decay: 0.1", FORCED, TESTED)
    solver.updater.on_host = False  # as on a device, where nobody has looked at the loss yet
    data = {name: blob * math.nan for name, blob in batches(0, 0).items()}
    solver.step(1, data)
    assert [math.isnan(ratio) for _, ratio in measured(recorder)] == [True] and told(recorder) == []


TWO = IMAGES.replace(
    'name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"',
    'name: "ip" type: "InnerProduct" bottom: "conv" top: "ip" param { force_mult: 1 }',
)


def test_one_line_that_no_script_for_logs_takes_for_another(tmp_path: Path) -> None:
    write_images(tmp_path, TWO)
    extra = "max_iter: 4 force_decay: 0.001 test_iter: 2 test_interval: 2 display: 1 snapshot_after_train: false"
    logs = []
    for measures in (True, False):
        stream = io.StringIO()
        solver = Solver(write_solver(tmp_path, extra), observers=[GlogWriter(stream)])
        if not measures:
            solver.pull.due = lambda *_: None  # type: ignore[method-assign]
        solver.solve()
        (tmp_path / f"{measures}.log").write_text(stream.getvalue())
        logs.append([line.partition("] ")[2] for line in stream.getvalue().splitlines()])
    lines = [line for line in logs[0] if "force" in line]
    number = r"\d\S*"
    form = rf"    \|\|force\|\| / \|\|gradient\|\| = {number} \(from {number} of (conv|ip) to {number} of (conv|ip)\)"
    assert len(lines) == 2 and all(re.fullmatch(form, line) for line in lines)
    # what Caffe's scripts look for, parse_log.py's expressions and the words of parse_log.sh and extract_seconds.py
    for line in lines:
        assert not re.search(r"Iteration |Train net output|Test net output|lr = |loss|Testing|Solving", line)
    timing = re.compile(r" \(.*?iters\)")
    rest = [timing.sub("", line) for line in logs[0] if line not in lines]
    assert rest == [timing.sub("", line) for line in logs[1]]
    assert read_run(tmp_path / "True.log").curves == read_run(tmp_path / "False.log").curves


def test_several_ranks_say_it_once(tmp_path: Path, run_cli: RunCli) -> None:
    write_images(tmp_path)
    extra = "max_iter: 3 force_decay: 0.001 test_iter: 2 test_interval: 2 snapshot_after_train: false"
    write_solver(tmp_path, extra)
    done = run_cli("train", "--solver", "solver.prototxt", "--nproc", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"\|\|gradient\|\| = ", done.stderr)) == 2  # of iterations 0 and 2
