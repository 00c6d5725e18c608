"""Small databases and the feeds over them.

What they are written with is loaded where it is used: without it (a machine with a GPU may have little beside torch)
the test that asks for a database is skipped, and all others run.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from google.protobuf import text_format

from forcereg.data.database import DatabaseFeed, database_feed
from forcereg.data.feed import DEFAULT_BUDGET, FeedContext
from forcereg.schema import TEST, TRAIN, Datum, NetParameter
from forcereg.schema.spec import LayerSpec

if TYPE_CHECKING:
    from PIL import Image

Records = Iterable[tuple[bytes, bytes]]


def put_lmdb(path: Path, records: Records) -> Path:
    """Write records with the lmdb package alone, in the order given."""
    lmdb = pytest.importorskip("lmdb")
    path.parent.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(path), map_size=1 << 28) as env, env.begin(write=True) as txn:
        for key, value in records:
            txn.put(key, value)
    return path


def put_leveldb(path: Path, records: Records) -> Path:
    """Write records with plyvel alone; the first half ends up in a table, the rest in the log."""
    plyvel = pytest.importorskip("plyvel")
    path.parent.mkdir(parents=True, exist_ok=True)
    items = list(records)
    for part in (items[: len(items) // 2], items[len(items) // 2 :]):
        with closing(plyvel.DB(str(path), create_if_missing=True)) as db, db.write_batch() as batch:
            for key, value in part:
                batch.put(key, value)
    return path


def encoded(image: Image.Image, label: int = 0, kind: str = "JPEG") -> bytes:
    """A serialized Datum with an image file inside."""
    file = io.BytesIO()
    image.save(file, kind)
    return Datum(encoded=True, data=file.getvalue(), label=label).SerializeToString()


def pictures(count: int, size: tuple[int, int] = (20, 16), classes: int = 10) -> list[tuple[bytes, bytes]]:
    """`count` records of JPEGs of seeded noise, `size` = (height, width); labels count up."""
    image_of = pytest.importorskip("PIL.Image").fromarray
    random = np.random.default_rng(count)
    images = random.integers(0, 256, (count, *size, 3), np.uint8)
    return [(b"%08d" % i, encoded(image_of(image), i % classes)) for i, image in enumerate(images)]


def raw(image: np.ndarray, label: int = 0) -> bytes:
    """A serialized Datum of (C, H, W) pixels, uint8 or float32."""
    channels, height, width = image.shape
    datum = Datum(channels=channels, height=height, width=width, label=label)
    if image.dtype == np.uint8:
        datum.data = image.tobytes()
    else:
        datum.float_data.extend(image.ravel().tolist())
    return datum.SerializeToString()


def numbered(count: int, shape: tuple[int, int, int] = (1, 4, 5), classes: int = 10) -> list[tuple[bytes, bytes]]:
    """`count` records of seeded noise; labels count up."""
    random = np.random.default_rng(count)
    images = random.integers(0, 256, (count, *shape), np.uint8)
    return [(b"%08d" % i, raw(image, i % classes)) for i, image in enumerate(images)]


def data_spec(text: str, phase: str = "TEST", where: str = "net.prototxt:1: layer 'd'") -> LayerSpec:
    """The spec of the one layer in prototxt `text`."""
    message: Any = text_format.Parse(text, NetParameter()).layer[0]
    number = TRAIN if phase == "TRAIN" else TEST
    return LayerSpec(message.name, message.type, (), tuple(message.top), message, where, number)


def make_feed(
    root: Path,
    transform: str = "",
    batch: int = 3,
    phase: str = "TEST",
    budget: int = DEFAULT_BUDGET,
    seed: int | None = 1,
    source: str = "db",
    tops: str = 'top: "data" top: "label"',
    data: str = "backend: LMDB",
    workers: int = 0,
) -> DatabaseFeed:
    """The feed over root/`source` with the text `transform` inside transform_param."""
    text = (
        f'layer {{ name: "d" type: "Data" {tops} transform_param {{ {transform} }} '
        f'data_param {{ source: "{source}" batch_size: {batch} {data} }} }}'
    )
    return database_feed(data_spec(text, phase), FeedContext(root, torch.device("cpu"), seed, budget, workers))


def batches(feed: DatabaseFeed, count: int) -> list[tuple[torch.Tensor, ...]]:
    """The next `count` batches."""
    return [feed.next() for _ in range(count)]
