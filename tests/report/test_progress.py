"""Progress in steps: lines behind a pipe, a bar on a terminal."""

from __future__ import annotations

import pytest

import forcereg.report.progress as progress
from forcereg.report.progress import Steps


def run(steps: Steps) -> int:
    def work(first: int, second: int) -> int:
        steps.done("first")
        steps.done("[second]")
        return first + second

    return steps.around(work)(1, second=2)


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Steps("net", 5)) == 3
    out, err = capsys.readouterr()
    assert out == "" and err == "net 1 of at most 5: first\nnet 2 of at most 5: [second]\n"


def test_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    assert run(Steps("net", 5)) == 3
    out, err = capsys.readouterr()
    assert out == "" and "2/5" in err and "[second]" in err and "of at most" not in err


def test_steps_that_take_no_time_have_no_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Steps("step", 5, pause=1e9)) == 3
    assert capsys.readouterr() == ("", "")
