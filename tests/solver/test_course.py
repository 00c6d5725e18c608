"""How strong a force is over a training: as numbers, in updates, in graphs, let go by ranks, and across a resume."""

from __future__ import annotations

import itertools
from math import inf
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from forcereg.net.load import load_net
from forcereg.schema.text import parse_solver
from forcereg.solver.course import Course, course_of, described
from forcereg.solver.force import force_gradient
from forcereg.solver.loop import Solver
from forcereg.solver.regularizers.force import FORCE
from forcereg.solver.updater import Updater
from tests.conftest import RunCli
from tests.small_nets import inputs, ip
from tests.solver.graphs import TWO_LAYERS, both
from tests.solver.nets import REGRESSION, Recorder, batches, blobs_of, regression, write_images, write_solver
from tests.solver.test_resume import assert_same

FORCED = "param { lr_mult: 1 force_mult: 1 }"
counts = st.integers(0, 50)


@given(counts, counts, counts)
def test_it_rises_holds_and_falls(ramp: int, hold: int, release: int) -> None:
    course = Course(ramp, ramp + hold + release, release)
    levels = [course.level(i) for i in range(ramp + hold + release + 2)]
    assert levels[:ramp] == [i / ramp for i in range(ramp)]
    assert levels[ramp : ramp + hold] == [1.0] * hold
    assert levels[ramp + hold :] == [(release - i) / release for i in range(release)] + [0.0, 0.0]


@given(counts, st.none() | counts, counts, st.integers(0, 120))
def test_it_may_be_let_go_at_any_iteration(ramp: int, hold: int | None, release: int, at: int) -> None:
    planned = Course(ramp, inf if hold is None else ramp + hold + release, release)
    course = planned.let_go(at)
    assert all(course.level(i) == planned.level(i) for i in range(min(at, 200)))
    assert all(course.level(i) <= planned.level(i) for i in range(at, at + release))
    assert course.level(at + release) == 0
    levels = [course.level(i) for i in range(at, at + release + 1)]
    assert all(0 <= after <= before for before, after in itertools.pairwise(levels))


def test_a_whole_force_says_nothing_of_its_course() -> None:
    p = parse_solver("force_decay: 1").message
    assert described(p) == "" and not course_of(p).varies and course_of(p).level(10**9) == 1


SCHEDULE = "force_decay: 0.5 force_ramp: 4 force_iter: 12 force_release: 5"


@pytest.mark.parametrize("extra", ["", "momentum: 0.9", 'force_direction: "same"', 'force_decay_type: "adaptive"'])
@pytest.mark.parametrize("on_host", [True, False])
def test_updates_hold_its_share(extra: str, on_host: bool) -> None:
    """Each with the same weights, gradients and no history: only the force differs."""
    moved: dict[int, Tensor] = {}
    for iteration in range(14):
        net = load_net(REGRESSION.replace("PARAMS", FORCED), phase="TRAIN", seed=3)
        updater = Updater(net, parse_solver(f"{SCHEDULE} {extra}").message, torch.device("cpu"), "s")
        updater.on_host = on_host
        before = updater.weights[0].detach().clone()
        updater.prepare(iteration)
        updater.begin(iteration)
        net(**batches(0, 0))["loss"].backward()
        updater.apply(iteration, 0.1, torch.tensor(1.0))
        moved[iteration] = before - updater.weights[0].detach()
    none, whole = moved[12], moved[5]
    for iteration, found in moved.items():
        share = min(1, iteration / 4, max(0, 12 - iteration) / 5)
        torch.testing.assert_close(found - none, share * (whole - none), rtol=1e-4, atol=1e-7)
    if not extra or "momentum" in extra:
        torch.testing.assert_close(whole - none, 0.05 * force_gradient(before))
    assert (whole - none).norm() > 0.01 * none.norm()


SETTINGS = "momentum: 0.9 force_decay: 0.05 max_iter: 14 test_iter: 1 test_interval: 2 snapshot_after_train: false"


