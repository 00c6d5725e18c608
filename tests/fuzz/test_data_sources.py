"""Databases, images and what converters read, damaged in many ways, each in a process that must come to its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import databases, images, sets
from tests.fuzz.worker import survive
from tests.long_forms import Rounds
from tests.nursery import Nursery


@pytest.mark.parametrize(
    ("kind", "count"), [(databases, 300), (images, 600), (sets, 300)], ids=["databases", "images", "sets"]
)
def test_damage(kind: object, count: int, rounds: Rounds, nursery: Nursery, tmp_path: Path) -> None:
    kind.prepare(tmp_path)  # type: ignore[attr-defined]
    survive(nursery, kind.__name__, rounds(count), tmp_path, batch=300)  # type: ignore[attr-defined]
