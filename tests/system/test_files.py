"""Files appear whole or not at all, and what the system refuses is one line."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forcereg.errors import ForceregError
from forcereg.system.files import (
    append_text,
    check_regular,
    differs,
    open_file,
    read_file,
    replace_file,
    write_bytes,
    write_text,
)

TOP = Path(__file__).resolve().parents[2]


@settings(derandomize=True, deadline=None, max_examples=50)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_text_comes_back(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "text"
    write_text(path, text)
    assert path.read_bytes().decode() == text


def test_the_target_is_untouched_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_text("old")
    with replace_file(path) as temp:
        temp.write_text("new")
        assert path.read_text() == "old"
        assert temp.parent == tmp_path and temp.name.startswith(".a.h5.") and temp.suffix == ".tmp"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.h5"]


def test_the_file_is_synced_before_and_its_folder_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor: int) -> None:
        calls.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def spy_replace(source: Path, target: Path) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    write_bytes(tmp_path / "a", b"x")
    assert calls == ["sync file", "rename", "sync folder"]


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt()], ids=lambda failure: type(failure).__name__)
def test_a_failing_block_leaves_the_old_file_alone(failure: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(type(failure)), replace_file(path) as temp:
        temp.write_text("half")
        raise failure
    assert os.listdir(tmp_path) == ["a"]
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "no space left on device; free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EFBIG, "file too large; raise the file size limit"),
        (errno.EACCES, "permission denied; make its folder writable"),
        (errno.EROFS, "read-only file system; write elsewhere"),
        (errno.EIO, "check the disk"),
    ],
    ids=errno.errorcode.get,
)
def test_what_the_system_refuses_is_one_line(
    code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def refuse(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(ForceregError) as caught:
        write_text(path, "new")
    assert str(caught.value).startswith(f"cannot write {path}: ")
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["a"]
    assert path.read_text() == "old"


def test_another_file_that_fails_in_the_block_is_not_blamed_on_the_target(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), replace_file(tmp_path / "a"):
        (tmp_path / "elsewhere").read_bytes()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none/a", "there is no folder .*none; make it first"),
        ("file/a/b", "file is no folder; choose another place"),
        ("folder", "it is no regular file"),
        ("pipe", "it is no regular file"),
        ("a" * 256, "choose a shorter name"),
    ],
    ids=["missing-folder", "in-a-file", "folder", "pipe", "long-name"],
)
def test_places_where_no_file_can_be(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ForceregError, match=says) as caught:
        write_text(tmp_path / name, "x")
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "pipe"]


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127, "😀" * 63], ids=["ascii", "two-byte", "four-byte"])
def test_the_longest_names_work(name: str, tmp_path: Path) -> None:
    write_text(tmp_path / name, "x")
    assert os.listdir(tmp_path) == [name]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/a")
    write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "a").read_text() == "x"


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    script = """
import resource, sys
from forcereg.errors import ForceregError
from forcereg.system.files import write_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    write_bytes(sys.argv[1], bytes(1 << 20))
except ForceregError as exc:
    print(exc)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=TOP, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines() == [
        f"cannot write {path}: file too large; raise the file size limit (`ulimit -f`) or write elsewhere"
    ]
    assert os.listdir(tmp_path) == ["a"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o640, 0o444, 0o755], ids=oct)
def test_the_new_file_keeps_the_mode_of_the_old(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(mode)
    with replace_file(path) as temp:
        assert stat.S_IMODE(temp.stat().st_mode) & ~mode & 0o077 == 0, "others may read what is being written"
        temp.write_text("new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_new_file_has_the_mode_that_the_process_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "socket"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "it"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.path.relpath(path))
        listener.close()
    for read in (open_file, read_file, check_regular):
        with pytest.raises(OSError) as caught:
            read(path)
        assert caught.value.strerror == f"it is a {kind}, expected a regular file"


def test_a_file_that_is_longer_than_asked_for_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_file(tmp_path / "a", 5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes, expected at most 4"):
        read_file(tmp_path / "a", 4)


def test_a_file_to_be_replaced_is_compared(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    found = [differs(tmp_path / name, b"1") for name in ("a", "missing", "dangling", "a/below")]
    assert found == [False] * 4 and differs(tmp_path / "a", b"2")
    with pytest.raises(ForceregError, match="it is a pipe, expected a regular file"):
        differs(tmp_path / "pipe", b"1")


def test_lines_are_added_to_files_only(tmp_path: Path) -> None:
    for _ in range(2):
        with append_text(tmp_path / "log") as log:
            log.write("line\n")
    assert (tmp_path / "log").read_text() == "line\nline\n"
    (tmp_path / "dangling").symlink_to(tmp_path / "none" / "log")
    os.mkfifo(tmp_path / "pipe")
    for name in ("dangling", "pipe", ".", "log/below"):
        with pytest.raises(ForceregError, match="cannot write"), append_text(tmp_path / name):
            pytest.fail("it is open")


def test_a_disk_that_fills_up_while_lines_are_added(tmp_path: Path) -> None:
    """Writing tells no name; another file's error is that file's."""
    for other, raised in (((), ForceregError), (("elsewhere",), OSError)):
        with pytest.raises(raised, match=r"(?i)no space left on device"), append_text(tmp_path / "log"):
            raise OSError(errno.ENOSPC, "No space left on device", *other)
