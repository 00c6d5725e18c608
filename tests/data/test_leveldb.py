"""LevelDB: read where it lies without being touched, whatever backend says, and every damage named."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from forcereg.data import records
from forcereg.data.leveldb_records import LevelDbRecords
from forcereg.data.lmdb_records import LmdbRecords
from forcereg.data.opening import open_records
from forcereg.errors import ForceregError
from tests.data.lmdbs import batches, make_feed, numbered, put_leveldb, put_lmdb
from tests.nursery import Nursery

plyvel = pytest.importorskip("plyvel", reason="no wheel for this Python")

STREAM = 0


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """A folder whose LevelDB `db` has 10 records of 1x4x5 pixels, labels 0 to 9."""
    put_leveldb(tmp_path / "db", numbered(10))
    return tmp_path


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many temporary folders there are."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return lambda: len(os.listdir(folder))


@pytest.mark.parametrize("backend", ["backend: LEVELDB", "", "backend: LMDB"])
@pytest.mark.parametrize("budget", [1 << 20, STREAM], ids=["in-memory", "streamed"])
def test_a_leveldb_is_read_whatever_the_backend_says(backend: str, budget: int, db: Path) -> None:
    feed = make_feed(db, batch=4, budget=budget, data=backend)
    assert [labels.tolist() for _, labels in batches(feed, 3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]


def test_records_come_in_the_byte_order_of_their_keys(tmp_path: Path) -> None:
    items = [
        (key, value) for key, (_, value) in zip([b"b", b"\xff", b"a", b"", b"B", b"a\0"], numbered(6), strict=True)
    ]
    put_leveldb(tmp_path / "db", items)
    assert list(LevelDbRecords(tmp_path / "db").read()) == sorted(items)


@pytest.mark.parametrize("start", [0, 3, 9, 10, 24])
@pytest.mark.parametrize("counted", [False, True])
def test_reading_starts_anywhere(start: int, counted: bool, db: Path) -> None:
    items = numbered(10)
    found = LevelDbRecords(db / "db")
    if counted:
        assert found.count() == 10
    assert list(found.read(start)) == items[start % 10 :]
    assert found.key(start) == items[start % 10][0]


def test_the_number_is_found_once_and_only_as_far_as_it_matters(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = LevelDbRecords(db / "db"), LevelDbRecords(db / "db")
    assert one.count(9) is None and one.count(0) is None
    assert one.count(10) == 10
    monkeypatch.setattr(LevelDbRecords, "_keys", None)
    assert one.count() == other.count() == other.count(3) == 10


def test_reading_to_the_end_tells_the_number(db: Path) -> None:
    found = LevelDbRecords(db / "db")
    list(found.read(4))
    assert found.count(0) == 10


def test_the_folder_is_not_touched_and_no_copy_is_left(db: Path, copies: Callable[[], int]) -> None:
    before, running = content(db / "db"), set(threading.enumerate())
    feed = make_feed(db, budget=STREAM)
    batches(feed, 5)
    assert copies() == 1
    threads = set(threading.enumerate()) - running
    del feed
    for thread in threads:
        thread.join(30)
    assert content(db / "db") == before and copies() == 0


def test_no_copy_is_left_by_a_process_that_ends_while_it_reads(
    db: Path, copies: Callable[[], int], nursery: Nursery
) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.data.lmdbs import make_feed\n"
        "feed = make_feed(Path(sys.argv[1]), budget=0); print(feed.next()[1].tolist())"
    )
    done = nursery.run("-c", code, db)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0.0, 1.0, 2.0]\n", "")
    assert copies() == 0


def test_a_database_that_another_process_holds_is_read(db: Path) -> None:
    with closing(plyvel.DB(str(db / "db"))):
        assert make_feed(db).next()[1].tolist() == [0, 1, 2]


@pytest.fixture
def read_only(db: Path) -> Iterator[Path]:
    """A LevelDB of 10 records that nobody but root can write, where every user can read it."""
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(db / "db", folder / "db")
    for path in (*(folder / "db").iterdir(), folder / "db", folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder / "db"
    for path in (folder, folder / "db"):
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_that_cannot_be_written_is_read(read_only: Path) -> None:
    python = [sys.executable]
    if os.geteuid() == 0:  # root may write everywhere
        python = ["setpriv", "--reuid=65534", "--clear-groups", "--", *python]
        if (
            not shutil.which("setpriv")
            or subprocess.run([*python, "-c", "import forcereg"], capture_output=True).returncode
        ):
            pytest.skip("no other user than root can run this")
    code = (
        "import os, sys; from pathlib import Path; from forcereg.data.leveldb_records import LevelDbRecords\n"
        "path = Path(sys.argv[1]); assert not os.access(path, os.W_OK); print(LevelDbRecords(path).count())"
    )
    done = subprocess.run([*python, "-c", code, str(read_only)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "10\n"), done.stderr


def test_readers_share_a_handle_that_the_last_one_closes(db: Path, copies: Callable[[], int]) -> None:
    first, second = LevelDbRecords(db / "db"), LevelDbRecords(db / "db")
    (opened,) = [entry for entry in records._open.values() if entry.handle is first._handle]
    assert first._handle is second._handle and opened.users == 2
    del first
    assert opened.users == 1 and len(list(second.read())) == 10
    reader = second.read()
    next(reader)
    del second
    assert opened.users == 1
    del reader
    assert opened not in records._open.values()
    assert copies() == 1
    del opened
    assert copies() == 0


def test_a_leveldb_that_was_replaced_is_read_afresh(db: Path) -> None:
    feed = make_feed(db, batch=2)
    feed.next()
    (db / "db").rename(db / "old")
    put_leveldb(db / "db", numbered(3, classes=3)[1:])
    fresh = make_feed(db, batch=2)
    assert fresh.next()[1].tolist() == [1, 2]
    assert feed.next()[1].tolist() == [2, 3]


@pytest.mark.parametrize(("put", "kind"), [(put_lmdb, LmdbRecords), (put_leveldb, LevelDbRecords)])
def test_what_is_there_decides(put, kind: type, tmp_path: Path) -> None:
    put(tmp_path / "db", numbered(2))
    assert type(open_records(tmp_path / "db")) is kind


def fails(root: Path, *expected: str, **options) -> None:
    with pytest.raises(ForceregError) as caught:
        batches(make_feed(root, data="", **options), 300)
    line = str(caught.value)
    assert (
        line.startswith("net.prototxt:1: layer 'd': ") and "\n" not in line and tempfile.gettempdir() + "/f" not in line
    )
    for text in (str(root / "db"), *expected):
        assert text in line


def test_without_plyvel_it_is_said_how_to_get_it(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plyvel", None)
    fails(db, "is a LevelDB", "pip install 'forcereg[leveldb]'", "LMDB")


def test_an_empty_leveldb_is_refused(tmp_path: Path) -> None:
    put_leveldb(tmp_path / "db", [])
    fails(tmp_path, "the LevelDB is empty", "at least one record")


def table(folder: Path) -> Path:
    return min(folder.glob("*.ldb"))


def lose_a_table(folder: Path) -> None:
    table(folder).unlink()


def cut_a_table(folder: Path) -> None:
    os.truncate(table(folder), table(folder).stat().st_size // 2)


def lose_the_manifest(folder: Path) -> None:
    for path in folder.glob("MANIFEST-*"):
        path.unlink()


def overwrite_the_manifest(folder: Path) -> None:
    for path in folder.glob("MANIFEST-*"):
        path.write_bytes(b"x" * 100)


def no_current(folder: Path) -> None:
    (folder / "CURRENT").write_bytes(b"")


@pytest.mark.parametrize("damage", [lose_a_table, cut_a_table, lose_the_manifest, overwrite_the_manifest, no_current])
def test_a_damaged_leveldb_is_refused(damage, tmp_path: Path, copies: Callable[[], int]) -> None:
    put_leveldb(tmp_path / "db", numbered(400))
    damage(tmp_path / "db")
    fails(tmp_path, "not a readable LevelDB", "copy or write it again")
    gc.collect()  # the error's frames
    assert copies() == 0


@pytest.mark.parametrize("budget", [1 << 30, STREAM], ids=["in-memory", "streamed"])
def test_damage_in_the_middle_names_the_record_before_it(budget: int, tmp_path: Path) -> None:
    put_leveldb(tmp_path / "db", numbered(600, (1, 16, 16)))  # the first half is a table of several blocks
    file = table(tmp_path / "db")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)
    fails(tmp_path, "not a readable LevelDB behind record '00000", "checksum", budget=budget)


def test_an_unreadable_folder_is_refused(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args, **options) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    fails(db, "Permission denied", "check its permissions and free space")
