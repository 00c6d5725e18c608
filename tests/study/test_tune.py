"""`forcereg tune`: goals, what is searched, trials shared by processes, going on, and what they leave."""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import forcereg
from forcereg.errors import ForceregError, UsageError
from forcereg.study.opened import Opening
from forcereg.study.shared import PRUNED, RUNNING, Shared, Tried, heard
from forcereg.study.sweep_plan import Plan, Result
from forcereg.study.tune import _by
from forcereg.study.tune_goal import Goal, goal_of
from forcereg.study.tune_report import as_csv, best_of, picture, table
from forcereg.study.tune_space import Range, Space, space_of
from forcereg.system.events import Event, Tell
from tests.conftest import RunCli
from tests.nursery import Nursery
from tests.solver.nets import IMAGES, write_images, write_solver

optuna = pytest.importorskip("optuna")
pytest.importorskip("matplotlib")

SCHEDULE = "max_iter: 6 test_iter: 2 test_interval: 2 weight_decay: 0.001"
ASK = ("tune", "--solver", "solver.prototxt", "--goal", "macs<=0.9")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a solver of a net of 16 filters."""
    monkeypatch.chdir(write_images(tmp_path, IMAGES.replace("num_output: 4", "num_output: 16")))
    write_solver(tmp_path, SCHEDULE)
    return tmp_path


def rows_of(out: Path) -> list[dict[str, str]]:
    with open(out / "results.csv", newline="") as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


def tuned(trials: int = 2, **more: Any) -> forcereg.workflows.tune.Tuned:  # type: ignore[name-defined]
    return forcereg.tune(
        "solver.prototxt", **{"goal": "macs<=0.9", "trials": trials, "observer": lambda _: None, **more}
    )


# -- goals


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("macs<=0.5", forcereg.MaxMacs(0.5)),
        (" params <= 1e-1 ", forcereg.MaxParams(0.1)),
        ("drop<=0.01", forcereg.MaxAccuracyDrop(0.01)),
    ],
)
def test_goals(text: str, rule: Any) -> None:
    assert goal_of(text) == goal_of(rule) == Goal(rule)
    assert goal_of(goal_of(text).words) == Goal(rule)


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ("macs<0.5", r"--goal is 'macs<0.5'; expected macs<=F, params<=F or drop<=D, as in macs<=0.5"),
        ("macs<=half", "expected macs<=F"),
        ("flops<=0.5", "expected macs<=F"),
        ("", "expected macs<=F"),
        ("macs<=1.5", "the share of MACs to keep is 1.5; expected"),
        ("drop<=-1", "the accuracy to lose is -1; expected 0 to 1"),
        (forcereg.MaxError(0.1), "expected MaxMacs, MaxParams or MaxAccuracyDrop"),
        (forcereg.MaxAccuracyDrop(0.1, solver="s"), "on the test net of the solver that is tuned"),
    ],
)
def test_no_goals(goal: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        goal_of(goal)


def test_how_a_budget_is_spread() -> None:
    assert goal_of("macs<=0.5", "minmax") == Goal(forcereg.MaxMacs(0.5, choose="minmax"))
    assert goal_of("macs<=0.5", "minmax").words == "macs<=0.5 minmax"
    with pytest.raises(UsageError, match=r"unknown .* 'minmx'; did you mean"):
        goal_of("params<=0.5", "minmx")
    assert goal_of("drop<=0.5", "minmax") == Goal(forcereg.MaxAccuracyDrop(0.5, choose="minmax"))


@pytest.mark.parametrize(
    ("goal", "result", "value"),
    [
        ("macs<=0.5", {"accuracy_cut": 0.5}, 0.5),
        ("params<=0.5", {"accuracy_cut": 0.5, "accuracy_tuned": 0.75}, 0.75),
        ("drop<=0.5", {"accuracy_cut": 0.5, "macs": 1000, "macs_cut": 250}, 0.25),
    ],
)
def test_what_a_trial_is_worth(goal: str, result: dict[str, Any], value: float) -> None:
    assert goal_of(goal).value(Result({}, 1, **result)) == value


class Scored:
    """What an `Evaluator` is asked for by a cut: the accuracy of the whole net."""

    def __init__(self, accuracy: float) -> None:
        self.score = accuracy

    def accuracy(self, *_: Any) -> Callable[[Any], float]:
        return lambda choices: self.score


@pytest.mark.parametrize(("own", "allowed"), [(0.9, 0.05), (0.875, 0.025), (0.95, 0.1), (0.8, None)])
def test_a_drop_is_counted_from_the_net_without_force(
    own: float, allowed: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("forcereg.study.tune_goal.chosen", lambda rule, *_: asked.append(rule.drop) or {"conv": 1})
    trained: Any = type(
        "Trained", (), {"evaluator": Scored(own), "prepared": None, "model": type("M", (), {"layers": {}})}
    )
    cut = goal_of("drop<=0.05").cut(Opening(), lambda: Result({}, 1, accuracy=0.9))
    assert cut.choose(trained) == ({} if allowed is None else {"conv": 1})
    assert asked == ([] if allowed is None else [pytest.approx(allowed)])


# -- what is searched


def test_what_is_searched_unless_said() -> None:
    assert space_of([], 100).texts == ("force_decay=1e-5:1e-2", "force_type=Constant,Degradation")
    space = space_of(["force_iter=25%:100%", "force_type=Linear", "base_lr=0.5"], 1000)
    assert space.without_force == {"force_decay": "0", "base_lr": "0.5"}
    assert space.probes[0] == {
        "force_decay": "1e-05", "force_type": "Linear", "force_iter": "250", "base_lr": "0.5",
    }  # fmt: skip
    assert {one["force_iter"] for one in space.probes} == {"250", "1000"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("force_decay", "expected FIELD=LOW:HIGH or FIELD=VALUE,VALUE"),
        ("force_dcay=1:2", "'force_dcay' is no field of SolverParameter; did you mean \"force_decay\""),
        ("force_decay=2:1", "expected a lower and a higher number"),
        ("force_decay=a:b", "expected numbers"),
        ("force_decay=0:inf", "expected a lower and a higher number"),
        ("force_decay=1%:2%", "percentages are of max_iter"),
        ("force_iter=1.5:2", "expected whole numbers"),
        ("lr_policy=a:b", "lr_policy is no number; expected values with commas"),
        ("random_seed=1,2", "every trial has the same random_seed; use --seed N"),
        ("max_iter=1,2", "use --max-iter N"),
    ],
)
def test_what_cannot_be_searched(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        space_of([text], 100)
    with pytest.raises(UsageError, match="names a field twice"):
        space_of(["base_lr=1", "base_lr=2"], 100)


class Suggesting:
    """A trial that suggests what lies so far, 0 to 1, between the bounds."""

    def __init__(self, place: float) -> None:
        self.place = place

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return low * (high / low) ** self.place if log else low + self.place * (high - low)

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return round(self.suggest_float(name, low, high, log=log))

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        return choices[round(self.place * (len(choices) - 1))]


@given(st.floats(1e-9, 1e9), st.floats(1.1, 1e9), st.floats(0, 1))
def test_suggestions_lie_within_the_bounds_to_three_digits(low: float, factor: float, place: float) -> None:
    value = float(Range("force_decay", low, low * factor).suggest(Suggesting(place)))
    assert 0.994 * low <= value <= 1.006 * low * factor


@given(st.integers(0, 99), st.integers(1, 10_000), st.floats(0, 1))
def test_shares_of_the_iterations_are_iterations(percent: int, max_iter: int, place: float) -> None:
    space = space_of([f"force_iter={percent}%:100%"], max_iter)
    assert percent * max_iter / 100 - 1 <= int(space.suggest(Suggesting(place))["force_iter"]) <= max_iter


# -- trials that processes share


def shared(out: Path, where: str = "", asked: str = "a", **more: Any) -> Shared:
    space = space_of([], 100)
    return Shared(where or str(out / "journal"), out, {"goal": asked}, space, 1, more.get("falling", False), 10)


def come_to(
    value: float, reports: Sequence[tuple[int, float]] = (), study: Shared | None = None, most: int = 99
) -> Any:
    """Takes a trial, reports values at iterations, ends it with a value; the fields."""
    assert study is not None
    with study.take(most) as taken:
        assert taken is not None
        hopeless = [study.hopeless(taken, *one) for one in reports]
        study.finish(taken, Result(taken.fields, 1, ranks=["4"], macs=8, macs_cut=4, accuracy_cut=value), value)
    return hopeless


@pytest.mark.parametrize("falling", [False, True])
def test_the_median_prunes(falling: bool, tmp_path: Path) -> None:
    study = shared(tmp_path, falling=falling)
    for value in (0.1, 0.2, 0.3, 0.4, 0.5):
        assert come_to(value, [(5, value), (10, value)], study) == [False, False]
    worse, better = (0.35, 0.25) if falling else (0.25, 0.35)
    assert come_to(worse, [(5, worse), (10, worse)], study) == [False, True]  # not before iteration 10
    assert come_to(better, [(10, better)], study) == [False]


def test_trials_are_given_out_once_and_the_first_is_without_force(tmp_path: Path) -> None:
    first, second = shared(tmp_path), shared(tmp_path)
    with first.take(3) as one, second.take(3) as two, first.take(3) as three, second.take(3) as four:
        assert one and two and three and four is None
        assert [taken.number for taken in (one, two, three)] == [0, 1, 2] and one.plain and not two.plain
        assert one.fields == {"force_decay": "0"} != two.fields != three.fields
        assert [trial.state for trial in second.tried()] == ["running"] * 3
    alone = shared(tmp_path / "alone")
    for expected in (one, two, three):  # no matter who takes which
        with alone.take(3) as taken:
            assert taken is not None and taken.fields == expected.fields


def test_a_trial_whose_process_is_gone_comes_again(tmp_path: Path) -> None:
    study = shared(tmp_path)
    come_to(0.5, study=study)
    with pytest.raises(KeyboardInterrupt), study.take(3) as left:
        assert left is not None and len(list((tmp_path / RUNNING).iterdir())) == 2  # its file and the claim on it
        raise KeyboardInterrupt
    again = shared(tmp_path)
    assert [trial.state for trial in again.tried()] == ["complete"]
    with again.take(3) as taken, again.take(3) as other, again.take(3) as none:
        assert taken is not None and taken.fields == left.fields and other is not None and none is None


def test_what_runs_elsewhere_is_not_left_by_jobs(tmp_path: Path) -> None:
    """Two machines share a study: the first one to be done waits for nobody, and has left nothing."""
    journal = str(tmp_path / "journal")
    here, there = shared(tmp_path / "a", journal), shared(tmp_path / "b", journal)
    team = SimpleNamespace(busy=lambda: False, nobody_left=lambda left, most: ForceregError(f"{left} of {most}"))
    crew: Any = SimpleNamespace(at_work=lambda *_: contextlib.nullcontext(team))

    def by(trials: int) -> None:
        searched: Any = SimpleNamespace(trials=trials, seed=1)
        list(_by(crew, searched, tmp_path / "a", {}, here, Tell(), str))

    come_to(0.5, study=here)
    with there.take(9):
        by(2)
        with pytest.raises(ForceregError, match="1 of 3"):
            by(3)
    with here.take(9), pytest.raises(ForceregError, match="1 of 3"):  # as of jobs that were killed
        by(3)


def test_what_another_left_running_is_its_own(tmp_path: Path) -> None:
    """Of another folder: its process can't be seen from here. And what it says of itself is no path."""
    journal = str(tmp_path / "journal")
    (tmp_path / "precious").touch()
    for folder, mark in (("a", None), ("b", "../../precious")):
        with pytest.raises(KeyboardInterrupt), shared(tmp_path / folder, journal).take(9) as left:
            assert left is not None
            if mark is not None:
                left.trial.set_user_attr("mark", mark)
            raise KeyboardInterrupt
    here = shared(tmp_path / "c", journal)
    assert [one.state for one in here.tried()] == ["running", "running"] and (tmp_path / "precious").exists()


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), shared(tmp_path).take(1):
        raise KeyboardInterrupt
    study = shared(tmp_path, asked="b", falling=True)  # of the first nothing came, so that it may be another
    come_to(0.5, study=study)
    with pytest.raises(
        ForceregError, match=r"journal: holds a study with other goal \(b; now a\); give another --study"
    ):
        shared(tmp_path)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "other")))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.create_study(study_name="forcereg tune", storage=storage).enqueue_trial({"x": 1})
    with pytest.raises(ForceregError, match="holds a study that isn't forcereg's; give another"):
        shared(tmp_path, str(tmp_path / "other"))


