"""Solver states with wrong entries: gone on from where that is harmless, else refused in one line, nothing changed."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz import states
from tests.fuzz.worker import survive
from tests.long_forms import Rounds
from tests.nursery import Nursery


def test_wrong_entries(rounds: Rounds, nursery: Nursery, tmp_path: Path) -> None:
    states.prepare(tmp_path)
    survive(nursery, "tests.fuzz.states", rounds(120), tmp_path, batch=60)
