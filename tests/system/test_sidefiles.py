"""JSON read back: what is accepted as which form."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from forcereg.system.sidefiles import LATER, known, of_form, parse_json, read_json


@dataclass
class Inner:
    share: float

    def check(self) -> None:
        if self.share > 1:
            raise ValueError("too much")


@dataclass
class Outer:
    name: str
    count: int
    inner: Inner | None
    more: list[int]
    table: dict[str, float]
    since: list[str] = field(default_factory=list, metadata=LATER)


OURS = {"name": "a", "count": 1, "inner": {"share": 0.5}, "more": [1, 2], "table": {"x": 1}}


def test_a_form() -> None:
    assert of_form(OURS, Outer) == Outer("a", 1, Inner(0.5), [1, 2], {"x": 1})
    assert of_form({**OURS, "inner": None}, Outer).inner is None
    assert of_form([1, "x"], list[Any]) == [1, "x"]


def test_a_field_of_later_may_be_missing() -> None:
    assert of_form({**OURS, "since": ["x"]}, Outer).since == ["x"] and of_form(OURS, Outer).since == []
    with pytest.raises(ValueError):
        of_form({**OURS, "since": 1}, Outer)


@pytest.mark.parametrize(
    "changed",
    [
        {"name": 1}, {"count": True}, {"count": 1.0}, {"count": "1"}, {"count": 2**63}, {"inner": {}}, {"inner": 1},
        {"inner": {"share": 2}}, {"inner": {"share": True}}, {"more": [None]}, {"more": {}}, {"table": {"x": "1"}},
        {"table": {"x": 10**400}}, {"table": []}, {"another": 1},
    ],
    ids=str,
)  # fmt: skip
def test_another_form(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        of_form({**OURS, **changed}, Outer)


@pytest.mark.parametrize("value", [None, 1, [], {}, {"name": "a"}, "x"])
def test_another_whole(value: Any) -> None:
    with pytest.raises(ValueError):
        of_form(value, Outer)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ('{"a": 1, "a": 1}', "'a' stands twice"),
        ("9" * 5000, "a number of 5,000 digits"),
        ("[" * 60 + "]" * 60, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
    ],
    ids=["nothing", "half", "twice", "long", "deep", "deepest"],
)
def test_no_json(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=why):
        parse_json(text)
    (tmp_path / "x").write_text(text)
    assert known(tmp_path / "x", list[int]) is None


def test_files_that_are_none(tmp_path: Path) -> None:
    assert known(None, list[int]) is None and known(tmp_path / "missing", list[int]) is None
    assert known(tmp_path, list[int]) is None and known(Path("\0"), list[int]) is None
    os.mkfifo(tmp_path / "pipe")
    assert known(tmp_path / "pipe", list[int]) is None
    (tmp_path / "x").write_bytes(b'["\xff"]')
    assert known(tmp_path / "x", list[str]) is None
    (tmp_path / "x").write_text(json.dumps([1] * 1000))
    assert known(tmp_path / "x", list[int]) == [1] * 1000
    with pytest.raises(OSError, match="expected at most 100"):
        read_json(tmp_path / "x", 100)
