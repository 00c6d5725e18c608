"""Snapshots and data files of damaged structure and hostile members end no process and take no memory for nothing."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.worker import survive
from tests.long_forms import Rounds
from tests.nursery import Nursery


def test_hostile_files(rounds: Rounds, nursery: Nursery, tmp_path: Path) -> None:
    survive(nursery, "tests.fuzz.snapshots", rounds(400), tmp_path, batch=200)
