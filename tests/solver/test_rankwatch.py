"""Warnings of a force that moves no rank, and of one that leaves a layer a single direction; each once a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forcereg.solver.loop import Solver
from forcereg.solver.rankwatch import LONG, LOOKS, RankWatch
from forcereg.solver.run import Teller
from tests.conftest import RunCli
from tests.solver.nets import IMAGES, Recorder, write_images, write_solver

STILL = re.compile(r"no rank has moved in (\S+) iterations: force_decay \(it is \S+\) is too small for this learning")
DOWN = re.compile(r"(.*) collapsed to rank 1 at 5 % error by iteration (\d+): lower force_decay \(it is \S+\), or let")


def warned(every: int, looks: list[list[int]], decay: float = 1e-5, again: int | None = None) -> list[tuple[int, str]]:
    """(iteration, 'still' or names) of each warning of looks at the ranks of layers a, b, ..., one `every` iterations.

    `again`: the look in front of which the run is resumed.
    """
    found, recorder = [], Recorder()
    watch = RankWatch(Teller([recorder]), decay, True)
    for number, ranks in enumerate(looks):
        if number == again:
            state, watch = watch.state_dict(), RankWatch(Teller([recorder]), decay, True)
            watch.load_state_dict(state)
        watch.take(number * every, {"abc"[place]: (rank, 20) for place, rank in enumerate(ranks)})
        for text in recorder.texts():
            down = DOWN.match(text)
            found.append((number * every, down[1] if down else "still" if STILL.match(text) else text))
        recorder.events.clear()
    return found


CASES: dict[str, tuple[int, list[list[int]], list[tuple[int, str]]]] = {
    "nothing moves": (1000, [[9, 5]] * 5, [(2000, "still")]),
    "seldom looked at": (5000, [[9, 5]] * 5, [(10000, "still")]),
    "often looked at": (10, [[9, 5]] * 203, [(2000, "still")]),
    "one moves late": (1000, [[9, 5], [9, 4], [9, 4], [9, 4]], [(3000, "still")]),
    "up counts, too": (1000, [[9], [9], [10], [10], [10]], [(4000, "still")]),
    "always one": (1000, [[9, 5], [9, 4], [8, 4], [9, 4], [9, 5]], []),
    "has worked": (1000, [[9, 8], [9, 4], *[[9, 4]] * 5], []),
    "begins at one": (1000, [[1, 1]] * 5, []),
    "one at one": (1000, [[1, 7]] * 5, [(2000, "still")]),
    "collapse": (1000, [[9, 5], [9, 1], [9, 1]], [(1000, "b")]),
    "collapse of both": (10, [[9, 5], [1, 1]], [(10, "a, b")]),
    "collapse in turn": (10, [[9, 5], [1, 5], [1, 1]], [(10, "a"), (20, "b")]),
    "down, up and down": (10, [[9, 5], [9, 1], [9, 3], [9, 1]], [(10, "b")]),
    "up from one": (10, [[1], [4], [1]], [(20, "a")]),
    "not finite": (1000, [[9, 5], [], [], [], [9, 5]], [(2000, "still")]),
}


@pytest.mark.parametrize(("every", "looks", "expected"), CASES.values(), ids=CASES)
def test_what_is_warned_of(every: int, looks: list[list[int]], expected: list[tuple[int, str]]) -> None:
    assert warned(every, looks) == expected
    for again in range(len(looks))[:6]:
        assert warned(every, looks, again=again) == expected
    # one that repels lowers no rank, and is told of none
    assert warned(every, looks, -1e-5) == []


@pytest.mark.parametrize(("first", "last", "expected"), [(4000, 9000, [5000]), (0, 1500, []), (0, 2000, [2000])])
def test_nothing_is_said_of_a_force_that_rises_or_falls(first: int, last: int, expected: list[int]) -> None:
    recorder = Recorder()
    watch = RankWatch(Teller([recorder]), 1e-5, True)
    at = []
    for iteration in range(0, 8000, 1000):
        watch.take(iteration, {"a": (9, 20)}, first <= iteration <= last)
        at += [iteration] * len(recorder.texts())
        recorder.events.clear()
    # the last look at a force that rose was at 3000
    assert at == expected


@given(st.lists(st.lists(st.integers(1, 4), min_size=2, max_size=2), max_size=8), st.sampled_from([1000, 5000]))
def test_each_is_warned_of_once_and_for_a_reason(looks: list[list[int]], every: int) -> None:
    found = warned(every, looks)
    names = [name for _, text in found if text != "still" for name in text.split(", ")]
    assert len(names) == len(set(names)) and [text for _, text in found].count("still") <= 1
    for at, text in found:
        now = looks[at // every]
        if text == "still":
            assert at >= LONG and looks[at // every - LOOKS : at // every + 1] == [now] * (LOOKS + 1)
        else:
            assert all(now["abc".index(name)] == 1 for name in text.split(", "))


# -- in runs

WEAK = "force_decay: 1e-9 base_lr: 1e-5"
STRONG = "force_decay: 1 base_lr: 0.1"
RUN = 'max_iter: 10 snapshot: 1 snapshot_prefix: "s" snapshot_format: HDF5 test_iter: 1 test_interval: 2'


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 iterations for 2,000, 3 for 1,000."""
    monkeypatch.setattr("forcereg.solver.rankwatch.LONG", 4)
    monkeypatch.setattr("forcereg.solver.rankwatch.SOON", 3)


