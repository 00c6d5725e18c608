"""scripts/bench/lasso.py measures steps with and without group lasso; how long they take decides no test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from bench import lasso as bench


def test_it_measures_both_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["lasso.py", "--batch", "2", "--rounds", "1", "--json", str(tmp_path / "found.json")]
    )
    bench.main()
    assert "step with row and column lasso / without" in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text())
