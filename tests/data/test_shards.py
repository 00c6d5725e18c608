"""Data by several processes: together what one with a batch as large as theirs would take, in the same places."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forcereg.data.feed import DEFAULT_BUDGET, Feed, FeedContext, Shard
from forcereg.data.memory_data import MemoryFeed
from forcereg.errors import ForceregError
from forcereg.registry import source
from tests.data.lmdbs import data_spec, pictures, put_leveldb, put_lmdb
from tests.data.pictures import put_images
from tests.data.test_hdf5_data import write_files
from tests.data.test_window_data import IMAGES, png, window_file

AUGMENTED = "transform_param { crop_size: 3 mirror: true }"
DATABASE = 'type: "Data" ' + AUGMENTED + ' data_param { source: "db" batch_size: BATCH }'
PICTURES = 'type: "ImageData" ' + AUGMENTED + ' image_data_param { source: "list.txt" batch_size: BATCH shuffle: true }'
HDF5 = 'type: "HDF5Data" hdf5_data_param { source: "list.txt" batch_size: BATCH SHUFFLE }'


def put_windows(root: Path) -> None:
    """The images of the window feed's tests and w.txt."""
    for number, image in enumerate(IMAGES):
        (root / f"{number}.png").write_bytes(png(image))
    (root / "w.txt").write_text(window_file())


KINDS: dict[str, tuple[Callable[[Path], Any], str, int]] = {
    "data": (lambda root: put_lmdb(root / "db", pictures(11)), DATABASE, DEFAULT_BUDGET),
    "data-streamed": (lambda root: put_lmdb(root / "db", pictures(11)), DATABASE, 0),
    "leveldb-streamed": (lambda root: put_leveldb(root / "db", pictures(11)), DATABASE, 0),
    "images": (lambda root: put_images(root, 11), PICTURES, DEFAULT_BUDGET),
    "images-streamed": (lambda root: put_images(root, 11), PICTURES, 0),
    "hdf5": (lambda root: write_files(root, [5, 2, 1, 9]), HDF5.replace("SHUFFLE", ""), DEFAULT_BUDGET),
    "hdf5-one-file": (lambda root: write_files(root, [5, 2, 1, 9]), HDF5.replace("SHUFFLE", ""), 0),
    "hdf5-shuffled": (
        lambda root: write_files(root, [5, 2, 1, 9]), HDF5.replace("SHUFFLE", "shuffle: true"), DEFAULT_BUDGET,
    ),
    "hdf5-shuffled-one-file": (
        lambda root: write_files(root, [5, 2, 1, 9]), HDF5.replace("SHUFFLE", "shuffle: true"), 0,
    ),
}  # fmt: skip
ALL = pytest.mark.parametrize("kind", KINDS)


def make(root: Path, kind: str, batch: int, shard: Shard = Shard(), phase: str = "TRAIN") -> Feed:  # noqa: B008
    """One process's feed of a kind; its data is written when it isn't there."""
    put, text, budget = KINDS[kind]
    if not any(root.iterdir()):
        put(root)
    spec = data_spec(f'layer {{ name: "d" top: "data" top: "label" {text.replace("BATCH", str(batch))} }}', phase)
    return source.get(spec.type)(spec, FeedContext(root, torch.device("cpu"), 1, budget, 2, shard))


