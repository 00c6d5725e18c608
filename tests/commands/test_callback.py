"""Solver.on and --callback: functions of the user's that are told what happens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forcereg.errors import UsageError
from forcereg.solver.hooks import functions
from forcereg.system.events import ALIASES, KINDS, Event
from tests.commands.conftest import said
from tests.commands.run_control import Runs
from tests.solver.nets import batches, regression

HOOKS = """
import json
from pathlib import Path

def keep(event, solver):
    with open("told", "a") as file:
        file.write(json.dumps([event.kind, event.fields.get("iteration"), sorted(event.fields)]) + "\\n")
    if event.kind == "test" and event.outputs[0].value > 0.4:
        solver.stop_requested = True

def broken(event, solver):
    if event.kind == "saved":
        raise ValueError("no room\\nin the cloud")

def deaf(event, solver):
    raise KeyError(event.kind)

class Nested:
    @staticmethod
    def told(event, solver):
        pass

number = 3
"""


def test_hooks_by_kind(tmp_path: Path) -> None:
    """Each gets its own, in order, until it is taken off; a decorator's and a lambda's alike."""
    solver, recorder = regression(tmp_path, 'max_iter: 4 display: 2 snapshot: 2 snapshot_prefix: "s"')
    seen: dict[str, list[int]] = {name: [] for name in ("iteration", "display", "snapshot", "saved", "*")}
    for name, found in seen.items():
        solver.on(name, lambda event, found=found: found.append(event.fields.get("iteration")))

    def once(event: Event) -> None:
        assert solver.loss == event.loss
        solver.off(once)
        seen.setdefault("once", []).append(event.iteration)

    assert solver.on("display", once) is once
    exists = []
    solver.on("saved", lambda event: exists.append(Path(event.model).is_file() and Path(event.state).is_file()))
    solver.solve(batches)
    assert (seen["iteration"], seen["display"], seen["once"]) == ([1, 2, 3, 4], [0, 2], [0])
    assert seen["snapshot"] == seen["saved"] == [2, 4] and exists == [True, True]
    assert len(seen["*"]) == len(recorder.events) + 4 + 2


def test_a_hook_may_stop_the_run(tmp_path: Path) -> None:
    solver, _ = regression(tmp_path, 'max_iter: 9 snapshot_prefix: "s"')

    def stop(event: Event) -> None:
        solver.stop_requested = event.iteration == 3

    solver.on("iteration", stop)
    solver.solve(batches)
    assert solver.iter == 3 and (tmp_path / "s_iter_3.caffemodel.h5").is_file()


@pytest.mark.parametrize("kind", sorted({*KINDS, *ALIASES, "*"}))
def test_all_kinds(kind: str, tmp_path: Path) -> None:
    solver, _ = regression(tmp_path)
    solver.on(kind, print)


def test_no_such_kind(tmp_path: Path) -> None:
    solver, _ = regression(tmp_path)
    with pytest.raises(UsageError, match="there is no event 'snapshots'; did you mean"):
        solver.on("snapshots", print)
    with pytest.raises(UsageError, match="3 can't be called"):
        solver.on("test", 3)  # type: ignore[arg-type]


def test_the_command_line(tiny: Runs) -> None:
    """All events of the log come, with the same fields."""
    (tiny.root / "hooks.py").write_text(HOOKS)
    told = tiny.train("--callback", "hooks:keep", "-callback=hooks:Nested.told")
    assert "Optimization stopped early." in told
    found = [json.loads(line) for line in (tiny.root / "told").read_text().splitlines()]
    log = [json.loads(line) for line in (tiny.root / "log").read_text().splitlines()]
    assert [one[0] for one in found if one[0] != "progress"] == [event["event"] for event in log]
    for (_, iteration, fields), event in zip((one for one in found if one[0] != "progress"), log, strict=True):
        assert event.get("iteration") == iteration and fields == sorted(event.keys() - {"event", "time"})


@pytest.mark.parametrize(
    ("callback", "code", "says"),
    [
        pytest.param(
            "hooks:broken",
            1,
            "callback 'hooks:broken' at event 'saved': ValueError: no room in the cloud (hooks.py:",
            id="fails",
        ),
        # not the error that it has when it is told of that
        pytest.param("hooks:deaf", 1, "callback 'hooks:deaf' at event 'start': KeyError: 'start' (hooks.py:", id="all"),
        pytest.param("hooks:kep", 1, "has no 'kep'; did you mean \"keep\"?", id="name"),
        pytest.param("hooks:number", 1, "callback 'hooks:number' is a int; expected a function", id="no-function"),
        pytest.param("hooks", 2, "callback is 'hooks'; expected module:function, as in hooks:on_event", id="form"),
        pytest.param("hoks:keep", 1, "there is no Python module 'hoks'", id="module"),
    ],
)
def test_slips(callback: str, code: int, says: str, tiny: Runs) -> None:
    (tiny.root / "hooks.py").write_text(HOOKS)
    assert says in said(tiny.train("--callback", callback, code=code))


def test_python_s_keyword() -> None:
    assert functions(print) == functions([print]) == [print] and functions("a:b") == ["a:b"] and functions(()) == []
    with pytest.raises(UsageError, match="callback is 3; expected"):
        functions(3)  # type: ignore[arg-type]


def test_tracked_by_the_command_line(tiny: Runs) -> None:
    """Two at once; a slip is told before anything is opened."""
    pytest.importorskip("tensorboard", reason="needs the tensorboard extra")
    told = tiny.train("--tracker", "tensorboard:one", "-tracker=tensorboard:two", "--set", "max_iter=5")
    assert "Optimization Done." in told
    assert all(list((tiny.root / name).glob("events.*")) for name in ("one", "two"))
    assert "unknown tracker 'tensorbord'; did you mean" in said(tiny.train("--tracker", "tensorbord:x", code=2))
