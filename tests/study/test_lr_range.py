"""forcereg lr-find: the curve and what is read from it, the iterations that make it, and that nothing else is left."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import forcereg
from forcereg.commands.lr_find import command
from forcereg.errors import UsageError
from forcereg.solver.loop import Solver
from forcereg.study.lr_range import FLEES, LrCurve, smoothed, steepest
from forcereg.system.events import Event
from tests.commands.conftest import said
from tests.conftest import RunCli
from tests.solver.nets import write_images, write_solver

RATES = tuple(np.geomspace(1e-6, 10, 141))


def curve_of(falls_at: float, flees_at: float = 1.0) -> LrCurve:
    """A loss that falls from 2 by a logistic step of the rate's logarithm, and grows again behind `flees_at`."""
    x, low, high = (np.log(np.array(one)) for one in (RATES, falls_at, flees_at))
    losses = 0.5 + 1.5 / (1 + np.exp(2 * (x - low))) + np.maximum(0, x - high) ** 2
    return LrCurve(RATES, tuple(losses.tolist()))


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40))
def test_smoothing_is_a_mean_of_what_came(losses: list[float]) -> None:
    found = smoothed(losses)
    weights = [0.9 ** (len(losses) - 1 - at) for at in range(len(losses))]
    assert found[-1] == pytest.approx(np.average(losses, weights=weights), abs=1e-6)
    assert all(min(losses) - 1e-6 <= one <= max(losses) + 1e-6 for one in found)


@pytest.mark.parametrize("rate", [1e-4, 1e-3, 1e-2])
def test_the_steepest_place_is_where_the_loss_falls_fastest(rate: float) -> None:
    found = curve_of(rate)
    assert RATES[steepest(found.rates, found.losses)] == pytest.approx(rate, rel=0.2)
    # smoothed it lags, by some iterations
    assert found.steepest is not None and rate <= found.steepest < 5 * rate
    assert found.tenth is not None and 0.05 < found.tenth < 0.5
    assert found.suggestion == min(found.steepest, found.tenth)


@pytest.mark.parametrize("losses", [(2.0,) * 20, (0.0,) * 20, tuple(2.0 + 0.1 * at for at in range(20)), (math.inf,)])
def test_a_loss_that_never_falls_suggests_nothing(losses: tuple[float, ...]) -> None:
    found = LrCurve(RATES[: len(losses)], losses)
    assert found.suggestion is found.steepest is found.tenth is None
    assert found.lines()[-1].startswith("the loss never falls: give other rates")
    json.dumps(found.report, allow_nan=False)


SETTINGS = """
momentum: 0.9 max_iter: 4 display: 1 snapshot: 1 snapshot_prefix: "s" test_iter: 2 test_interval: 1 average_loss: 3
force_decay: 0.001 force_until: 0.5 force_ramp: 9 warmup_iter: 3 lr_policy: "cosine"
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The images net and a solver that tests, shows, saves and lets its force go."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path)
    write_solver(tmp_path, SETTINGS)
    return tmp_path


def test_each_iteration_is_the_solver_s_at_a_rate_of_its_own(root: Path) -> None:
    before = {path.name for path in root.iterdir()}
    seen: list[Event] = []
    found = forcereg.lr_find("solver.prototxt", min_lr=1e-3, max_lr=1e-1, iterations=12, observer=seen.append)
    assert found.rates == pytest.approx(np.geomspace(1e-3, 1e-1, 12), rel=1e-5) and found.ended == ""
    one = 'lr_policy: "fixed" force_decay: 0.001 momentum: 0.9 max_iter: 1 base_lr: 0.001'
    solver = Solver(write_solver(root, one, "one.prototxt"))
    # the second has the first one's update in it
    assert found.losses[:2] == pytest.approx([float(solver.step(1)), float(solver.step(1))], rel=1e-4)
    assert {path.name for path in root.iterdir()} == before | {"one.prototxt"}
    assert [event.done for event in seen if event.kind == "progress"] == list(range(13))


def test_it_ends_where_the_loss_flees(root: Path) -> None:
    found = forcereg.lr_find("solver.prototxt", min_lr=1e-3, max_lr=1e6, iterations=30, seed=1)
    curve = found.smoothed
    assert 1 < len(found.rates) == len(curve) < 30
    assert curve[-1] > FLEES * min(curve) and all(
        curve[at] <= FLEES * min(curve[: at + 1]) for at in range(len(curve) - 1)
    )
    assert found.ended.startswith(f"the loss diverges at rate {found.rates[-1]:.3g}, iteration {len(curve)} of 30")


def test_it_starts_from_weights_and_prints_the_curve(root: Path) -> None:
    plain = {"snapshot": 0, "warmup_iter": 0, "lr_policy": "fixed", "test_interval": 60, "display": 0}
    forcereg.train("solver.prototxt", max_iter=60, set=plain)
    call = ("--solver", "solver.prototxt", "--weights", "s_iter_60.caffemodel.h5", "--iterations", "10", "--json")
    done = CliRunner().invoke(command, [*call, "--seed", "1"])
    report = json.loads(done.stdout)
    first = forcereg.lr_find("solver.prototxt", iterations=10, seed=1).losses[0]
    assert report["losses"][0] < first - 0.2 and len(report["rates"]) == len(report["smoothed"]) == 10


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"min_lr": 1, "max_lr": 0.1}, "min_lr is 1 and max_lr 0.1; expected two rates above 0, the lower one first"),
        ({"max_lr": math.inf}, "min_lr is 1e-06 and max_lr inf; expected two rates above 0, the lower one first"),
        ({"iterations": 5}, "iterations is 5; a range test needs 10 or more, better 100"),
        ({"min_lr": "low"}, "min_lr is 'low'; expected a number"),
    ],
)
def test_what_makes_no_range_is_refused(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        forcereg.lr_find("nothing.prototxt", **asked)
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--weights", "no.caffemodel"), 1, "cannot read no.caffemodel: no such file"),
        (("-o", "lr.txt"), 2, "--out is 'lr.txt'; expected a name that ends in .png, .svg, .pdf"),
    ],
)
def test_a_slip_is_one_line(args: tuple[str, ...], code: int, says: str, root: Path, run_cli: RunCli) -> None:
    done = run_cli("lr-find", "--solver", "solver.prototxt", *args, cwd=root)
    assert done.returncode == code and said(done.stderr).startswith(says)
