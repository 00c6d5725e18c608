"""Reading an LMDB's records as readers come and go."""

from __future__ import annotations

import os
import re
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forcereg.data.budget import DECODING
from forcereg.data.lmdb_records import LmdbRecords
from forcereg.data.opening import open_records
from forcereg.errors import ForceregError
from tests.data.lmdbs import make_feed, numbered, put_leveldb, put_lmdb
from tests.nursery import Nursery


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


OPERATION = st.tuples(st.booleans(), st.integers(0, 120), st.sampled_from([0, 1, 90, 2000, 2030, 2048, 5000, 70_000]))


@settings(max_examples=25)
@given(st.lists(st.lists(OPERATION, max_size=40), min_size=1, max_size=6), st.integers(3, 500), st.integers(0, 200))
def test_records_are_those_that_the_library_reads(
    transactions: list[list[tuple[bool, int, int]]], key_size: int, start: int
) -> None:
    """Whatever was put and deleted, in pages used again."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "db")
        with lmdb.open(str(path), map_size=1 << 28, sync=False) as env:
            for transaction in [[(True, 500, 7)], *transactions]:
                with env.begin(write=True) as txn:
                    for putting, number, size in transaction:
                        key = b"%03d" % number + b"k" * (key_size - 3)
                        txn.put(key, b"%d" % number * size) if putting else txn.delete(key)
            with env.begin() as txn:
                expected = list(txn.cursor())
        records = LmdbRecords(path)
        assert records.count() == len(expected)
        assert list(records.read()) == expected
        assert list(records.read(start)) == expected[start % len(expected) :]


def test_many_pages_are_read_from_anywhere(tmp_path: Path) -> None:
    items = [(b"%06d" % number, b"%d" % number * (number % 97)) for number in range(5000)]
    put_lmdb(tmp_path / "db", items)
    records = LmdbRecords(tmp_path / "db")
    assert records._depth == 3 and list(records.read()) == items
    for start in (0, 1, 17, 2500, 4999, 5003):
        assert next(records.read(start)) == items[start % 5000] and records.key(start) == items[start % 5000][0]


def damaged(path: Path, at: int, data: bytes) -> None:
    with open(path / "data.mdb", "r+b") as file:
        file.seek(at)
        file.write(data)


DAMAGE = {
    "magic": (16, b"\0", "page 0 of data.mdb is no header"),
    "the second header": (4096 + 10, b"\1", "page 1 of data.mdb is no header"),
    "version": (20, b"\2", "its format has version 2, expected 1"),
    "pages": (40, b"\1", "pages of 4097 bytes"),
    "kind": (4096 + 92, b"\4", "a table of another kind"),
    "depth": (4096 + 94, b"\x63", "99 levels of pages"),
    "root": (4096 + 128, b"\xff\xff", "page 65535 of 11 is named"),
    "last page": (4096 + 136, b"\xff", "its header promises 1048576"),
    "entries": (4096 + 120, b"\x09", "8 records, its header promises 9"),
    "fewer entries": (4096 + 120, b"\x07", "more than the 7 records that its header promises"),
    "leaf": (2 * 4096 + 10, b"\1", "page 2 is no leaf"),
    "number": (2 * 4096, b"\3", "page 2 is no leaf"),
    "bounds": (2 * 4096 + 12, b"\0\xff", "page 2 has"),
    "node": (2 * 4096 + 16, b"\xff\xff", "page 2 has a node outside of it"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_line_that_says_where(damage: str, tmp_path: Path) -> None:
    at, data, expected = DAMAGE[damage]
    put_lmdb(tmp_path / "db", numbered(8, (1, 50, 60)))
    damaged(tmp_path / "db", at, data)
    with pytest.raises(ForceregError, match=rf"/db: not a readable LMDB \(.*{expected}.*copy or write it again"):
        list(LmdbRecords(tmp_path / "db").read())


@pytest.mark.parametrize("budget", [0, 1 << 30], ids=["streamed", "in memory"])
def test_more_records_than_promised_end_a_feed_in_one_line(budget: int, tmp_path: Path) -> None:
    put_lmdb(tmp_path / "db", numbered(300))
    damaged(tmp_path / "db", 4096 + 120, struct.pack("<Q", 271))
    feed = make_feed(tmp_path, batch=32, budget=budget)
    with pytest.raises(ForceregError, match="more than the 271 records that its header promises"):
        for _ in range(12):
            feed.next()
    feed.close()


def test_a_circle_of_branches_ends(tmp_path: Path) -> None:
    items = [(b"%06d" % number, bytes(1000)) for number in range(1000)]
    put_lmdb(tmp_path / "db", items)
    records = LmdbRecords(tmp_path / "db")
    root = bytearray((tmp_path / "db/data.mdb").read_bytes()[records._root * 4096 :][:4096])
    (first, second) = struct.unpack_from("<HH", root, 16)
    struct.pack_into("<HHH", root, second, *struct.unpack_from("<HHH", root, first))
    damaged(tmp_path / "db", records._root * 4096, root)
    for start in (0, 999):
        with pytest.raises(ForceregError, match=r"out of order|circle"):
            list(LmdbRecords(tmp_path / "db").read(start))


def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    put_lmdb(tmp_path / "db", numbered(300, (3, 20, 30)))
    reader = LmdbRecords(tmp_path / "db").read()
    assert next(reader)
    os.truncate(tmp_path / "db/data.mdb", 4096 * 100)
    with pytest.raises(ForceregError, match=r"data\.mdb was cut to \d+ bytes while it was read"):
        list(reader)


def test_a_record_larger_than_the_budget_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_lmdb(tmp_path / "db", [(b"0", b"x"), (b"1", bytes(3 << 20))])
    monkeypatch.setattr(DECODING, "limit", 2 << 20)
    with pytest.raises(ForceregError, match=r"/db: record '1': its value takes 3 MiB .*--decode-budget"):
        list(LmdbRecords(tmp_path / "db").read())


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path), os.mkdir])
@pytest.mark.parametrize("name", ["data.mdb", "CURRENT", "000003.log"])
def test_what_is_no_file_is_not_waited_for(make: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    if name == "000003.log":
        put_leveldb(tmp_path / "db", numbered(4))
        name = next(path.name for path in (tmp_path / "db").iterdir() if path.suffix == ".log")
        (tmp_path / "db" / name).unlink()
    make(tmp_path / "db" / name)
    with pytest.raises(ForceregError, match=r"/db.*it is a|no LMDB at .*/db"):
        open_records(tmp_path / "db")


SOLVER = """
net_param { name: "n"
  layer { name: "d" type: "Data" top: "data" top: "label" data_param { source: "db" batch_size: 8 prefetch: 1 } }
  layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 10 } }
  layer { name: "l" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" } }
base_lr: 0.00001 lr_policy: "fixed" max_iter: 100000 snapshot: 20 snapshot_prefix: "s" solver_mode: CPU
"""


def test_a_database_cut_while_training_ends_in_one_line(tmp_path: Path, nursery: Nursery) -> None:
    put_lmdb(tmp_path / "db", numbered(4000, (1, 30, 30)))
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    out, err = tmp_path / "out", tmp_path / "err"
    args = ("-m", "forcereg", "train", "--solver", "solver.prototxt", "--data-budget", "1")
    child = nursery.start(*args, cwd=tmp_path, out=out, err=err)
    try:
        while not (tmp_path / "s_iter_40.solverstate").exists():
            assert child.poll() is None, err.read_text()
            time.sleep(0.01)
        os.truncate(tmp_path / "db/data.mdb", 4096 * 200)
        assert child.wait() == 1
    finally:
        child.kill()
    last = err.read_text().splitlines()[-1]
    assert re.fullmatch(
        r"forcereg: .*layer 'd': .*/db: not a readable LMDB \(data\.mdb was cut to \d+ bytes while it was read\); "
        r"copy or write it again; the last good snapshot is .*/s_iter_\d+\.caffemodel",
        last,
    ), last
