"""Data layers that can't give data (data.txt), and sources that break when they are read."""

from __future__ import annotations

import functools
import io
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from forcereg.schema import BlobProto, Datum
from tests.broken.case import Case, Content, broken, read_table
from tests.data.lmdbs import numbered, put_lmdb
from tests.data.pictures import png

LAYER = 'top: "data" top: "label" data_param {{ source: "{}" batch_size: 4 }}'


def _lmdb(*records: bytes) -> Callable[[], bytes]:
    """The data.mdb of these records."""

    def content() -> bytes:
        items = [(b"%08d" % number, record) for number, record in enumerate(records)]
        with tempfile.TemporaryDirectory() as folder:
            return (put_lmdb(Path(folder) / "db", items) / "data.mdb").read_bytes()

    return content


def _datum(**fields: Any) -> bytes:
    return Datum(**fields).SerializeToString()


def _hdf5() -> bytes:
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file["data"] = np.zeros((4, 3), np.float32)
        file["text"] = ["a", "b"]
        file.create_group("group")
        file.create_dataset("huge", (4, 1 << 40), "f4", chunks=(1, 1 << 10))
        file.create_dataset("rows", (1 << 40,), "f4", chunks=(1 << 10,))
    return image.getvalue()


def _windows(count: int = 1, window: str = "1 0.9 0 0 2 2", height: int = 4) -> str:
    return f"# 0\n0.png\n3\n{height}\n5\n{count}\n{window}\n"


GOOD = [record for _, record in numbered(4)]
NOISE = random.Random(1).randbytes(10_000)


@functools.cache
def _files() -> dict[str, Content]:
    """What the layers may name, good and bad."""
    negative = BlobProto(num=1, channels=-1, height=-1, width=4, data=[1, 2, 3, 4])
    return {
        "db/data.mdb": _lmdb(*GOOD)(),
        "empty/readme": "",
        "noise_db/data.mdb": NOISE,
        "cut_db/data.mdb": _lmdb(*GOOD)()[:9000],
        "empty_db/data.mdb": _lmdb()(),
        "noise_level/CURRENT": NOISE,
        "bad_db/data.mdb": _lmdb(b"\xff" * 9)(),
        "negative_db/data.mdb": _lmdb(_datum(channels=-2, height=-2, width=5, data=bytes(20)))(),
        "huge_db/data.mdb": _lmdb(_datum(channels=2**31 - 1, height=2**31 - 1, width=2**31 - 1, data=b"1"))(),
        "void_db/data.mdb": _lmdb(_datum(channels=0, height=4, width=5))(),
        "encoded_db/data.mdb": _lmdb(_datum(encoded=True, data=NOISE))(),
        "later_db/data.mdb": _lmdb(*GOOD, b"\xff" * 9)(),
        "later_size_db/data.mdb": _lmdb(*GOOD, _datum(channels=1, height=1, width=1, data=b"1"))(),
        "mean": BlobProto(num=1, channels=1, height=1, width=1, data=[1]).SerializeToString(),
        "negative_mean": negative.SerializeToString(),
        "noise": NOISE,
        "braces": "{" * 1_000_000,
        "empty.txt": "\n\n",
        "list.txt": "0.png 0\n1.png 1\n",
        "nolabels.txt": "0.png",
        "missing.txt": "7.png 0\n",
        "nul.txt": "a\0b.png 0\n",
        "noimage.txt": "noise 0\n",
        "later.txt": "0.png 0\nnoise 1\n",
        "later_size.txt": "0.png 0\n2.png 1\n",
        "0.png": png(np.zeros((3, 4, 5), np.uint8)),
        "1.png": png(np.ones((3, 4, 5), np.uint8)),
        "2.png": png(np.ones((3, 2, 2), np.uint8)),
        "part.h5": _hdf5(),
        "h5.txt": "part.h5\n",
        "windows": _windows(),
        "count_windows": _windows(count=999999999),
        "outside_windows": _windows(window="1 0.9 0 0 5 2"),
        "huge_windows": _windows(window="1e300 nan -1e300 0 1e300 2"),
        "small_windows": _windows(height=3),
    }


def _source(id: str, kind: str, text: str, expected: str) -> Case:
    text = text.replace("LONGNAME", "x" * 5000)
    return broken(id, kind, text, expected, (), 0, ("summary", "check", "train"), _files())


def _later(id: str, kind: str, text: str, expected: str) -> Case:
    """A source that is found broken when its records are read."""
    return broken(id, kind, text, expected, (), 0, ("check", "train"), _files())


IMAGES = 'top: "data" top: "label" image_data_param {{ source: "{}" batch_size: 2 }}'
READING = [
    _later("later-record-is-noise", "Data", LAYER.format("later_db"), "later_db: record '00000004': not a Datum"),
    _later("later-record-of-another-size", "Data", LAYER.format("later_size_db"), "record '00000004': is 1x1x1 uint8"),
    _later("later-image-is-noise", "ImageData", IMAGES.format("later.txt"), "later.txt:2: "),
    _later("later-image-of-another-size", "ImageData", IMAGES.format("later_size.txt"), "later_size.txt:2: "),
    _later(
        "terabytes-of-rows",
        "HDF5Data",
        'top: "rows" hdf5_data_param { source: "h5.txt" batch_size: 2 }',
        "'/rows' declares",
    ),
]

PREFETCH = IMAGES.format("list.txt") + " data_param { prefetch: 4294967295 }"
FINE = [
    broken("all-the-batches-ahead", "ImageData", PREFETCH, "Optimization Done", (), 0, ("train",), _files(), code=0)
]

CASES = [*read_table(__file__, _source), *READING, *FINE]
