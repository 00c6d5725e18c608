"""The Data layer's feed: Caffe's recorded batches, order, resume, streaming, and every refusal."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from forcereg.data.database import DatabaseFeed, database_feed
from forcereg.data.decoded import Resident
from forcereg.data.feed import FeedContext
from forcereg.data.mean import write_mean
from forcereg.data.stream import Stream
from forcereg.errors import ForceregError
from forcereg.registry import source
from forcereg.schema import Datum
from tests.data.lmdbs import Records, batches, data_spec, make_feed, numbered, put_leveldb, put_lmdb, raw
from tests.golden_cases import Case, golden_cases

STREAM = 0  # a budget that nothing fits
AUGMENTED = "crop_size: 3 mirror: true scale: 0.5 mean_value: 7"


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """A folder whose LMDB `db` has 10 records of 1x4x5 pixels, labels 0 to 9."""
    put_lmdb(tmp_path / "db", numbered(10))
    return tmp_path


def golden_feed(case: Case, root: Path, budget: int, put: Callable[[Path, Records], object]) -> DatabaseFeed:
    def pieces(name: str) -> list[bytes]:
        ends = np.cumsum(case.load(f"db/{name}_lengths"))
        whole = case.load(f"db/{name}_bytes").tobytes()
        return [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    put(root / "db_lmdb", zip(pieces("keys"), pieces("datums"), strict=True))
    mean = case.tree("mean")
    if mean:
        (root / "mean.binaryproto").write_bytes(mean["binaryproto"].tobytes())
    spec = data_spec(case.attrs["prototxt"], case.attrs["phase"])
    return database_feed(spec, FeedContext(root, torch.device("cpu"), 1, budget))


@pytest.mark.parametrize("put", [put_lmdb, put_leveldb])
@pytest.mark.parametrize("budget", [1 << 30, STREAM], ids=["in-memory", "streamed"])
@pytest.mark.parametrize("case", golden_cases("data", lambda case: case.id.startswith("lmdb_")))
def test_batches_are_caffes(case: Case, budget: int, put: Callable[[Path, Records], object], tmp_path: Path) -> None:
    feed = golden_feed(case, tmp_path, budget, put)
    for number in (1, 2, 3):
        for top, shape, tensor in zip(feed.tops, feed.shapes, feed.next(), strict=True):
            expected = case.load(f"pass_{number}/{top}")
            assert tensor.dtype == torch.float32
            assert shape == expected.shape
            atol = 2 if case.id == "lmdb_jpg" else 1e-6
            np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-5, atol=atol)


def test_data_layer_is_registered() -> None:
    assert source.get("Data") is database_feed


def test_an_in_memory_batch_belongs_to_the_caller(db: Path) -> None:
    feed = make_feed(db, batch=10)
    first = [tensor.clone() for tensor in feed.next()]
    for tensor in feed.next():
        tensor.zero_()
    for before, after in zip(first, feed.next(), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("batch", [1, 3, 10, 23])
@pytest.mark.parametrize("count", [1, 10, 700])
def test_streamed_equals_in_memory(batch: int, count: int, tmp_path: Path) -> None:
    put_lmdb(tmp_path / "db", numbered(count))
    one, other = (make_feed(tmp_path, AUGMENTED, batch, "TRAIN", budget=budget) for budget in (1 << 20, STREAM))
    for expected, found in zip(batches(one, 80), batches(other, 80), strict=True):
        for a, b in zip(expected, found, strict=True):
            assert torch.equal(a, b)
    assert one.state_dict()["cursor"] == other.state_dict()["cursor"] == 80 * batch % count


def test_labels_follow_the_keys_and_wrap(db: Path) -> None:
    labels = torch.cat([labels for _, labels in batches(make_feed(db, batch=4), 6)])
    assert labels.tolist() == [i % 10 for i in range(24)]


@pytest.mark.parametrize(("budget", "kind"), [(199, Stream), (200, Resident)])
def test_the_budget_decides(budget: int, kind: type, db: Path) -> None:
    feed = make_feed(db, budget=budget)  # 10 records of 20 bytes
    feed.next()
    assert isinstance(feed._source, kind)


def test_floats_take_four_bytes_of_the_budget(tmp_path: Path) -> None:
    put_lmdb(tmp_path / "db", [(b"0", raw(np.full((1, 2, 2), 1.5, np.float32)))])
    feeds = [make_feed(tmp_path, budget=budget) for budget in (15, 16)]
    kinds = []
    for feed in feeds:
        assert feed.next()[0].unique().tolist() == [1.5]
        kinds.append(type(feed._source))
    assert kinds == [Stream, Resident]


def test_feeds_over_one_file_share_the_decoded_set(db: Path) -> None:
    train, test = make_feed(db, phase="TRAIN"), make_feed(db, batch=5)
    train.next(), test.next()
    assert isinstance(train._source, Resident) and isinstance(test._source, Resident)
    assert train._source.shared is test._source.shared


def test_a_streaming_feed_that_is_dropped_ends_its_thread(db: Path) -> None:
    before = set(threading.enumerate())
    feed = make_feed(db, budget=STREAM)
    feed.next()
    threads = set(threading.enumerate()) - before
    del feed
    for thread in threads:
        thread.join(timeout=30)
    assert threads and not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("budget", [1 << 20, STREAM], ids=["in-memory", "streamed"])
@pytest.mark.parametrize("as_arrays", [False, True], ids=["tensors", "arrays"])
def test_resume_is_exact_mid_epoch(budget: int, as_arrays: bool, db: Path) -> None:
    feed = make_feed(db, AUGMENTED, 4, "TRAIN", budget)
    batches(feed, 3)
    state = feed.state_dict()
    if as_arrays:
        state = {key: np.asarray(value) for key, value in state.items()}
    expected = batches(feed, 9)
    resumed = make_feed(db, AUGMENTED, 4, "TRAIN", budget, seed=None)
    batches(resumed, 1)
    resumed.load_state_dict(state)
    for a, b in zip(expected, batches(resumed, 9), strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_the_seed_decides_the_crops(db: Path) -> None:
    one, same, other = (
        torch.cat([images for images, _ in batches(make_feed(db, AUGMENTED, 4, "TRAIN", seed=seed), 5)])
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("budget", [1 << 20, STREAM], ids=["in-memory", "streamed"])
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda feed: pickle.loads(pickle.dumps(feed))])
def test_copies_go_on_alike(clone, budget: int, db: Path) -> None:
    feed = make_feed(db, AUGMENTED, 4, "TRAIN", budget)
    feed.limit_labels(10, None, "layer 'loss'")
    batches(feed, 2)
    twin = clone(feed)
    for a, b in zip(batches(feed, 4), batches(twin, 4), strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    twin.limit_labels(3, None, "layer 'loss'")
    with pytest.raises(ForceregError, match=r"label \d found, expected 0 to 2"):
        batches(twin, 3)
    feed.next()


def test_a_closed_feed_starts_again(db: Path) -> None:
    feed = make_feed(db, batch=4, budget=STREAM)
    feed.next()
    feed.close()
    assert feed.next()[1].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("backend", ["backend: LMDB", "", "backend: LEVELDB"])
def test_an_lmdb_is_read_whatever_the_backend_says(backend: str, db: Path) -> None:
    assert make_feed(db, data=backend).next()[1].tolist() == [0, 1, 2]


def test_rand_skip_is_ignored_as_in_caffe(db: Path) -> None:
    assert make_feed(db, data="rand_skip: 1000").next()[1].tolist() == [0, 1, 2]


def fails(feed_or_root: DatabaseFeed | Path, *expected: str, **options) -> None:
    """Building or reading fails with one line that opens with the layer and holds all of `expected`."""
    with pytest.raises(ForceregError) as caught:
        feed = make_feed(feed_or_root, **options) if isinstance(feed_or_root, Path) else feed_or_root
        batches(feed, 20)
    line = str(caught.value)
    assert line.startswith("net.prototxt:1: layer 'd': ") and "\n" not in line
    for text in expected:
        assert text in line


@pytest.mark.parametrize("budget", [1 << 20, STREAM], ids=["in-memory", "streamed"])
def test_a_label_out_of_range_names_record_and_consumer(budget: int, db: Path) -> None:
    feed = make_feed(db, budget=budget)
    feed.limit_labels(8, None, "net.prototxt:9: layer 'loss'")
    fails(feed, "db: record '00000008'", "label 8", "0 to 7", "net.prototxt:9: layer 'loss'")


@pytest.mark.parametrize("count", [8, 9])
def test_the_ignored_label_passes(count: int, db: Path) -> None:
    feed = make_feed(db)
    feed.limit_labels(count, 9, "layer 'loss'")
    if count == 9:
        batches(feed, 10)
    else:
        fails(feed, "label 8 found, expected 0 to 7 or 9 (ignore_label)")


def test_a_negative_label_is_refused(tmp_path: Path) -> None:
    put_lmdb(tmp_path / "db", [(b"k", raw(np.zeros((1, 2, 2), np.uint8), -1))])
    feed = make_feed(tmp_path)
    feed.limit_labels(10, None, "layer 'loss'")
    fails(feed, "record 'k'", "label -1")


def test_every_consumer_may_limit_the_labels(db: Path) -> None:
    feed = make_feed(db)
    feed.limit_labels(5, None, "layer 'first'")
    feed.limit_labels(10, None, "layer 'second'")
    fails(feed, "label 5", "layer 'first'")


BAD_RECORDS = {
    "not a Datum": (b"\xff\xff\xff", "not a Datum"),
    "too short": (Datum(channels=1, height=4, width=5, data=b"abc").SerializeToString(), "3 bytes", "1x4x5"),
    "empty": (Datum(channels=1, height=4, width=5).SerializeToString(), "0 floats", "1x4x5"),
    "other shape": (raw(np.zeros((1, 5, 4), np.uint8)), "1x5x4 uint8", "1x4x5 uint8"),
    "floats among bytes": (raw(np.zeros((1, 4, 5), np.float32)), "float32", "uint8"),
    "no image": (
        Datum(encoded=True, data=b"GIF8").SerializeToString(),
        "image",
        "cannot be decoded (none of JPEG, PNG, BMP, GIF, TIFF, WebP and PNM)",
    ),
}


@pytest.mark.parametrize("budget", [1 << 20, STREAM], ids=["in-memory", "streamed"])
@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_bad_record_is_named(name: str, budget: int, db: Path) -> None:
    value, *expected = BAD_RECORDS[name]
    put_lmdb(db / "db", [(b"00000007", value)])
    fails(db, "db: record '00000007'", *expected, budget=budget)


@pytest.mark.parametrize("budget", [1 << 30, STREAM], ids=["in-memory", "streamed"])
def test_images_of_several_sizes_are_cropped_to_one(budget: int, tmp_path: Path) -> None:
    sizes = [(4, 5), (4, 5), (7, 4), (6, 6)]
    images = [np.full((1, *size), 10 * i, np.uint8) for i, size in enumerate(sizes)]
    for i, (height, width) in enumerate(sizes):
        images[i][:, (height - 3) // 2 : (height + 3) // 2, (width - 3) // 2 : (width + 3) // 2] += 1
    put_lmdb(tmp_path / "db", [(b"%d" % i, raw(image, i)) for i, image in enumerate(images)])
    feed = make_feed(tmp_path, "crop_size: 3 mean_value: 1", batch=3, budget=budget)
    got = batches(feed, 3)
    assert [labels.tolist() for _, labels in got] == [[0, 1, 2], [3, 0, 1], [2, 3, 0]]
    for data, labels in got:
        assert torch.equal(data, (10 * labels).reshape(3, 1, 1, 1).expand(3, 1, 3, 3))
    again = copy.deepcopy(feed)
    assert torch.equal(again.next()[0], feed.next()[0])
    feed.close()
    again.close()


@pytest.mark.parametrize(
    ("transform", "parts"),
    [
        ("", ("1x9x9 uint8", "expected 1x4x5")),
        ("crop_size: 3", ("1x2x9, smaller than crop_size 3",)),
        ("crop_size: 3 mean_file: 'mean'", ("1x9x9 uint8", "expected 1x4x5")),
    ],
    ids=["uncropped", "too small", "mean image"],
)
def test_sizes_that_cannot_be_made_one(transform: str, parts: tuple[str, ...], db: Path) -> None:
    write_mean(db / "mean", np.zeros((1, 4, 5), np.float32))
    size = (1, 2, 9) if "smaller" in parts[0] else (1, 9, 9)
    put_lmdb(db / "db", [(b"00000007", raw(np.zeros(size, np.uint8)))])
    fails(db, "db: record '00000007'", *parts, transform=transform)


def test_batches_before_a_bad_record_are_served_when_streaming(db: Path) -> None:
    put_lmdb(db / "db", [(b"00000007", b"\xff")])
    feed = make_feed(db, budget=STREAM)
    assert [labels.tolist() for _, labels in batches(feed, 2)] == [[0, 1, 2], [3, 4, 5]]
    fails(feed, "00000007")
    feed.load_state_dict({"cursor": 0})
    assert feed.next()[1].tolist() == [0, 1, 2]


def test_a_bad_first_record_is_found_before_training(tmp_path: Path) -> None:
    put_lmdb(tmp_path / "db", [(b"a", b"\xff")])
    with pytest.raises(ForceregError, match=r"layer 'd': db: record 'a': not a Datum"):
        make_feed(tmp_path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"source": "nowhere/mnist_train_lmdb"}, ["no LMDB", "forcereg data mnist IDX_DIR", "nowhere"]),
        ({"source": "nowhere/cifar10_train_lmdb"}, ["no LMDB", "forcereg data cifar10 SRC"]),
        ({"source": ""}, ["data_param.source is missing"]),
        ({"batch": 0}, ["batch_size is missing or 0"]),
        ({"tops": ""}, ["has 0 tops"]),
        ({"tops": 'top: "a" top: "b" top: "c"'}, ["has 3 tops"]),
        ({"transform": "force_color: true force_gray: true"}, ["force_color and force_gray"]),
        ({"transform": "crop_size: 5"}, ["crop_size 5", "1x4x5", "at most 4"]),
        ({"transform": "mean_value: 1 mean_value: 2"}, ["2 mean_value", "1 channels"]),
        ({"transform": 'mean_value: 1 mean_file: "m"'}, ["mean_file and mean_value"]),
        ({"transform": 'mean_file: "none.binaryproto"'}, ["none.binaryproto", "No such file"]),
    ],
)
def test_bad_parameters_are_refused(options: dict, expected: list[str], db: Path) -> None:
    fails(db, *expected, **options)


def test_an_empty_lmdb_is_refused(tmp_path: Path) -> None:
    put_lmdb(tmp_path / "db", [])
    fails(tmp_path, "the LMDB is empty")


@pytest.mark.parametrize("content", [b"", b"x" * 9000], ids=["empty file", "garbage"])
def test_a_damaged_lmdb_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "data.mdb").write_bytes(content)
    fails(tmp_path, str(tmp_path / "db"), "not a readable LMDB")


def test_a_truncated_lmdb_is_refused(db: Path) -> None:
    file = db / "db" / "data.mdb"
    os.truncate(file, file.stat().st_size - 4096)
    fails(db, "not a readable LMDB", "its header promises")


def test_an_unreadable_lmdb_is_refused(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = os.stat

    def refuse(path: Path, **options: bool) -> os.stat_result:
        if Path(path).name == "data.mdb":
            raise PermissionError(13, "Permission denied")
        return stat(path, **options)

    monkeypatch.setattr("os.stat", refuse)
    fails(db, "Permission denied", str(db / "db"))


def test_a_file_in_place_of_the_folder_is_named(db: Path) -> None:
    fails(db, "is a file", "data.mdb", source="db/data.mdb")


def test_an_lmdb_that_was_replaced_is_read_afresh(db: Path) -> None:
    feed = make_feed(db, batch=2)
    feed.next()
    (db / "db").rename(db / "old")
    put_lmdb(db / "db", numbered(3, classes=3)[1:])
    fresh = make_feed(db, batch=2)
    assert fresh.next()[1].tolist() == [1, 2]
    assert feed.next()[1].tolist() == [2, 3]


def test_force_color_on_raw_records_is_said(db: Path) -> None:
    with pytest.warns(UserWarning, match="no effect on raw records"):
        assert make_feed(db, "force_color: true").shapes[0] == (3, 1, 4, 5)


@pytest.mark.parametrize("field", ["scale: 2", "mirror: true", "crop_size: 2", 'mean_file: "m"'])
def test_fields_that_moved_to_transform_param_are_pointed_out(field: str, db: Path) -> None:
    with pytest.warns(
        UserWarning, match=f"data_param.{field.split(':')[0]} has no effect; write it in transform_param"
    ):
        assert make_feed(db, data=field).shapes[0] == (3, 1, 4, 5)
