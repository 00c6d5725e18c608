"""scripts/bench/pycaffe.py measures forwards and look-ups; how long they take decides no test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from bench import pycaffe as bench


def test_it_measures_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["pycaffe.py", "--nets", "LeNet", "--rounds", "1", "--json", str(found)])
    bench.main()
    said = capsys.readouterr().out
    assert "forward through caffe.Net / without" in said and "a look-up in blobs or params" in said
    assert json.loads(found.read_text())
