"""The command line in this process, for tests of what it prints and how it exits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from forcereg.__main__ import main

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line in this process: (exit code, standard output, standard error)."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)

    def run(*args: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run


def said(err: str) -> str:
    """The one line of the error, which is the last; there is no traceback."""
    assert "Traceback" not in err
    lines = err.splitlines()
    assert [line.startswith("forcereg: ") for line in lines] == [False] * (len(lines) - 1) + [True]
    return lines[-1].removeprefix("forcereg: ")