def solved(root: Path, extra: str, state: int | None = None, **options: Any) -> list[str]:
    """The warnings of a run about ranks."""
    recorder = Recorder()
    solver = Solver(write_solver(root, extra), observers=[recorder], **options)
    if state is not None:
        solver.restore(root / f"s_iter_{state}.solverstate.h5")
    solver.solve()
    return [text for text in recorder.texts() if " rank " in text]


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        (f"{RUN} {WEAK}", r"no rank has moved in 4 iterations: force_decay \(it is 1e-09\) is too small .* tenfold"),
        (
            f"{RUN} {STRONG}",
            r"conv collapsed to rank 1 at 5 % error by iteration \d: lower force_decay \(it is 1\), or",
        ),
    ],
    ids=["weak", "strong"],
)
def test_resumed_anywhere_a_run_warns_as_one_that_was_not(extra: str, pattern: str, tmp_path: Path, soon: None) -> None:
    write_images(tmp_path)
    (text,) = solved(tmp_path, extra)
    assert re.match(pattern, text)
    (at,) = map(int, re.findall(r"iteration (\d)", text) or [4])
    end = tmp_path / "s_iter_10.solverstate.h5"
    whole = end.read_bytes()
    for state in (1, at, at + 1, 9):
        # a snapshot holds what was before the tests of its iteration, so these come again
        assert solved(tmp_path, extra, state) == ([text] if state <= at else []), state
        assert end.read_bytes() == whole, state


@pytest.mark.parametrize(
    "extra",
    [
        f"{RUN} base_lr: 0.01",
        f"{RUN} {WEAK} force_iter: 4",
        f"{RUN} {STRONG} force_iter: 0",
        f"{RUN} {WEAK}".replace(": 10", ": 3"),
    ],
    ids=["off", "ended", "never", "short"],
)
def test_no_false_alarm(extra: str, tmp_path: Path, soon: None) -> None:
    write_images(tmp_path)
    assert solved(tmp_path, extra) == []


def test_without_tests_displays_look(tmp_path: Path, soon: None) -> None:
    write_images(tmp_path)
    (text,) = solved(tmp_path, f"max_iter: 20 display: 2 snapshot_after_train: false {WEAK}")
    # looks at 0, 4, 8
    assert text.startswith("no rank has moved in 8 iterations")
    assert solved(tmp_path, f"max_iter: 20 snapshot_after_train: false {WEAK}") == []


def test_a_layer_that_begins_at_rank_one(tmp_path: Path) -> None:
    write_images(tmp_path)
    solver = Solver(write_solver(tmp_path, f"{RUN} {STRONG}"), observers=[recorder := Recorder()])
    with torch.no_grad():
        solver.net.params["conv"][0][1:] = solver.net.params["conv"][0][:1]
    solver.solve()
    assert [text for text in recorder.texts() if " rank " in text] == []


def test_the_command_warns_on_standard_error(tmp_path: Path, run_cli: RunCli) -> None:
    write_images(tmp_path, IMAGES)
    write_solver(tmp_path, f"{RUN} {STRONG}")
    done = run_cli("train", "--solver", "solver.prototxt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "collapsed" in line]
    assert re.match(r"W\d{4} .*\] conv collapsed to rank 1 at 5 % error", line)
