"""convert_images and convert_mean: keys, planes, what is stored encoded, skipped files, means, and every refusal."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

import forcereg.data.convert as convert
import forcereg.data.image_set as image_set
from forcereg.data.convert import in_order, write_lmdb
from forcereg.data.image_set import ImageSetOptions, convert_images
from forcereg.data.images import resize
from forcereg.data.mean import read_mean
from forcereg.data.set_mean import convert_mean
from forcereg.errors import ForceregError
from forcereg.schema import Datum
from tests.data.lmdbs import make_feed, numbered, put_lmdb, raw


def read(path: Path) -> dict[str, Datum]:
    """Key -> Datum, read with the lmdb package alone."""
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as txn:
        return {bytes(key).decode(): Datum.FromString(value) for key, value in txn.cursor()}


def pixels(datum: Datum) -> np.ndarray:
    return np.frombuffer(datum.data, np.uint8).reshape(datum.channels, datum.height, datum.width)


def save(path: Path, height: int = 6, width: int = 5, mode: str = "RGB", seed: int = 0) -> np.ndarray:
    """An image file of one seeded colour with a little noise; its pixels as Pillow gives them, (H, W[, C])."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 250, 3, np.uint8) + random.integers(0, 6, (height, width, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).convert(mode).save(path, **({"quality": 90} if path.suffix in (".jpg", ".jpeg") else {}))
    with Image.open(path) as image:
        return np.asarray(image)


