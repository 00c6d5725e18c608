"""Claims: one process at a time, whoever dies lets go, and nobody takes what is alive."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from forcereg.errors import ForceregError
from forcereg.system import claims
from forcereg.system.claims import Lost, Owner, Watch, claim, held
from tests.nursery import Nursery

COUNTING = """
import sys
from pathlib import Path
from forcereg.system.claims import held
for _ in range(8):
    with held(Path("lock")):
        count = int(Path("count").read_text())
        Path("count").write_text(str(count + 1))
"""
DYING = """
import os, signal
from pathlib import Path
from forcereg.system.claims import Watch, claim
assert claim(Path("x"), Watch(), "call")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_one_process_at_a_time(tmp_path: Path, nursery: Nursery) -> None:
    (tmp_path / "count").write_text("0")
    logs = [tmp_path / f"{number}.err" for number in range(4)]
    every = [nursery.start("-c", COUNTING, cwd=tmp_path, out=log.with_suffix(".out"), err=log) for log in logs]
    assert [one.wait() for one in every] == [0] * 4, [log.read_text() for log in logs]
    assert (tmp_path / "count").read_text() == "32"
    assert not list(tmp_path.glob("*lock*")) and not list(tmp_path.glob(".*"))


def test_of_many_that_want_it_one_has_it(tmp_path: Path) -> None:
    found: list[Any] = []
    start = threading.Barrier(8)

    def want() -> None:
        start.wait()
        found.append(claim(tmp_path / "x", Watch()))

    threads = [threading.Thread(target=want) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    (own,) = [one for one in found if one is not None]
    assert Watch().is_held(tmp_path / "x")
    own.release()
    assert not list(tmp_path.iterdir()) and not Watch().is_held(tmp_path / "x")


def test_a_killed_process_lets_go_and_is_counted(tmp_path: Path, nursery: Nursery) -> None:
    path = tmp_path / "x"
    for expected in range(3):
        own = claim(path, Watch(), "call")
        assert own is not None and own.deaths == expected
        own.release()  # what it took over goes with it
        assert not list(tmp_path.glob("x*"))
        for _ in range(expected + 1):
            nursery.run("-c", DYING, cwd=tmp_path)
    other = claim(path, Watch(), "another call")
    assert other is not None and other.deaths == 0


def test_a_process_that_nobody_has_waited_for_yet_is_dead(tmp_path: Path) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while claims._started(done.pid) != -1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert done.returncode is None
    done.wait()


def elsewhere(path: Path, **more: Any) -> None:
    """Has a process of another machine hold a path."""
    owner = Owner("there", "another boot", os.getpid(), 1, "a")
    path.with_name(f"{path.name}.0").write_text(json.dumps(asdict(replace(owner, **more))))


def test_another_machine_s_is_dead_once_it_gives_no_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, watch, now = tmp_path / "x", Watch(), 1000.0
    monkeypatch.setattr(claims.time, "monotonic", lambda: now)
    elsewhere(path)
    assert claim(path, watch) is None
    now += claims.PATIENCE + 1
    assert claim(path, Watch()) is None  # who has just come can't know
    os.utime(tmp_path / "x.0", (5, 5))
    assert claim(path, watch) is None
    now += claims.PATIENCE - 1
    assert claim(path, watch) is None
    now += 2
    own = claim(path, watch)
    assert own is not None and (tmp_path / "x.1").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_a_claim_that_cannot_be_read_is_somebody_s(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, now = Watch(), 0.0
    monkeypatch.setattr(claims.time, "monotonic", lambda: now)
    (tmp_path / "x.0").write_text(text)
    assert claim(tmp_path / "x", watch) is None
    now += claims.PATIENCE + 1
    assert claim(tmp_path / "x", watch) is not None


def test_signs_of_life_and_being_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.005)
    own = claim(tmp_path / "x", Watch())
    assert own is not None
    first = os.stat(tmp_path / "x.0").st_mtime_ns
    deadline = time.monotonic() + 60
    while os.stat(tmp_path / "x.0").st_mtime_ns == first:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    own.check()
    (tmp_path / "x.1").write_text("another's")
    with pytest.raises(Lost, match="another process has taken over"):
        while time.monotonic() < deadline:
            own.check()
            time.sleep(0.001)
    own.release()
    assert (tmp_path / "x.1").exists()


def test_one_that_let_go_while_another_took_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third has begun at 0 in between: whoever took over gives way."""
    path = tmp_path / "x"
    elsewhere(path)
    monkeypatch.setattr(Watch, "is_dead", lambda self, file: True)
    made, third = claims._made, []

    def late(file: Path, text: str) -> bool:
        if not third and file.name == "x.1":
            path.with_name("x.0").unlink()
            third.append(claim(path, Watch()))
            path.with_name("x.0").unlink()
            third[0].release()
        return made(file, text)

    monkeypatch.setattr(claims, "_made", late)
    assert claim(path, Watch()) is None and third[0] is not None
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize("lost", [False, True], ids=["no-links", "answer-lost"])
def test_file_systems_without_links_and_answers_that_get_lost(
    lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def fails(source: Path, target: Path) -> None:
        if lost:
            link(source, target)
            raise FileExistsError(errno.EEXIST, "File exists", str(target))
        raise PermissionError(errno.EPERM, "Operation not permitted", str(target))

    monkeypatch.setattr(os, "link", fails)
    own = claim(tmp_path / "x", Watch())
    assert own is not None and own.still()
    if not lost:
        assert claim(tmp_path / "x", Watch()) is None


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(ForceregError, match=r"cannot write .*/none/x\.0: no such file or directory"),
        held(tmp_path / "none" / "x"),
    ):
        pass