@pytest.mark.parametrize(
    "text", ["{", "[]\n", "{}\n", '{"op_code":0,"worker_id":"a"}\n', "\0" * 100 + "\n", '{"op_code":99}\n']
)
def test_a_file_that_is_no_study_is_told_in_a_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "journal").write_text(text)
    with pytest.raises(ForceregError, match=r"journal: can't be used as a study .*; give another --study") as info:
        shared(tmp_path)
    assert "\n" not in str(info.value)


def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ForceregError, match=r"nosuch://me:\.\.\.@there/x: can't be used as a study") as info:
        shared(tmp_path, "nosuch://me:secret@there/x")
    assert "secret" not in str(info.value)


def test_what_optuna_warns_of_is_told() -> None:
    told: list[str] = []
    logger = logging.getLogger("optuna")
    before = logger.handlers, logger.level
    with heard(told.append):
        logger.getChild("storages").info("nothing")
        logger.getChild("storages").warning("slow %s", "disk")
    assert told == ["optuna: slow disk"] and (logger.handlers, logger.level) == before


# -- the command


def test_tuning_and_going_on(root: Path, run_cli: RunCli) -> None:
    (root / "work").mkdir()
    ask = (
        *ASK,
        "--finetune",
        "1",
        "--out",
        "work/out",
        "--search",
        "force_type=Constant",
        "--search",
        "base_lr=0.1,0.2",
    )
    done = run_cli(*ask, "--trials", "2", cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith("the best at macs<=0.9 first") and "optuna" not in done.stderr
    assert "trial 2 of at most 2: force_decay=" in done.stderr
    out = root / "work/out"
    rows = rows_of(out)
    assert [(row["trial"], row["state"], row["force_decay"] == "0") for row in rows] == [
        ("0", "complete", True), ("1", "complete", False),
    ]  # fmt: skip
    assert rows[0]["base_lr"] == rows[0]["force_type"] == "" and rows[1]["base_lr"] in ("0.1", "0.2")
    for row in rows:
        assert row["value"] == row["accuracy_tuned"] and int(row["macs_cut"]) <= 0.9 * int(row["macs"])
        assert row["accuracy_whole_tuned"] == ""
    assert (out / "tune.svg").read_text().count("force_decay") >= 1

    again = run_cli(*ask, "--trials", "3", cwd=root)
    assert again.returncode == 0 and "trial 1 of at most 1" in again.stderr, again.stderr
    assert rows_of(out)[:2] == rows and len(rows_of(out)) == 3
    refused = run_cli(*ask, "--trials", "3", "--goal", "macs<=0.8", cwd=root)
    message = "work/out/study.journal: holds a study with other goal (macs<=0.9; now macs<=0.8); give another"
    assert refused.returncode == 1 and refused.stderr.startswith(f"forcereg: {message}"), refused.stderr
    # as it is, from elsewhere
    trained = run_cli("train", "--solver", "out/best_solver.prototxt", cwd=root / "work")
    assert trained.returncode == 0 and (out / "best_iter_6.caffemodel.h5").is_file(), trained.stderr


def test_processes_share_the_work(root: Path, nursery: Nursery) -> None:
    call = ("-m", "forcereg", *ASK, "--trials", "4", "--max-iter", "2")
    logs = [root / "one.err", root / "two.err"]
    both = [nursery.start(*call, cwd=root, out=log.with_suffix(".out"), err=log) for log in logs]
    codes, said = [one.wait() for one in both], "".join(log.read_text() for log in logs)
    assert codes == [0, 0], said
    rows = rows_of(root / "tune")
    assert said.count("trying force_decay=") == 4
    assert len({row["force_decay"] for row in rows}) == len(rows) == 4
    assert all(row["state"] == "complete" for row in rows)  # who is through waits for the other


KILLER = """
import os, signal
from forcereg.solver.loop import Solver
write = Solver.snapshot
def killed(self):
    write(self)
    os.kill(os.getpid(), signal.SIGKILL)
Solver.snapshot = killed
"""


def test_a_killed_process_s_trial_goes_on_from_its_snapshot(root: Path, run_cli: RunCli) -> None:
    write_solver(root, f"{SCHEDULE} snapshot: 4")
    (root / "killer.py").write_text(KILLER)
    ask = (*ASK, "--trials", "1", "--study", "sqlite:///study.db")
    assert run_cli(*ask, "--import", "killer", cwd=root).returncode not in (0, 1, 2)
    assert len(list((root / "tune" / RUNNING).iterdir())) == 2
    done = run_cli(*ask, cwd=root)
    assert done.returncode == 0, done.stderr
    (row,) = rows_of(root / "tune")
    assert row["state"] == "complete" and not list((root / "tune" / RUNNING).iterdir())
    log = (root / "tune/force_decay=0,seed=1/train.log").read_text()
    assert log.count("] Restoring previous solver status") == 1
    # the same as without
    assert run_cli(*ASK, "--trials", "1", "--out", "straight", cwd=root).returncode == 0
    assert [{**one, "trial": ""} for one in rows_of(root / "straight")] == [{**row, "trial": ""}]


# -- the call


def test_a_trial_is_the_run_of_a_sweep(root: Path) -> None:
    """Judging nets at tests changes nothing in their training, dropout and crops included."""
    run = tuned().trials[1].result
    grid = {name: [value] for name, value in run.fields.items()}
    (swept,) = forcereg.sweep("solver.prototxt", set=grid, rule=forcereg.MaxMacs(0.9), observer=lambda _: None).results
    assert replace(run, seconds=0) == replace(swept, seconds=0)


def test_one_process_comes_to_the_same_trials_each_time(root: Path) -> None:
    def trials(out: str, observer: Callable[[Event], None]) -> list[Tried]:
        found = tuned(4, out=out, max_iter=2, observer=observer).trials
        return [replace(one, number=0, result=replace(one.result, seconds=0)) for one in found]

    told: list[str] = []

    def interrupted(event: Event) -> None:
        if event.kind == "note":
            told.append(event.text)
            if len(told) == 3:
                raise KeyboardInterrupt

    first = trials("first", lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        trials("second", interrupted)
    assert trials("second", lambda _: None) == first


def test_hopeless_trials_are_ended(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shared, "hopeless", lambda self, taken, iteration, value: iteration == 4)
    found = tuned(3)
    assert [one.state for one in found.trials] == ["complete", "pruned", "pruned"]
    assert found.trials[1].result.failed.startswith(f"{PRUNED} 4: cut it has ") and found.best is found.trials[0]
    assert "0 iter" not in (root / "tune").joinpath("results.csv").read_text()
    logs = {path.parent.name: path.read_text() for path in (root / "tune").rglob("train.log")}
    assert sum("Iteration 6, Testing" in log for log in logs.values()) == 1


def test_a_trial_that_diverges_ends_no_other(root: Path) -> None:
    found = tuned(3, search={"force_decay": "1e30:1e35", "force_type": ["Constant"]}, finetune=1)
    assert [one.state for one in found.trials] == ["complete", "failed", "failed"]
    assert all("not finite at iteration" in one.result.failed for one in found.trials[1:])
    assert "no force was better than any" in found.solver.read_text()


def test_settings_that_do_not_go_together_are_a_failed_trial(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suggest = {"force_decay": "0.1", "force_iter": "2", "force_release": "4"}
    monkeypatch.setattr(Space, "suggest", lambda self, trial: suggest)
    found = tuned(2, search={"force_iter": "50%:100%", "force_release": "0%:50%"})
    assert [one.state for one in found.trials] == ["complete", "failed"]
    assert "force_release 4 are more than force_iter 2" in found.trials[1].result.failed


def test_the_fewest_macs_within_a_drop(root: Path) -> None:
    found = tuned(2, goal=forcereg.MaxAccuracyDrop(1))
    for one in found.trials:
        assert one.result.macs and one.result.macs_cut and one.value == one.result.macs_cut / one.result.macs < 1
        assert one.result.ranks == ["1"]


def test_a_search_without_optuna(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ForceregError, match=r'tune needs optuna; install it with pip install "forcereg\[tune\]"'):
        tuned()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"search": ["force_type=Constant,Bogus"]}, "Bogus"),
        ({"goal": "macs<=0.001"}, "can't be reached"),
        ({"prune_after": 2}, "prune_after is 2; expected 0 to 1"),
        ({"layers": "conv7"}, "no Convolution or InnerProduct layer 'conv7'"),
        ({"layers": lambda layer: True}, "layers is a function"),
        ({"trials": 0}, "trials is 0; expected 1 or more"),
        ({"search": {"base_lr": 0.1}}, "search has 0.1 for base_lr"),
        ({"search": [0.1]}, "search has 0.1; expected"),
        ({"search": 3}, "search has 3; expected"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_trained(more: dict[str, Any], message: str, root: Path) -> None:
    with pytest.raises(ForceregError, match=message):
        tuned(**more)
    assert not list(root.rglob("*iter*"))


def test_a_net_without_accuracy(root: Path) -> None:
    (root / "net.prototxt").write_text((root / "net.prototxt").read_text().replace('"Accuracy"', '"SoftmaxWithLoss"'))
    with pytest.raises(ForceregError, match="has no Accuracy layer in its test phase, by which trials are judged"):
        tuned()


def test_going_on_as_something_else_is_refused(root: Path) -> None:
    tuned(1, max_iter=1)
    for more, message in (
        ({"finetune": 2}, r"study.journal: holds a study with other finetune \(0; now 2\)"),
        ({"method": "svd"}, r"other method \(pca; now svd\)"),
        ({"search": {"base_lr": "1e-3:1"}}, r"other search .*; now .*base_lr=1e-3:1"),
        ({"max_iter": 4}, r"holds a run with other solver \(max_iter: 1; now max_iter: 4\)"),
        ({"seed": 2}, "study.journal: holds a study with other solver; give another"),
    ):
        with pytest.raises(ForceregError, match=message):
            tuned(1, **{"max_iter": 1, **more})


# -- what is shown


def tried(number: int, value: float | None, decay: str = "0.1", macs_cut: int = 500, **more: Any) -> Tried:
    fields = {"force_decay": decay, **({} if decay == "0" else {"force_type": "Constant"})}
    if value is None:
        return Tried(number, "pruned", Result(fields, 1, failed="pruned at iteration 4: why"))
    done: dict[str, Any] = {"accuracy": 0.9, "accuracy_cut": value, "full_ranks": [8], "ranks_at_error": [3], **more}
    return Tried(number, "complete", Result(fields, 1, ranks=["3"], macs=1000, macs_cut=macs_cut, **done), value)


def test_report() -> None:
    goal, plan = goal_of("macs<=0.5"), Plan(None, (), 0.05, 0)  # type: ignore[arg-type]
    trials = [
        tried(0, 0.5, "0"),
        tried(1, None),
        tried(2, 0.75),
        tried(3, 0.75, macs_cut=400),
        tried(4, 0.75, macs_cut=400),
    ]
    best = best_of(trials, goal)
    assert best is trials[3] and best_of(trials[1:2], goal) is None
    assert best_of(trials, goal_of("drop<=0.1")) is trials[0]
    shown = {column.heading: [cell[0] for cell in column.cells] for column in table(trials, plan, goal).columns}
    assert shown["trial"] == ["3", "4", "2", "0", "1"] and shown["ended"] == ["", "", "", "", "pruned"]
    assert shown["MACs left"] == ["40.0%", "40.0%", "50.0%", "50.0%", "-"]
    assert "ended" not in [column.heading for column in table(trials[:1], plan, goal).columns]
    lines = as_csv(trials).splitlines()
    assert lines[0].startswith("trial,state,value,force_decay,force_type,seed,accuracy,loss,")
    assert lines[2] == "1,pruned,,0.1,Constant,1,,,,,,,,,,,,0,pruned at iteration 4: why"
    for some in (trials, trials[1:2], trials[:1], []):
        assert picture(some, plan, goal, "png").startswith(b"\x89PNG")
    svg = picture(trials, plan, goal_of("drop<=0.1"), "svg").decode()
    assert "drop&lt;=0.1" in svg and "without force" in svg and "Constant" in svg


def test_results_of_another_form_count_for_nothing(tmp_path: Path) -> None:
    for attrs in ({"result": {"accuracy": "x"}}, {"result": None}):
        study = shared(tmp_path)
        with study.take(9) as taken:
            assert taken is not None
            study.finish(taken, Result({}, 1), 0.5)
            path = tmp_path / "journal"
            lines = path.read_text().splitlines()
            at = next(place for place, line in reversed([*enumerate(lines)]) if '"result"' in line)
            lines[at] = json.dumps({**json.loads(lines[at]), "user_attr": attrs})
            path.write_text("\n".join(lines) + "\n")
    assert {(one.state, one.result.failed) for one in shared(tmp_path).tried()} == {
        ("failed", "its result can't be read")
    }