@pytest.mark.parametrize(
    "extra", ["", 'force_decay_type: "adaptive"', 'force_type: "Constant" force_direction: "same"']
)
@pytest.mark.parametrize("course", ["force_ramp: 5 force_iter: 12 force_release: 4", "force_until: 1 force_release: 6"])
def test_graphs_follow_it(course: str, extra: str, tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(TWO_LAYERS)
    plain, graphs = both(tmp_path, f"{SETTINGS} {course} {extra}")
    graphs.assert_equals(plain)
    # one with the force and one without, each measured or not, and the test's: not one for each iteration
    assert graphs.tape is not None and 0 < graphs.tape.recorded <= 5


def notes(recorder: Recorder) -> list[str]:
    return [event.text for event in recorder.of("note")]


def test_it_is_said_when_it_goes(tmp_path: Path) -> None:
    solver, recorder = regression(tmp_path, "force_decay: 0.1 force_iter: 6 force_release: 2", FORCED)
    solver.step(4, batches)
    assert notes(recorder) == []
    solver.step(3, batches)
    assert notes(recorder) == ["The force is let go: it falls to 0 until iteration 6", "The force has ended"]


GENTLE = "force_decay: 0.01 test_iter: 1 test_interval: 2"
UNTIL = 'force_decay: 3 force_type: "Constant" test_iter: 1 test_interval: 2'
ONE_FORCED = TWO_LAYERS.replace("force_mult: 2", "force_mult: 0")


def test_it_is_let_go_once_ranks_are_low(tmp_path: Path) -> None:
    """Ranks of all views that draw: in BOTH of the filters and of the channels."""
    (tmp_path / "net.prototxt").write_text(ONE_FORCED.replace("force_mult: 1", "force_mult: 1 force_view: BOTH"))
    recorder = Recorder()
    text = f"{UNTIL} force_until: 0.5 force_release: 3 base_lr: 0.01 max_iter: 60 snapshot_after_train: false"
    solver = Solver(write_solver(tmp_path, text), observers=[recorder])
    solver.solve(batches)
    (let_go, ended) = notes(recorder)
    assert let_go.startswith("All ranks at 5 % error are at most 0.5 of full ones. The force is let go: it falls to 0")
    assert ended == "The force has ended" and FORCE not in solver.updater.feeling(59)
    reached = int(let_go.rpartition(" ")[2]) - 3
    assert reached > 0 and reached % 2 == 0
    assert FORCE in solver.updater.feeling(reached + 2) and FORCE not in solver.updater.feeling(reached + 3)


def test_all_processes_do_what_the_first_one_finds() -> None:
    net = load_net(REGRESSION.replace("PARAMS", FORCED), phase="TRAIN", seed=3)
    updater = Updater(net, parse_solver("force_decay: 1 force_until: 1").message, torch.device("cpu"), "s")
    updater.look(4, lambda work: False)
    assert updater.feeling(4) == (FORCE,)
    updater.look(6, lambda work: True)
    assert updater.feeling(5) == (FORCE,) and updater.feeling(6) == ()


@pytest.mark.parametrize(("until", "goes"), [("0.7", True), ("0.69", False)])
def test_a_share_is_meant_as_it_is_written(until: str, goes: bool) -> None:
    """float32's 0.7 is less than 7 of 10."""
    net = load_net(inputs(x=(4, 10)) + ip("ip", "x", "y", 10, FORCED), phase="TRAIN", seed=3)
    updater = Updater(net, parse_solver(f"force_decay: 1 force_until: {until}").message, torch.device("cpu"), "s")
    updater.weights[0].data.copy_(torch.diag(torch.tensor([1.0] * 7 + [0.0] * 3)))
    updater.look(4, lambda work: work())
    assert (updater.feeling(4) == ()) == goes


def test_rank_clipping_leaves_it_where_it_is() -> None:
    """It makes all regularizers anew."""
    net = load_net(REGRESSION.replace("PARAMS", FORCED), phase="TRAIN", seed=3)
    settings = parse_solver("force_decay: 1 force_until: 1 force_release: 4").message
    updater = Updater(net, settings, torch.device("cpu"), "s")
    updater.look(6, lambda work: True)
    updater.renew()
    assert updater.feeling(9) == (FORCE,) and updater.feeling(10) == ()


def test_a_weight_that_is_not_finite_lets_nothing_go() -> None:
    net = load_net(REGRESSION.replace("PARAMS", FORCED), phase="TRAIN", seed=3)
    updater = Updater(net, parse_solver("force_decay: 1 force_until: 1").message, torch.device("cpu"), "s")
    updater.weights[0].data[0, 0] = torch.nan
    updater.look(4, lambda work: work())
    assert updater.feeling(4) == (FORCE,)
    updater.weights[0].data.fill_(1)
    updater.look(6, lambda work: work())
    assert updater.feeling(6) == ()


@pytest.mark.parametrize("stop", [3, 4, 6, 9])
def test_resuming_goes_on_with_it(stop: int, tmp_path: Path) -> None:
    """Before, at and behind the test that lets it go."""
    write_images(tmp_path)
    text = (
        f"{GENTLE} force_ramp: 2 force_until: 1 force_release: 6 momentum: 0.9 base_lr: 0.01 "
        'test_initialization: false max_iter: 14 snapshot_prefix: "{}" snapshot: {}'
    )
    Solver(write_solver(tmp_path, text.format("whole", 14))).solve()
    first = Solver(write_solver(tmp_path, text.format("parts", 0).replace("max_iter: 14", f"max_iter: {stop}")))
    first.solve()
    second = Solver(write_solver(tmp_path, text.format("parts", 14)))
    second.restore(tmp_path / f"parts_iter_{stop}.solverstate.h5")
    assert second.updater.feeling(stop) == (FORCE,) or stop > 8
    second.solve()
    assert second.updater.feeling(7) == (FORCE,) and second.updater.feeling(8) == ()  # let go at iteration 2
    for kind in ("caffemodel", "solverstate"):
        assert_same(tmp_path / f"whole_iter_14.{kind}.h5", tmp_path / f"parts_iter_14.{kind}.h5")


def test_a_state_without_it_begins_anew(tmp_path: Path) -> None:
    write_images(tmp_path)
    base = f'{GENTLE} base_lr: 0.01 max_iter: 4 snapshot_prefix: "s"'
    Solver(write_solver(tmp_path, base)).solve()
    solver = Solver(write_solver(tmp_path, f"{base} force_until: 1"))
    solver.restore(tmp_path / "s_iter_4.solverstate.h5")
    assert solver.updater.feeling(4) == (FORCE,) and blobs_of(solver)


def test_check_tells_of_it(tmp_path: Path, run_cli: RunCli) -> None:
    write_images(tmp_path)
    net = (tmp_path / "net.prototxt").read_text()
    (tmp_path / "net.prototxt").write_text(net.replace("force_mult: 1", "force_mult: 1 force_view: VERTICAL"))
    course = "force_ramp: 500 force_iter: 5000 force_release: 1000 force_until: 0.3"
    write_solver(tmp_path, f'force_decay: 0.01 {course} test_iter: 2 test_interval: 5 max_iter: 9 snapshot_prefix: "s"')
    done = run_cli("check", "solver.prototxt", cwd=tmp_path)
    assert done.returncode == 0
    (line,) = (line for line in done.stdout.splitlines() if "Degradation" in line)
    assert line.endswith(
        "Degradation 0.01 on conv (VERTICAL); rises over 500 iterations, let go once all ranks at 5 % error are at "
        "most 0.3 of full, at the latest ends at iteration 5,000, falls over its last 1,000"
    )


@pytest.mark.parametrize(
    ("course", "whole"),
    [
        ("", range(14)),
        ("force_ramp: 4", range(4, 14)),
        ("force_iter: 12 force_release: 5", range(8)),
        ("force_iter: 12", range(12)),
        ("force_until: 1 force_release: 4", range(7)),
    ],
)
def test_a_force_is_whole_between_its_rise_and_its_fall(course: str, whole: range) -> None:
    net = load_net(REGRESSION.replace("PARAMS", FORCED), phase="TRAIN", seed=3)
    updater = Updater(net, parse_solver(f"force_decay: 1 {course}").message, torch.device("cpu"), "s")
    updater.look(6, lambda work: True)
    assert [i for i in range(14) if updater.whole(FORCE, i)] == list(whole)
    assert not updater.whole("nothing", 0)
