"""Progress in steps: lines behind a pipe, a bar on a terminal."""

from __future__ import annotations

import pytest

import forcereg.report.progress as progress
from forcereg.report.progress import Bars, Steps
from forcereg.system.events import Tell


def run(steps: Steps) -> None:
    with steps:
        steps.done("first")
        steps.done("[second]")


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    run(Steps("net", 5))
    out, err = capsys.readouterr()
    assert out == "" and err == "net 1 of at most 5: first\nnet 2 of at most 5: [second]\n"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error as a terminal."""
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")


def test_a_bar(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    run(Steps("net", 5))
    out, err = capsys.readouterr()
    assert out == "" and "2/5" in err and "[second]" in err and "of at most" not in err


def test_steps_that_take_no_time_have_no_lines(capsys: pytest.CaptureFixture[str]) -> None:
    run(Steps("step", 5, pause=1e9))
    assert capsys.readouterr() == ("", "")


def convert(observer: Bars) -> list[int]:
    """Two tasks of a converter, the second of unknown length."""
    tell = Tell(observer)
    return [*tell.track([1, 2, 3], "writing [a]", 3), *tell.track(iter([4]), "reading b", None)]


def test_a_bar_for_each_task(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars:
        assert convert(bars) == [1, 2, 3, 4]
        bars._bar.refresh()
    out, err = capsys.readouterr()
    assert out == "" and "writing [a]" in err and "reading b" in err
    assert "writing" not in err[err.rindex("reading b") :]


def test_no_bar_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars:
        assert convert(bars) == [1, 2, 3, 4]
    assert capsys.readouterr() == ("", "")
