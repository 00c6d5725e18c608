"""The command line in this process, for tests of what it prints and how it exits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from forcereg.__main__ import main
from tests.commands.run_control import Runs, runs
from tests.conftest import RunCli

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


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scikit-learn's digits as two LMDBs."""
    pytest.importorskip("sklearn", reason="needs the digits extra")
    from forcereg import convert_digits

    root = tmp_path_factory.mktemp("digits")
    convert_digits(root)
    return root


@pytest.fixture
def tiny(tmp_path: Path, digits: Path, run_cli: RunCli) -> Runs:
    """Runs of a small net on the digits."""
    return runs(tmp_path, digits, run_cli)


def said(err: str) -> str:
    """The one line of the error, which is the last; there is no traceback."""
    assert "Traceback" not in err
    lines = err.splitlines()
    assert [line.startswith("forcereg: ") for line in lines] == [False] * (len(lines) - 1) + [True]
    return lines[-1].removeprefix("forcereg: ")
