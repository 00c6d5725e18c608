"""LMDBs and LevelDBs that are damaged: read as far as they go, or refused in one line."""

from __future__ import annotations

import os
import random
import shutil
import struct
from itertools import islice
from pathlib import Path

from forcereg.data.opening import open_records
from forcereg.errors import ForceregError
from tests.data.lmdbs import make_feed, numbered, pictures, put_leveldb, put_lmdb
from tests.fuzz.hostile import mangled

PAGE = 4096
KINDS = ("small", "large", "deep", "images", "leveldb")
NUMBERS = (0, 1, 2, 3, 4, 7, 15, 16, 17, 255, 4095, 4096, 65535, 1 << 31, 1 << 47, (1 << 63) - 1, (1 << 64) - 1)


def prepare(folder: Path) -> None:
    """One database of each kind: values in leaves, values in pages of their own, three levels, images."""
    chance = random.Random(0)
    put_lmdb(folder / "small", numbered(300))
    put_lmdb(folder / "large", numbered(40, (3, 40, 50)))
    keys = [b"%05d" % number + chance.randbytes(400).replace(b"\0", b"1") for number in range(400)]
    put_lmdb(folder / "deep", [(key, value) for key, (_, value) in zip(keys, numbered(400, (1, 2, 2)), strict=True)])
    put_lmdb(folder / "images", pictures(60))
    put_leveldb(folder / "leveldb", numbered(300))


def attempt(chance: random.Random, folder: Path) -> None:
    kind, trial = chance.choice(KINDS), folder / "trial"
    shutil.rmtree(trial, ignore_errors=True)
    shutil.copytree(folder / kind, trial)
    if kind == "leveldb":
        names = sorted(name for name in os.listdir(trial) if name != "LOCK")
        path = trial / chance.choice(names)
        path.write_bytes(mangled(chance, path.read_bytes()))
    else:
        path = trial / "data.mdb"
        data = bytearray(path.read_bytes())
        for _ in range(chance.choice((1, 1, 1, 2, 5))):
            edit(chance, data)
        path.write_bytes(data)
    used = 0
    try:
        records = open_records(trial)
        start = chance.choice((0, 0, 1, 150, 299, 10**9))
        for key, value in islice(records.read(start), 10_000):
            assert isinstance(key, bytes) and isinstance(value, bytes)
            used += 1
        assert used <= (records.count() or 0)
    except ForceregError as error:
        assert "\n" not in str(error)
    feed = None
    try:
        feed = make_feed(folder, source="trial", batch=32, budget=chance.choice((0, 1 << 30)), workers=1)
        for _ in range(12):
            feed.next()
    except ForceregError as error:
        assert "\n" not in str(error)
    if feed is not None:
        feed.close()


def edit(chance: random.Random, data: bytearray) -> None:
    """One damage to an LMDB's file."""
    pages = len(data) // PAGE
    if not pages:
        return
    at = chance.randrange(pages) * PAGE
    what = chance.randrange(8)
    if what == 0:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif what == 1:
        del data[chance.randrange(len(data)) :]
    elif what == 2:  # a page's number, flags, bounds
        offset, form = chance.choice(((0, "<Q"), (10, "<H"), (12, "<H"), (14, "<H"), (12, "<I")))
        put(chance, data, at + offset, form)
    elif what == 3:  # where a node is
        put(chance, data, at + 16 + 2 * chance.randrange(8), "<H")
    elif what == 4:  # a node's head: sizes, flags, child
        (node,) = struct.unpack_from("<H", data, at + 16 + 2 * chance.randrange(8))
        put(chance, data, at + node + 2 * chance.randrange(4), "<H")
    elif what == 5:  # a header's table: flags, depth, counts, root; its last page, its transaction
        tables = ((40, "<I"), (92, "<H"), (94, "<H"), *((96 + 8 * number, "<Q") for number in range(7)))
        offset, form = chance.choice(tables)
        put(chance, data, chance.randrange(2) * PAGE + offset, form)
    elif what == 6:  # one page in another's place, perhaps with its number
        other = chance.randrange(pages) * PAGE
        data[at : at + PAGE] = data[other : other + PAGE]
        if chance.random() < 0.5:
            struct.pack_into("<Q", data, at, at // PAGE)
    else:  # pages that are no more on the disk
        data[at : at + PAGE * chance.randint(1, 9)] = bytes(len(data[at : at + PAGE * 9]))


def put(chance: random.Random, data: bytearray, at: int, form: str) -> None:
    size = struct.calcsize(form)
    if at + size <= len(data):
        (old,) = struct.unpack_from(form, data, at)
        values = (chance.choice(NUMBERS), old + chance.choice((-2, -1, 1, 2, 100)), chance.getrandbits(8 * size))
        struct.pack_into(form, data, at, chance.choice(values) % (1 << 8 * size))
