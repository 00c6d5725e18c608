"""Where nan and infinite values are in a source: record, dataset and row, or item; nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.data import test_hdf5_data, test_memory_data
from tests.data.lmdbs import make_feed, numbered, put_leveldb, put_lmdb, raw
from tests.data.pictures import make_images, put_images

BAD = pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)


def floats(rows: int, row: int, value: float) -> np.ndarray:
    """Rows (1, 2, 3) of ones with one `value` in `row`."""
    values = np.ones((rows, 1, 2, 3), np.float32)
    values[row, 0, 1, 2] = value
    return values


@BAD
@pytest.mark.parametrize("put", [put_lmdb, put_leveldb], ids=["lmdb", "leveldb"])
def test_the_record_is_named(tmp_path: Path, put: Callable[..., Path], value: float) -> None:
    put(tmp_path / "db", [(b"%d" % number, raw(image)) for number, image in enumerate(floats(7, 5, value))])
    feed = make_feed(tmp_path)
    before = feed.state_dict()
    assert feed.find_nonfinite() == feed.find_nonfinite(6) == f"db: record '5': {value:g}"
    assert feed.find_nonfinite(5) is None
    assert feed.state_dict() == before


@BAD
@pytest.mark.parametrize("piece", [1 << 24, 40], ids=["whole", "in-pieces"])
def test_file_dataset_and_row_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, piece: int
) -> None:
    monkeypatch.setattr("forcereg.data.hdf5_data.PIECE", piece)
    test_hdf5_data.write_files(tmp_path, [3, 8])
    with h5py.File(tmp_path / "part1.h5", "a") as file:
        file["data"][5, 1, 2] = value
    feed = test_hdf5_data.make_feed(tmp_path, "batch_size: 2 shuffle: true")
    first = feed.next()[1].tolist()
    assert feed.find_nonfinite() == feed.find_nonfinite(9) == f"part1.h5: dataset 'data', row 5: {value:g}"
    assert feed.find_nonfinite(8) is None
    again = test_hdf5_data.make_feed(tmp_path, "batch_size: 2 shuffle: true")
    assert [first, feed.next()[1].tolist()] == [again.next()[1].tolist(), again.next()[1].tolist()]


def test_a_value_beyond_float32_is_infinite(tmp_path: Path) -> None:
    test_hdf5_data.write_files(tmp_path, [4])
    with h5py.File(tmp_path / "part0.h5", "a") as file:
        del file["label"]
        file["label"] = np.array([0, 1, 1e300, 3])
    assert test_hdf5_data.make_feed(tmp_path).find_nonfinite() == "part0.h5: dataset 'label', row 2: inf"


@BAD
def test_the_item_of_an_array_is_named(value: float) -> None:
    feed = test_memory_data.make_feed()
    assert feed.find_nonfinite() is None
    data, labels = test_memory_data.arrays(6)
    data[4, 0, 1, 1] = value
    feed.set_arrays(data, labels)
    assert feed.find_nonfinite() == f"net.prototxt:1: layer 'd': array 'data', item 4: {value:g}"
    assert feed.find_nonfinite(4) is None


def test_bytes_are_finite(tmp_path: Path) -> None:
    put_lmdb(tmp_path / "db", numbered(3))
    put_images(tmp_path, 3)
    assert make_feed(tmp_path).find_nonfinite() is None
    assert make_images(tmp_path).find_nonfinite() is None
