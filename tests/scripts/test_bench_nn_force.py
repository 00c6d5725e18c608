"""scripts/bench/nn_force.py measures steps with and without force; how long they take decides no test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from bench import nn_force as bench


def test_what_it_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    call = ["nn_force.py", "--batch", "2", "--side", "32", "--rounds", "1", "--json", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", call)
    bench.main()
    text, found = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    assert "step with force / without" in text and "<= 1.05x" in text
    assert [one["goal"] for one in found["figures"]] == [1.05, 1.05] and all(found["details"]["seconds"])
