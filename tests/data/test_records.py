"""Reading an LMDB's records: one environment per file, opened and closed as readers come and go."""

from __future__ import annotations

import threading
from pathlib import Path

from forcereg.data import records
from forcereg.data.records import LmdbRecords
from tests.data.lmdbs import numbered, put_lmdb


def test_readers_of_one_file_share_an_environment_that_the_last_one_closes(tmp_path: Path) -> None:
    items = numbered(3)
    put_lmdb(tmp_path / "db", items)
    first, second = LmdbRecords(tmp_path / "db"), LmdbRecords(tmp_path / "db")
    (opened,) = [entry for entry in records._open.values() if entry.handle is first._env]
    assert opened.users == 2
    del first
    assert opened.users == 1 and list(second.read()) == items
    del second
    assert opened not in records._open.values()
    put_lmdb(tmp_path / "db", numbered(5))  # LMDB refuses while the file is open in this process
    assert len(LmdbRecords(tmp_path / "db")) == 5


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
