"""scripts/bench/contest.py and table.py: who runs when, what is compared, and how failures and goals are told."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import contest
import pytest
import table
from contest import Entrant, Memory, Result
from table import Figure

CONTESTANTS = """
    import os

    def writer(path, name, big=0):
        held = []
        def run(n):
            print("noise on stdout")
            with open(path, "a") as file:
                print(name, n, file=file)
            held.append(b"x" * big)
        return run

    def broken():
        raise ValueError("no such net")

    def ending(code):
        return lambda n: os._exit(code)
"""


@pytest.fixture
def entrant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Entrant]:
    (tmp_path / "contestants.py").write_text(textwrap.dedent(CONTESTANTS))
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str, function: str, turn: int = 1, /, **options: object) -> Entrant:
        return Entrant(name, f"contestants:{function}", options, turn, imports=("json",))

    return make


def test_turns_rotate_and_warm_up(entrant: Callable[..., Entrant], tmp_path: Path) -> None:
    path = tmp_path / "turns"
    who = [entrant(name, "writer", turn, path=str(path), name=name) for name, turn in (("a", 3), ("b", 1), ("c", 2))]
    results = contest.contest(who, rounds=3, warmup=1, pause=0)
    assert [(result.name, len(result.seconds)) for result in results] == [("a", 3), ("b", 3), ("c", 3)]
    assert all(second > 0 for result in results for second in result.seconds)
    turns = path.read_text().split("\n")[:-1]
    assert [turn[0] for turn in turns] == [*"cab", *"abc", *"bca", *"cab"]
    assert set(turns) == {"a 3", "b 1", "c 2"}


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 3), (float("inf"), 5)])
def test_time_ends_a_contest_after_three_rounds(
    entrant: Callable[..., Entrant], tmp_path: Path, seconds: float, rounds: int
) -> None:
    who = [entrant("a", "writer", path=str(tmp_path / "turns"), name="a")]
    (result,) = contest.contest(who, rounds=5, warmup=0, seconds=seconds, pause=0)
    assert len(result.seconds) == rounds


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system tells no memory")
def test_each_process_has_its_own_peak(entrant: Callable[..., Entrant], tmp_path: Path) -> None:
    path = str(tmp_path / "turns")
    who = [entrant(name, "writer", path=path, name=name, big=big << 20) for name, big in (("a", 0), ("b", 30))]
    small, large = (result.memory for result in contest.contest(who, rounds=2, warmup=0, pause=0))
    assert small is not None and large is not None
    assert 60 <= large.private < 75 and 60 <= large.own < 75 and small.private < 5
    assert large.peak - small.peak == pytest.approx(60, abs=5)


@pytest.mark.parametrize(
    ("function", "options", "says"),
    [
        pytest.param("broken", {}, "contestant 'x' ended with 1: ValueError: no such net", id="making"),
        pytest.param("ending", {"code": 7}, "contestant 'x' ended with 7: no message", id="running"),
        pytest.param(
            "missing",
            {},
            "contestant 'x' ended with 1: AttributeError: module 'contestants' has no attribute 'missing'",
            id="unknown",
        ),
    ],
)
def test_a_contestant_that_dies_is_one_line(
    entrant: Callable[..., Entrant], tmp_path: Path, function: str, options: dict[str, object], says: str
) -> None:
    well = entrant("well", "writer", path=str(tmp_path / "turns"), name="well")
    with pytest.raises(SystemExit) as ended:
        contest.contest([well, entrant("x", function, **options)], rounds=2, pause=0)
    assert ended.value.code == says


def test_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    one, other = Result("one", [1.0, 8.0, 3.0], None), Result("other", [2.0, 4.0, 5.0], None)
    assert contest.ratio(one, other) == 3 / 4
    assert contest.paired_ratio(one, other) == 3 / 5
    contest.print_ratios(one, [other, one])
    told = "one / other, one: medians of the rounds' own ratios 0.60, 1.00; ratios of the minima 0.50, 1.00\n"
    assert capsys.readouterr().out == told


def test_times_table(capsys: pytest.CaptureFixture[str]) -> None:
    results = [Result("plain", [0.02, 0.03, 0.04], Memory(300, 100, 90)), Result("ours", [0.015], None)]
    contest.print_times(results, ["plain"])
    head, plain, ours = capsys.readouterr().out.splitlines()
    assert head.split() == ["ms/iteration", "min", "max", "/", "plain", "MiB", "own", "private"]
    assert plain.split() == ["plain", "30.00", "20.00", "40.00", "1.00", "300", "100", "90"]
    assert ours.split() == ["ours", "15.00", "15.00", "15.00", "0.50"]
    assert json.loads(json.dumps(contest.results_json(results)))["plain"]["memory"]["own"] == 100


FIGURES = [
    Figure("LeNet", "time / plain", 0.604, 0.6),
    Figure("LeNet", "time / other", 0.606, 0.6),
    Figure("start", "help", 0.25, 0.3, "s"),
    Figure("start", "untold", 1.0),
]


def test_goals_are_judged_by_what_is_printed() -> None:
    assert [figure.verdict for figure in FIGURES] == ["reached", "missed", "reached", ""]
    assert [" ".join(row.split()) for row in table.rows(FIGURES)] == [
        "measured goal",
        "LeNet time / plain 0.60x <= 0.60x reached",
        "LeNet time / other 0.61x <= 0.60x missed",
        "start help 0.25 s <= 0.30 s reached",
        "start untold 1.00x",
    ]


def run_table(monkeypatch: pytest.MonkeyPatch, *args: object) -> None:
    monkeypatch.setattr(sys, "argv", ["table.py", *map(str, args)])
    table.main()


def test_files_of_figures_become_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, some in (("a", FIGURES[:2]), ("b", FIGURES[2:])):
        table.write_figures(tmp_path / name, some, {"more": 1}, "a machine")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bash scripts/bench/all.sh -->\nold\n<!-- end -->\nafter <!-- end -->\n")
    run_table(monkeypatch, tmp_path / "a", tmp_path / "b", "--readme", readme)
    out = capsys.readouterr().out
    assert out == "\n".join(["a machine", "", *table.rows(FIGURES), ""])
    marked = "<!-- bash scripts/bench/all.sh -->\n\n```\n" + out + "```\n\n<!-- end -->"
    assert readme.read_text() == f"before\n{marked}\nafter <!-- end -->\n"


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"machine": "m", "figures": [{"part": "x"}]}'], ids=["none", "cut", "list", "fields"]
)
def test_other_files_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit, match=r"a\.json: not a file of figures"):
        run_table(monkeypatch, path)


def test_a_readme_without_place_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table.write_figures(tmp_path / "a", FIGURES, {}, "a machine")
    (tmp_path / "README.md").write_text("nothing\n")
    with pytest.raises(SystemExit, match="README"):
        run_table(monkeypatch, tmp_path / "a", "--readme", tmp_path / "README.md")


def test_memory_above_the_imports() -> None:
    before = {"VmHWM": 4096, "VmRSS": 3072, "RssAnon": 1024}
    after = {"VmHWM": 9216, "VmRSS": 8192, "RssAnon": 5120}
    assert contest.peak_memory(before, after) == {"peak": 9.0, "own": 6.0, "private": 5.0}
    assert contest.peak_memory({}, after) is None and contest.peak_memory(before, {"VmRSS": 3072}) is None
