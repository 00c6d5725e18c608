"""Every file that is written: a write, sync, close or rename that fails loses nothing and is told in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import writes
from tests.fuzz.writes import COMMANDS, FAULTS
from tests.long_forms import Rounds
from tests.nursery import Nursery


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Path:
    folder = tmp_path_factory.mktemp("start")
    writes.prepare(folder, nursery)
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_a_write_fails(
    name: str, start: Path, tmp_path: Path, nursery: Nursery, rounds: Rounds, long_form: bool
) -> None:
    """All of them in the long form, some chosen ones otherwise."""
    command, before = COMMANDS[name], writes.contents(start)
    whole = writes.failing(nursery, start, tmp_path, command.args, 1 << 40, "EIO")
    assert whole.result.returncode == 0, whole.result.stderr
    every = [(at, fault) for fault in FAULTS for at in range(len(whole.calls))]
    chosen = every if long_form else [chance.choice(every) for chance in rounds(1)]
    for at, fault in chosen:
        one = writes.failing(nursery, start, tmp_path, command.args, at, fault)
        writes.check(command, before, whole, one, at, f"{name} {at} {fault}")
