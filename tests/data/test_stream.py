"""Sets larger than the memory they may take: the same batches as in memory, in bounded memory, by several threads."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from forcereg.data import prefetch, stream
from forcereg.data.database import DatabaseFeed, database_feed
from forcereg.data.decoded import Resident
from forcereg.data.feed import FeedContext
from forcereg.data.mean import write_mean
from forcereg.data.stream import Stream
from forcereg.errors import ForceregError
from forcereg.schema import Datum
from tests.data.lmdbs import (
    Records,
    batches,
    data_spec,
    encoded,
    make_feed,
    numbered,
    pictures,
    put_leveldb,
    put_lmdb,
    raw,
)
from tests.data.test_prefetch import eventually

STREAM = 0
AUGMENTED = "crop_size: 13 mirror: true scale: 0.5"
Put = Callable[[Path, Records], Path]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("put", [put_lmdb, put_leveldb])
@pytest.mark.parametrize(
    ("transform", "phase"),
    [
        ("", "TRAIN"),
        (AUGMENTED, "TRAIN"),
        (AUGMENTED + " mean_value: 104 mean_value: 117 mean_value: 123", "TRAIN"),
        (AUGMENTED + " mean_file: 'mean'", "TRAIN"),
        (AUGMENTED + " mean_file: 'mean'", "TEST"),
        ("crop_size: 13 mean_file: 'mean'", "TEST"),
        ("mirror: true mean_file: 'mean'", "TEST"),
        ("force_gray: true crop_size: 8", "TRAIN"),
    ],
    ids=str,
)
def test_encoded_sets_stream_as_in_memory(transform: str, phase: str, put: Put, workers: int, tmp_path: Path) -> None:
    put(tmp_path / "db", pictures(23))
    write_mean(tmp_path / "mean", np.random.default_rng(0).random((3, 20, 16), np.float32) * 200)
    one, other = (make_feed(tmp_path, transform, 5, phase, budget, workers=workers) for budget in (1 << 20, STREAM))
    for expected, found in zip(batches(one, 14), batches(other, 14), strict=True):
        for a, b in zip(expected, found, strict=True):
            assert torch.equal(a, b)
    assert isinstance(one._source, Resident) and isinstance(other._source, Stream)
    states = [feed.state_dict() for feed in (one, other)]
    assert states[0]["cursor"] == states[1]["cursor"] == 14 * 5 % 23
    if "generator" in states[0]:
        assert torch.equal(states[0]["generator"], states[1]["generator"])


@pytest.mark.parametrize("put", [put_lmdb, put_leveldb])
@pytest.mark.parametrize("at", [0, 3, 5, 9, 23])
@pytest.mark.parametrize("budgets", [(STREAM, STREAM), (1 << 20, STREAM), (STREAM, 1 << 20)], ids=str)
def test_resume_is_exact_with_several_workers(at: int, budgets: tuple[int, int], put: Put, tmp_path: Path) -> None:
    put(tmp_path / "db", pictures(23))
    feed, resumed = (make_feed(tmp_path, AUGMENTED, 5, "TRAIN", budget, workers=3) for budget in budgets)
    batches(feed, at)
    state = {key: np.asarray(value) for key, value in feed.state_dict().items()}
    batches(resumed, 2)
    resumed.load_state_dict(state)
    for a, b in zip(batches(feed, 8), batches(resumed, 8), strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_going_on_does_not_start_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_lmdb(tmp_path / "db", pictures(9))
    started = []
    monkeypatch.setattr(stream, "Prefetch", lambda *args: started.append(1) or prefetch.Prefetch(*args))
    feed = make_feed(tmp_path, AUGMENTED, 4, "TRAIN", STREAM)
    batches(feed, 5)
    feed.load_state_dict(feed.state_dict())
    batches(feed, 2)
    assert len(started) == 1
    feed.load_state_dict({"cursor": 0})
    batches(feed, 2)
    assert len(started) == 2


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("put", [put_lmdb, put_leveldb])
@pytest.mark.parametrize(
    ("damaged", "expected"),
    [
        (lambda: b"\xff\xff", "not a Datum"),
        (lambda: Datum(encoded=True, data=b"\xff\xd8 no").SerializeToString(), "cannot be decoded"),
        (lambda: pictures(1)[0][1][:-300], "not a Datum"),
        (lambda: pictures(1, (9, 16))[0][1], "3x9x16"),
        (lambda: encoded(pytest.importorskip("PIL.Image").new("L", (16, 20))), "1x20x16"),
    ],
    ids=["no Datum", "no image", "cut", "other size", "other channels"],
)
def test_a_damaged_record_in_the_middle_is_named(
    damaged: Callable[[], bytes], expected: str, put: Put, workers: int, tmp_path: Path
) -> None:
    records = pictures(40)
    records[17] = (b"00000017", damaged())
    put(tmp_path / "db", records)
    feed = make_feed(tmp_path, AUGMENTED, 5, "TRAIN", STREAM, workers=workers)
    batches(feed, 3)
    for _ in range(2):
        with pytest.raises(ForceregError, match=rf"^net.prototxt:1: layer 'd': db: record '00000017': .*{expected}"):
            feed.next()
    feed.load_state_dict({"cursor": 18})
    assert feed.next()[1].tolist() == [8, 9, 0, 1, 2]


def test_random_crops_of_images_of_several_sizes_fit_each(tmp_path: Path) -> None:
    """Every image is 1 where a 3x3 crop may lie at all, so a crop beyond its border would show or fail."""
    sizes = [(3, 3), (9, 4), (4, 11), (3, 8)]
    put_lmdb(tmp_path / "db", [(b"%d" % i, raw(np.ones((1, *size), np.uint8), i)) for i, size in enumerate(sizes)])
    feed = make_feed(tmp_path, "crop_size: 3 mirror: true", 4, "TRAIN")
    for images, labels in batches(feed, 30):
        assert images.min() == 1 and labels.tolist() == [0, 1, 2, 3]
    assert isinstance(feed._source, Stream)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_batches_larger_than_the_set(count: int, tmp_path: Path) -> None:
    put_leveldb(tmp_path / "db", numbered(count))
    feed = make_feed(tmp_path, batch=20, budget=STREAM)
    labels = torch.cat([labels for _, labels in batches(feed, 3)])
    assert labels.tolist() == [i % count for i in range(60)]


def test_a_batch_belongs_to_the_caller(tmp_path: Path) -> None:
    put_lmdb(tmp_path / "db", pictures(23))
    expected = [[tensor.clone() for tensor in batch] for batch in batches(make_feed(tmp_path, AUGMENTED, 5), 12)]
    feed = make_feed(tmp_path, AUGMENTED, 5, budget=STREAM)
    held = batches(feed, 6)
    for batch in batches(feed, 6):
        for tensor in batch:
            tensor.zero_()
    for a, b in zip(expected[:6], held, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    places = set()
    for _ in range(20):
        places.add(feed.next()[0].data_ptr())
    assert len(places) <= 2


@pytest.mark.parametrize("ahead", [1, 3])
def test_batches_in_existence_are_counted(ahead: int, tmp_path: Path) -> None:
    """No more crops than of `prefetch` batches, the one being handed out and one that the worker still lets go."""
    put_lmdb(tmp_path / "db", pictures(50))
    feed = make_feed(tmp_path, AUGMENTED, 4, "TRAIN", STREAM, data=f"prefetch: {ahead}", workers=1)
    places = set()
    for _ in range(60):
        feed.next()
        # where other work has the cores, the next `next` would come before the worker has done anything
        eventually(lambda: len(_waiting(feed)) >= ahead)
        waiting = _waiting(feed)
        assert len(waiting) <= ahead
        places |= waiting
    assert ahead <= len(places) <= ahead + 2


def _waiting(feed: DatabaseFeed) -> set[int]:
    """Where the crops of the batches ahead are."""
    assert isinstance(feed._source, Stream) and feed._source._prefetch is not None
    line = feed._source._prefetch._line
    with line.room:
        return {batch.job.result.memory.data_ptr() for batch in line.batches if batch.job}


MEMORY = """
import re, sys, torch
from pathlib import Path
from tests.data.lmdbs import make_feed
torch.set_num_threads(1)
def private():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
feed = make_feed(Path(sys.argv[1]), "crop_size: 227 mirror: true mean_value: 120", 16, "TRAIN", 32 << 20, workers=3)
before = private()
print(max(private() - before for _ in range(125) if feed.next()))
"""


def test_memory_stays_bounded_over_a_set_of_ten_times_the_budget(tmp_path: Path) -> None:
    """2000 images of 192 KiB stream past in less than a quarter of their size: 4 batches, outputs, threads."""
    square = np.linspace(0, 255, 256 * 256 * 3, dtype=np.uint8).reshape(256, 256, 3)
    value = encoded(pytest.importorskip("PIL.Image").fromarray(square))
    put_lmdb(tmp_path / "db", [(b"%08d" % i, value) for i in range(2000)])
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2000 * 192 / 1024 / 4


@pytest.mark.parametrize("put", [put_lmdb, put_leveldb])
def test_nothing_is_left_when_a_feed_goes(put: Put, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    put(tmp_path / "db", pictures(9))
    feed = make_feed(tmp_path, AUGMENTED, 4, "TRAIN", STREAM, workers=2)
    feed.next()
    threads = set(threading.enumerate()) - before
    assert len(threads) == 3
    gc.disable()
    try:
        del feed
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
    finally:
        gc.enable()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_on_the_gpu_are_those_of_the_cpu(tmp_path: Path) -> None:
    put_lmdb(tmp_path / "db", pictures(23))
    write_mean(tmp_path / "mean", np.random.default_rng(0).random((3, 20, 16), np.float32) * 200)
    text = (
        'layer { name: "d" type: "Data" top: "data" top: "label" transform_param { crop_size: 13 mirror: true '
        "mean_file: 'mean' } data_param { source: 'db' batch_size: 5 } }"
    )
    spec = data_spec(text, "TRAIN")
    ours, theirs, resident = (
        database_feed(spec, FeedContext(tmp_path, torch.device(device), 1, budget, 3))
        for device, budget in (("cpu", STREAM), ("cuda", STREAM), ("cuda", 1 << 20))
    )
    for _ in range(20):
        for a, b, c in zip(ours.next(), theirs.next(), resident.next(), strict=True):
            assert b.is_cuda and torch.equal(a, b.cpu()) and torch.equal(b, c)