def bgr(picture: np.ndarray) -> np.ndarray:
    return picture[:, :, ::-1].transpose(2, 0, 1)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with list.txt over photos/0.png ... 6.png, labels 10, 11, ..."""
    for i in range(7):
        save(tmp_path / f"photos/{i}.png", seed=i)
    (tmp_path / "list.txt").write_text("".join(f"{i}.png {10 + i}\n" for i in range(7)))
    return tmp_path


def build(folder: Path, lines: str | None = None, **options) -> tuple[image_set.ImageSet, dict[str, Datum], list[str]]:
    """What convert_images returns, wrote, and warned of."""
    if lines is not None:
        (folder / "list.txt").write_text(lines)
    said: list[str] = []
    wanted = ImageSetOptions(**{"root": folder / "photos", **options})
    written = convert_images(folder / "list.txt", folder / "db", wanted, force=True, warn=said.append)
    return written, read(folder / "db"), said


def test_keys_planes_and_labels(photos: Path) -> None:
    written, found, said = build(photos)
    assert (written.records, written.shape, written.skipped, said) == (7, (3, 6, 5), 0, [])
    assert list(found) == [f"{i:08d}_{i}.png" for i in range(7)]
    for i, datum in enumerate(found.values()):
        assert datum.label == 10 + i and not datum.encoded
        np.testing.assert_array_equal(pixels(datum), bgr(save(photos / "again.png", seed=i)))


def test_the_data_layer_reads_what_the_pictures_hold(photos: Path) -> None:
    build(photos)
    for options in ({}, {"encoded": True}):
        build(photos, **options)
        feed = make_feed(photos, "scale: 0.5 mean_value: 3", batch=4)
        for first in (0, 4):
            images, labels = feed.next()
            for row in range(4):
                index = (first + row) % 7
                expected = (bgr(save(photos / "again.png", seed=index)).astype(np.float32) - 3) / 2
                assert labels[row] == 10 + index
                np.testing.assert_array_equal(images[row].numpy(), expected)


def test_the_last_space_splits_and_empty_lines_count(photos: Path) -> None:
    save(photos / "photos/a dir/ b  c.png")
    save(photos / "photos/ü.png")
    _, found, _ = build(photos, "a dir/ b  c.png 3\r\n\n/1.png -4\nü.png 0")
    assert {key: datum.label for key, datum in found.items()} == {
        "00000000_a dir/ b  c.png": 3,
        "00000002_/1.png": -4,
        "00000003_ü.png": 0,
    }


@pytest.mark.parametrize("gray", [False, True], ids=["colour", "gray"])
def test_resize(gray: bool, photos: Path) -> None:
    written, found, _ = build(photos, size=(3, 9), gray=gray)
    assert written.shape == (1 if gray else 3, 3, 9)
    with Image.open(photos / "photos/2.png") as image:
        picture = np.asarray(image.convert("L"))[None] if gray else bgr(np.asarray(image))
    np.testing.assert_array_equal(pixels(found["00000002_2.png"]), resize(picture, 3, 9))


def test_gray_and_colour_files_mix(photos: Path) -> None:
    gray = save(photos / "photos/g.png", mode="L", seed=9)
    _, found, _ = build(photos, "g.png 0\n0.png 1\n")
    np.testing.assert_array_equal(pixels(found["00000000_g.png"]), np.stack([gray] * 3))
    _, found, _ = build(photos, gray=True)
    assert [(d.channels, len(d.data)) for d in found.values()] == [(1, 30), (1, 30)]


# -- shuffling


def test_shuffle_keeps_pairs_and_follows_the_seed(photos: Path) -> None:
    orders = []
    for seed in (0, 0, 1):
        _, found, _ = build(photos, shuffle=True, seed=seed)
        assert [key[:8] for key in found] == [f"{i:08d}" for i in range(7)]
        orders.append([datum.label for datum in found.values()])
        assert [key[9:] for key in found] == [f"{label - 10}.png" for label in orders[-1]]
        np.testing.assert_array_equal(
            pixels(next(iter(found.values()))), bgr(save(photos / "again.png", seed=orders[-1][0] - 10))
        )
    assert sorted(orders[0]) == list(range(10, 17)) != orders[0]
    assert orders[0] == orders[1] != orders[2]


# -- image files inside

ENCODED = [
    pytest.param("a.jpg", "RGB", {}, "same", id="jpg"),
    pytest.param("a.JPEG", "RGB", {"encode_type": "jpg"}, "same", id="jpeg-is-jpg"),
    pytest.param("a.png", "RGB", {}, "same", id="png"),
    pytest.param("a.bmp", "RGB", {}, "same", id="bmp-as-it-is"),
    pytest.param("a.bmp", "RGB", {"size": (2, 3)}, "PNG", id="bmp-resized"),
    pytest.param("a.png", "RGB", {"encode_type": "jpg"}, "JPEG", id="png-to-jpg"),
    pytest.param("a.jpg", "RGB", {"encode_type": "png"}, "PNG", id="jpg-to-png"),
    pytest.param("a.jpg", "RGB", {"size": (2, 3)}, "JPEG", id="resized"),
    pytest.param("a.jpg", "RGB", {"gray": True}, "JPEG", id="to-gray"),
    pytest.param("a.jpg", "L", {"gray": True}, "same", id="gray"),
    pytest.param("a.png", "L", {}, "PNG", id="gray-to-colour"),
    pytest.param("a.png", "RGBA", {}, "PNG", id="transparency"),
    pytest.param("a.png", "P", {}, "PNG", id="palette"),
]


@pytest.mark.parametrize(("name", "mode", "options", "kind"), ENCODED)
def test_encoded(name: str, mode: str, options: dict, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "photos" / name
    save(path, mode=mode)
    written, found, _ = build(tmp_path, f"{name} 5\n", encoded=True, **options)
    (datum,) = found.values()
    assert datum.encoded and datum.label == 5 and not datum.HasField("channels")
    height, width = options.get("size", (6, 5))
    with Image.open(io.BytesIO(datum.data)) as stored, Image.open(path) as original:
        assert stored.mode == ("L" if options.get("gray") else "RGB") and stored.size == (width, height)
        assert written.shape == (len(stored.getbands()), height, width)
        if kind == "same":
            assert datum.data == path.read_bytes()
            return
        assert datum.data != path.read_bytes() and stored.format == kind
        if "size" not in options:
            difference = np.asarray(stored, int) - np.asarray(original.convert(stored.mode), int)
            assert np.abs(difference).max() <= (0 if kind == "PNG" else 9)


def test_a_kind_alone_means_encoded(photos: Path) -> None:
    _, found, _ = build(photos, encode_type="png")
    assert all(datum.encoded for datum in found.values())


# -- trouble


def test_unreadable_images_are_named_and_leave_gaps(photos: Path) -> None:
    (photos / "photos/2.png").write_bytes(b"no image")
    (photos / "photos/4.png").unlink()
    (photos / "photos/5.png").write_bytes((photos / "photos/5.png").read_bytes()[:60])
    (photos / "photos/6.png").unlink()
    (photos / "photos/6.png").mkdir()
    written, found, said = build(photos)
    assert [key[:8] for key in found] == ["00000000", "00000001", "00000003"]
    assert (written.records, written.skipped) == (3, 4)
    for text, (number, cause) in zip(
        said, [(2, "decoded"), (4, "No such"), (5, "decoded"), (6, "folder")], strict=True
    ):
        assert text.startswith(f"{photos}/photos/{number}.png: ") and cause in text and text.endswith("; skipped")


def test_a_path_that_no_system_has_is_named_once(photos: Path) -> None:
    _, found, said = build(photos, "0.png 0\na\0b.png 1\n")
    assert list(found) == ["00000000_0.png"]
    assert said == [f"{photos}/photos/a\\x00b.png: cannot be read (embedded null byte); skipped"]


def test_a_byte_order_mark_is_no_part_of_the_first_path(photos: Path) -> None:
    _, found, said = build(photos, "\ufeff0.png 5\n")
    assert list(found) == ["00000000_0.png"] and said == []


def test_check_size(photos: Path) -> None:
    save(photos / "photos/3.png", 6, 7)
    assert build(photos)[0].shape == ()
    before = read(photos / "db")
    with pytest.raises(ForceregError, match=r"3\.png: is 3x6x7, expected 3x6x5 as the first image; give --"):
        build(photos, check_size=True)
    assert read(photos / "db") == before
    assert build(photos, check_size=True, size=(4, 4))[0].shape == (3, 4, 4)


def refused(folder: Path, *expected: str, lines: str | None = None, **options) -> None:
    with pytest.raises(ForceregError) as caught:
        build(folder, lines, **options)
    assert "\n" not in str(caught.value)
    for text in expected:
        assert text in str(caught.value)
    assert not (folder / "db").exists() and not list(folder.glob(".db*"))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", "list.txt: lists no images"),
        ("0.png 1\n1.png\n", "list.txt:2: is '1.png'; expected an image's path, a space or tab and its label"),
        ("0.png cat\n", "list.txt:1: is '0.png cat'"),
        ("0.png 1.5\n", "list.txt:1: is '0.png 1.5'"),
        ("0.png 1\n1.png 1 0 1\n", "list.txt:2: there is no '1.png 1 0', but '1.png'; expected one label in a line"),
        ("0.png 99999999999\n", "list.txt:1: is '0.png 99999999999'"),
        ("x.png 1\ny.png 2\n", "list.txt: none of its 2 images could be read; check the paths and --root"),
        (f"gone.png 1\n{'d/' * 300}x.png 1\n", "...': with its index a key of 614 bytes; an LMDB takes 511"),
    ],
    ids=["empty", "no-label", "word", "fraction", "several", "huge", "nothing-readable", "long-path"],
)
def test_bad_lists_are_refused(lines: str, expected: str, photos: Path) -> None:
    refused(photos, expected, lines=lines)


def test_other_refusals(photos: Path) -> None:
    refused(photos, f"--root {photos}/nowhere: no such folder", root=photos / "nowhere")
    (photos / "list.txt").unlink()
    refused(photos, "list.txt", "No such file")
    (photos / "db").mkdir()
    with pytest.raises(ForceregError, match="exists; give --force"):
        convert_images(photos / "list.txt", photos / "db")


# -- the machinery


def test_in_order_keeps_the_order_and_a_bound_on_what_is_ahead() -> None:
    lock, started, alive = threading.Lock(), 0, []

    def work(item: int) -> int:
        nonlocal started
        with lock:
            started += 1
        return item * item

    for number, result in enumerate(in_order(work, range(500))):
        assert result == number * number
        with lock:
            alive.append(started - number)
    assert number == 499 and max(alive) <= 2 * convert.default_workers() + 2


def test_in_order_passes_errors_on_and_ends_its_threads() -> None:
    def work(item: int) -> int:
        if item == 7:
            raise ForceregError("seven")
        return item

    before = threading.active_count()
    seen = []
    with pytest.raises(ForceregError, match="seven"):
        for result in in_order(work, range(10_000)):
            seen.append(result)
    assert seen == list(range(7)) and threading.active_count() == before


def test_a_full_map_grows_and_large_records_are_committed_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "MAP_SIZE", 1 << 18)
    monkeypatch.setattr(convert, "COMMIT_BYTES", 1 << 19)
    records = [(b"%08d" % i, bytes([i]) * 100_000) for i in range(40)]
    assert [len(chunk) for chunk in convert._chunks(records)] == [6] * 6 + [4]
    write_lmdb(tmp_path / "db", iter(records), False)
    with lmdb.open(str(tmp_path / "db"), readonly=True, lock=False) as env, env.begin() as txn:
        assert [(bytes(key), bytes(value)) for key, value in txn.cursor()] == records


# -- means


@pytest.mark.parametrize("kind", ["bytes", "floats", "image files"])
def test_mean(kind: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (101, 3, 4, 5), np.uint8)
    if kind == "floats":
        images = (random.standard_normal(images.shape) * 100 + 50).astype(np.float32)
    values = [raw(image) for image in images]
    if kind == "image files":
        values = [Datum(data=image_set.encode(image, "png"), encoded=True).SerializeToString() for image in images]
    put_lmdb(tmp_path / "db", [(b"%d" % (1000 + i), value) for i, value in enumerate(values)])
    mean, count = convert_mean(tmp_path / "db", tmp_path / "m")
    assert count == 101 and mean.dtype == np.float32
    np.testing.assert_array_equal(mean, images.mean(0, dtype=np.float64).astype(np.float32))
    np.testing.assert_array_equal(read_mean(tmp_path / "m"), mean)


def test_the_mean_of_a_leveldb(tmp_path: Path) -> None:
    plyvel = pytest.importorskip("plyvel")
    records = numbered(70)
    put_lmdb(tmp_path / "lmdb", records)
    db = plyvel.DB(str(tmp_path / "leveldb"), create_if_missing=True)
    for key, value in records:
        db.put(key, value)
    db.close()
    one, other = (convert_mean(tmp_path / name, tmp_path / f"{name}.m") for name in ("lmdb", "leveldb"))
    np.testing.assert_array_equal(one[0], other[0])
    assert one[1] == other[1] == 70


def test_the_mean_is_written_as_caffe_does(tmp_path: Path) -> None:
    from forcereg.schema import BlobProto

    put_lmdb(tmp_path / "db", numbered(5))
    convert_mean(tmp_path / "db", tmp_path / "m")
    blob = BlobProto.FromString((tmp_path / "m").read_bytes())
    assert (blob.num, blob.channels, blob.height, blob.width, len(blob.data)) == (1, 1, 4, 5, 20)
    assert not blob.HasField("shape")
    centred = make_feed(tmp_path, 'mean_file: "m"', batch=5).next()[0]
    assert centred.mean(0).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (raw(np.zeros((1, 5, 4), np.uint8)), "is 1x5x4, expected 1x4x5 as the first; write the set with one size"),
        (raw(np.zeros((3, 4, 5), np.uint8)), "is 3x4x5, expected 1x4x5"),
        (b"\xff\xff", "not a Datum message"),
        (Datum(encoded=True, data=b"GIF8").SerializeToString(), "cannot be decoded"),
    ],
    ids=["size", "channels", "garbage", "no image"],
)
def test_a_bad_record_is_named_and_no_mean_is_written(value: bytes, expected: str, tmp_path: Path) -> None:
    put_lmdb(tmp_path / "db", [*numbered(80), (b"00000066", value)])
    with pytest.raises(ForceregError) as caught:
        convert_mean(tmp_path / "db", tmp_path / "m")
    assert "db: record '00000066': " in str(caught.value) and expected in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["db"]


def test_a_bad_first_record_is_named(tmp_path: Path) -> None:
    put_lmdb(tmp_path / "db", [(b"k", b"\xff")])
    with pytest.raises(ForceregError, match="db: record 'k': not a Datum message"):
        convert_mean(tmp_path / "db", tmp_path / "m")


def test_a_mean_replaces_only_by_force(tmp_path: Path) -> None:
    put_lmdb(tmp_path / "db", numbered(3))
    (tmp_path / "m").write_bytes(b"old")
    with pytest.raises(ForceregError, match="exists; give --force"):
        convert_mean(tmp_path / "db", tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == b"old"
    convert_mean(tmp_path / "db", tmp_path / "m", force=True)
    assert read_mean(tmp_path / "m").shape == (1, 4, 5)
    with pytest.raises(ForceregError, match="is not an LMDB"):
        convert_mean(tmp_path / "db", tmp_path, force=True)