def interleaved(parts: list[tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
    """The records of one batch of each process in the order of their running index."""
    return [torch.stack(tops, 1).flatten(0, 1) for tops in zip(*parts, strict=True)]


def position(feed: Feed) -> dict[str, Any]:
    """Its state as plain values."""
    return {
        name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in feed.state_dict().items()
    }


@ALL
@pytest.mark.parametrize(("size", "batch"), [(2, 3), (4, 1), (3, 5)], ids=str)
def test_shards_are_the_rows_of_the_large_batch(kind: str, size: int, batch: int, tmp_path: Path) -> None:
    """Over several passes, with the draws of crop and mirror; all cursors stand where the one's does."""
    whole = make(tmp_path, kind, size * batch)
    shards = [make(tmp_path, kind, batch, Shard(rank, size)) for rank in range(size)]
    for _ in range(5):
        expected, parts = whole.next(), [shard.next() for shard in shards]
        for found, wanted in zip(interleaved(parts), expected, strict=True):
            assert torch.equal(found, wanted)
        assert all(position(shard) == position(whole) for shard in shards)


@ALL
def test_another_number_of_processes_goes_on(kind: str, tmp_path: Path) -> None:
    whole = make(tmp_path, kind, 4)
    shards = [make(tmp_path, kind, 2, Shard(rank, 2)) for rank in range(2)]
    for feed in (whole, *shards):
        feed.next()
    others = [make(tmp_path, kind, 1, Shard(rank, 4)) for rank in range(4)]
    for feed in others:
        feed.load_state_dict(shards[1].state_dict())
    for found, wanted in zip(interleaved([feed.next() for feed in others]), whole.next(), strict=True):
        assert torch.equal(found, wanted)


@ALL
@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("at", [0, 1], ids=["from-the-start", "later"])
def test_skipped_batches_are_those_that_would_have_come(kind: str, phase: str, at: int, tmp_path: Path) -> None:
    asked, skipping = make(tmp_path, kind, 3, phase=phase), make(tmp_path, kind, 3, phase=phase)
    for _ in range(at):
        asked.next()
        skipping.next()
    for count in (0, 2, 7):
        for _ in range(count):
            asked.next()
        skipping.skip(count)
        for found, wanted in zip(skipping.next(), asked.next(), strict=True):
            assert torch.equal(found, wanted)
    assert position(skipping) == position(asked)


def test_windows_are_drawn_for_all_processes(tmp_path: Path) -> None:
    """Each has its own background and foreground; together they are the large batch's."""
    put_windows(tmp_path)
    text = (
        'layer { name: "d" type: "WindowData" top: "data" top: "label" transform_param { crop_size: 8 mirror: true } '
        'window_data_param { source: "w.txt" batch_size: BATCH fg_fraction: 0.5 } }'
    )

    def feed(batch: int, shard: Shard) -> Feed:
        context = FeedContext(tmp_path, torch.device("cpu"), 1, 1 << 20, 2, shard)
        return source.get("WindowData")(data_spec(text.replace("BATCH", str(batch))), context)

    whole, shards = feed(12, Shard()), [feed(4, Shard(rank, 3)) for rank in range(3)]
    for _ in range(3):
        parts = [shard.next() for shard in shards]
        assert all((label[:2] == 0).all() and (label[2:] > 0).all() for _, label in parts)
        for found, wanted in zip(interleaved(parts), whole.next(), strict=True):
            assert torch.equal(found, wanted)


def test_random_dummy_data_differs_between_processes_only_in_training(tmp_path: Path) -> None:
    text = (
        'layer { name: "d" type: "DummyData" top: "x" dummy_data_param { shape { dim: 4 } '
        'data_filler { type: "gaussian" } } }'
    )

    def first(rank: int, skipped: int = 0) -> torch.Tensor:
        feed = source.get("DummyData")(
            data_spec(text), FeedContext(tmp_path, torch.device("cpu"), 1, shard=Shard(rank))
        )
        feed.skip(skipped)
        return feed.next()[0]

    assert not torch.equal(first(0), first(1))
    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(0), first(0, skipped=1))


def test_memory_data_skips_rows(tmp_path: Path) -> None:
    text = (
        'layer { name: "d" type: "MemoryData" top: "x" top: "y" '
        "memory_data_param { batch_size: 2 channels: 1 height: 1 width: 1 } }"
    )
    feed = MemoryFeed(data_spec(text), FeedContext(tmp_path, torch.device("cpu")))
    feed.skip(1)
    feed.set_arrays(np.arange(6).reshape(6, 1, 1, 1), np.arange(6))
    feed.skip(4)
    assert feed.next()[1].flatten().tolist() == [2, 3]


@ALL
def test_the_written_batch_may_be_that_of_all(kind: str, tmp_path: Path) -> None:
    whole = make(tmp_path, kind, 6)
    shards = [make(tmp_path, kind, 6, Shard(rank, 3, divide=True)) for rank in range(3)]
    assert [shard.shapes[0][0] for shard in shards] == [2, 2, 2]
    for found, wanted in zip(interleaved([shard.next() for shard in shards]), whole.next(), strict=True):
        assert torch.equal(found, wanted)
    with pytest.raises(
        ForceregError, match=r"'d': a batch of 6 can't be divided over 4 processes; use a multiple of 4"
    ):
        make(tmp_path, kind, 6, Shard(0, 4, divide=True))
