"""The command line, with which the calls are compared, and small nets."""

from __future__ import annotations

from pathlib import Path

import pytest

from forcereg.solver.loop import Solver
from tests.commands.conftest import cli as cli
from tests.commands.decomposing import fresh_snapshot
from tests.solver.nets import IMAGES, write_images, write_solver


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a snapshot, which is the working directory."""
    fresh_snapshot(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a trained net and its solver, which is the working directory."""
    monkeypatch.chdir(write_images(tmp_path, IMAGES.replace("num_output: 4", "num_output: 16")))
    schedule = 'max_iter: 30 snapshot_prefix: "net" snapshot_after_train: true test_iter: 2 test_interval: 30'
    Solver(write_solver(tmp_path, schedule)).solve()
    return tmp_path
