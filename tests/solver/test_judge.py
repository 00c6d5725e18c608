"""What tests decide, as rules."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forcereg.errors import ForceregError, UsageError
from forcereg.net.scoring import Output, Score
from forcereg.snapshot import read_state, state_of
from forcereg.solver.goal import SIGNS, Aims, Goal, Limit, Watched
from forcereg.solver.judge import ROUNDING, Best, Judge
from tests.solver.nets import TESTED, batches, regression

TESTS = "max_iter: 4 test_iter: 1 test_interval: 1"
VALUES = st.lists(st.floats(allow_nan=True, allow_infinity=False, width=32), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory):
    """Judge by the given keywords, of a net with the output test_loss."""
    root = tmp_path_factory.mktemp("judge")
    solver, _ = regression(root, TESTS, net=TESTED)

    def make(**keywords: object) -> Judge:
        judge = solver.judge_by(**keywords)
        assert judge is not None
        return judge

    return make


def score(value: float) -> list[Score]:
    return [Score(value, [Output("test_loss", value, 1.0)], 1)]


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("accuracy", Goal(Watched("accuracy"))),
        ("loss:min", Goal(Watched("loss"), "min")),
        ("top5#1:max", Goal(Watched("top5", 1), "max")),
        ("a#b:c", Goal(Watched("a#b:c"))),
        ("#1", Goal(Watched("#1"))),
    ],
)
def test_goals(text: str, goal: Goal) -> None:
    assert Goal.of(text) == goal


@given(st.sampled_from(sorted(SIGNS)), st.floats(-1e6, 1e6), st.sampled_from(["accuracy", "loss3/top-5", "a b"]))
def test_limits(sign: str, value: float, name: str) -> None:
    limit = Limit.of(f"{name} {sign}{value!r}")
    assert (limit.watched.output, limit.sign, limit.value) == (name, sign, value)
    assert limit.reached(value) == ("=" in sign) and not limit.reached(math.nan)


@pytest.mark.parametrize("text", ["", "accuracy", "accuracy==1", ">=1", "accuracy>=", "accuracy>=x", "accuracy>inf"])
def test_no_limits(text: str) -> None:
    with pytest.raises(UsageError, match="stop_when is"):
        Limit.of(text)


@given(VALUES, st.integers(1, 4), st.sampled_from(["min", "max"]))
def test_best_and_patience(judged, values: list[float], patience: int, way: str) -> None:
    """Against a plain count."""
    judge = judged(keep_best=f"test_loss:{way}", patience=patience)
    sign = 1 if way == "max" else -1
    best, since = -math.inf, 0
    for iteration, value in enumerate(values):
        better = sign * value > best and not math.isclose(sign * value, best, rel_tol=ROUNDING)
        best, since = (sign * value, 0) if better else (best, since + 1)
        # one that goes on from a state decides the same
        other = judged(keep_best=f"test_loss:{way}", patience=patience)
        other.load_state_dict(judge.state_dict())
        verdict = judge.take(iteration, score(value))
        assert other.take(iteration, score(value)) == verdict
        assert (verdict.best is not None) == better and (verdict.reason == "patience") == (since >= patience)
    if best > -math.inf:
        assert judge.best.value == sign * best and judge.best.since == since


def test_rounding_is_no_progress(judged) -> None:
    judge = judged(keep_best="test_loss:max")
    found = [judge.take(0, score(value)).best is not None for value in (0.9466667, 0.94666672, 0.9466667, 0.95)]
    assert found == [True, False, False, True]


def test_another_output_begins_anew(judged) -> None:
    judge = judged(keep_best="test_loss")
    judge.take(3, score(1.0))
    other = judged(keep_best="test_loss:max")
    other.load_state_dict(judge.state_dict())
    assert other.best == Best("test_loss#0:max") and judge.best == Best("test_loss#0:min", 1.0, 3)


def test_the_total_loss_stands_for_an_output_that_is_not_there(judged) -> None:
    judge = judged(keep_best="loss")
    verdict = judge.take(0, [Score(7.0, [Output("test_loss", 1.0, 7.0)], 1)])
    assert verdict.best is not None and (verdict.best["value"], verdict.best["way"]) == (7.0, "min")


def test_nothing_asked_nothing_judged(tmp_path: Path) -> None:
    solver, _ = regression(tmp_path, TESTS, net=TESTED)
    assert not Aims() and solver.judge_by() is None
    with pytest.raises(ForceregError, match="has no output 'accuracy'; outputs are test_loss; name one by keep_best"):
        solver.judge_by(patience=1)
    solver.param.test_iter[:] = [0]
    with pytest.raises(ForceregError, match="there are no tests to judge by; set test_interval and test_iter"):
        solver.judge_by(patience=1)


def test_tests_that_come_again_count_once(judged) -> None:
    """Behind going back to the state of iteration 5, from before its tests."""
    judge = judged(keep_best="test_loss", patience=9)
    judge.take(0, score(2.0))
    state = judge.state_dict()
    for better, since in (2.0, 1), (1.0, 0):
        judge.take(5, score(better))
        best = judge.best
        judge.load_state_dict(state)
        judge.keep(best)
        assert judge.best == Best(best.output, best.value, best.iteration)
        judge.take(5, score(better))
        assert judge.best == best and best.since == since
    judge.take(6, score(3.0))
    assert judge.best.since == 1


ACCURATE = """
layer { name: "label" type: "DummyData" top: "label" include { stage: "b" } dummy_data_param { shape { dim: 4 } } }
layer { name: "top1" type: "Accuracy" bottom: "ip" bottom: "label" top: "top1" include { stage: "b" } }
"""


def test_the_accuracy_of_a_later_test_net(tmp_path: Path) -> None:
    states = 'test_iter: 1 test_state { stage: "a" } test_state { stage: "b" }'
    solver, _ = regression(tmp_path, f"{TESTS} {states}", net=TESTED + ACCURATE)
    judge = solver.judge_by(patience=1)
    assert judge is not None and judge.best.output == "top1#1:max"


def test_a_program_s_own_test_leaves_later_snapshots_alone(tmp_path: Path) -> None:
    """What a test that ends the run leaves for the snapshot behind it isn't for one behind more iterations."""
    own = 'max_iter: 9 test_iter: 1 test_interval: 100 test_initialization: false snapshot_prefix: "s"'
    solver, _ = regression(tmp_path, own, net=TESTED)
    solver.judge_by(stop_when="test_loss<1e9")
    solver.step(2, batches)
    solver.test_all()
    assert solver.enough
    solver.step(1, batches)
    extra = read_state(state_of(solver.snapshot())).extra
    assert extra is not None and extra["loss_count"] == 3
