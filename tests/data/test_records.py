"""Reading an LMDB's records as readers come and go."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from forcereg.data.lmdb_records import LmdbRecords
from tests.data.lmdbs import numbered, put_lmdb


def test_readers_of_one_file_go_on_by_themselves(tmp_path: Path) -> None:
    items = numbered(3)
    put_lmdb(tmp_path / "db", items)
    first, second = LmdbRecords(tmp_path / "db"), LmdbRecords(tmp_path / "db")
    assert first.identity == second.identity
    reader = second.read()
    assert next(reader) == items[0]
    del first
    assert [*reader] == items[1:]
    put_lmdb(tmp_path / "db", numbered(5))
    assert len(LmdbRecords(tmp_path / "db")) == 5


def files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_last_reader_closes_the_file(tmp_path: Path) -> None:
    put_lmdb(tmp_path / "db", numbered(3))
    before = files()
    reader = LmdbRecords(tmp_path / "db").read()
    assert next(reader) and files() == before + 1
    del reader
    assert files() == before


def test_threads_may_open_while_others_close(tmp_path: Path) -> None:
    put_lmdb(tmp_path / "db", numbered(3))
    errors: list[Exception] = []

    def come_and_go() -> None:
        try:
            for _ in range(300):
                assert len(LmdbRecords(tmp_path / "db")) == 3
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
