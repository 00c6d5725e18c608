"""The converters on small made-up files, and on the real data where it is present."""

from __future__ import annotations

import gzip
import io
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

from forcereg.data.cifar import CLASSES, convert_cifar10, mean_image, read_cifar10
from forcereg.data.convert import write_lmdb
from forcereg.data.idx import convert_digits, convert_mnist
from forcereg.data.mean import read_mean
from forcereg.errors import ForceregError
from forcereg.schema import Datum
from tests.data.lmdbs import make_feed, numbered, put_lmdb
from tests.nursery import Nursery


def read_lmdb(path: Path) -> tuple[list[bytes], np.ndarray, list[int]]:
    """Keys, images (N, C, H, W) and labels, read with the lmdb package alone."""
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as txn:
        items = [(bytes(key), Datum.FromString(value)) for key, value in txn.cursor()]
    images = [np.frombuffer(d.data, np.uint8).reshape(d.channels, d.height, d.width) for _, d in items]
    return [key for key, _ in items], np.stack(images), [d.label for _, d in items]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{array.ndim + 1}I", 2048 + array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def idx_dir(tmp_path: Path) -> Path:
    """Seven train and three test images of 4x5 pixels; two of the files are compressed."""
    folder = tmp_path / "idx"
    folder.mkdir()
    random = np.random.default_rng(0)
    for stem, count in (("train", 7), ("t10k", 3)):
        images = random.integers(0, 256, (count, 4, 5), np.uint8)
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8)))
    return folder


def test_mnist(idx_dir: Path, tmp_path: Path) -> None:
    written = convert_mnist(idx_dir, tmp_path / "out")
    assert [(item.path.name, item.records, item.shape) for item in written] == [
        ("mnist_train_lmdb", 7, (1, 4, 5)),
        ("mnist_test_lmdb", 3, (1, 4, 5)),
    ]
    keys, images, labels = read_lmdb(tmp_path / "out/mnist_train_lmdb")
    assert keys == [b"%08d" % i for i in range(7)] and labels == list(range(7))
    source = gzip.decompress((idx_dir / "train-images-idx3-ubyte.gz").read_bytes())
    assert images.tobytes() == source[16:]
    assert make_feed(tmp_path / "out", source="mnist_test_lmdb").next()[1].tolist() == [0, 1, 2]


IDX_DAMAGE = {
    "missing": ("train-labels-idx1-ubyte", None, "no train-labels-idx1-ubyte or train-labels-idx1-ubyte.gz"),
    "magic": (
        "train-labels-idx1-ubyte",
        idx(np.zeros((7, 1, 1), np.uint8)),
        "magic number 2051, expected 2049",
    ),
    "empty": ("train-labels-idx1-ubyte", b"", "magic number 0, expected 2049"),
    "cut": (
        "t10k-labels-idx1-ubyte",
        idx(np.arange(3, dtype=np.uint8))[:-1],
        "holds 2 values, its header promises 3",
    ),
    "counts": ("t10k-labels-idx1-ubyte", idx(np.arange(4, dtype=np.uint8)), "3 t10k images but 4 labels"),
    "gzip": ("train-images-idx3-ubyte.gz", gzip.compress(idx(np.zeros((7, 5, 5), np.uint8)))[:-9], "damaged gzip file"),
    "not gzip": ("train-images-idx3-ubyte.gz", b"hello", "damaged gzip file"),
}


@pytest.mark.parametrize("damage", IDX_DAMAGE)
def test_damaged_idx_files_are_named(damage: str, idx_dir: Path, tmp_path: Path) -> None:
    name, content, expected = IDX_DAMAGE[damage]
    (idx_dir / name).unlink()
    if content is not None:
        (idx_dir / name).write_bytes(content)
    with pytest.raises(ForceregError, match=expected) as caught:
        convert_mnist(idx_dir, tmp_path / "out")
    assert str(idx_dir) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    train, test = convert_digits(tmp_path)
    assert (train.path.name, train.records, train.shape) == ("mnist_train_lmdb", 1497, (1, 28, 28))
    assert (test.path.name, test.records) == ("mnist_test_lmdb", 300)
    keys, images, labels = read_lmdb(test.path)
    assert keys[-1] == b"00000299" and np.bincount(labels).tolist() == [30] * 10
    assert images.min() == 0 and images.max() == 255
    assert labels != sorted(labels)
    _, more, _ = read_lmdb(train.path)
    assert len(np.unique(np.concatenate([images, more]), axis=0)) == 1797


def test_digits_are_always_the_same(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    first, second = (convert_digits(tmp_path / name)[1].path for name in "ab")
    for one, other in zip(read_lmdb(first), read_lmdb(second), strict=True):
        assert np.array_equal(one, other)


def test_digits_without_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ForceregError, match=r'pip install "forcereg\[digits\]"'):
        convert_digits(tmp_path)


def cifar_batches(folder: Path) -> np.ndarray:
    """Two records in each binary batch; returns them all (12, 3073)."""
    random = np.random.default_rng(1)
    records = random.integers(0, 256, (12, 3073), np.uint8)
    records[:, 0] %= 10
    folder.mkdir()
    for i, name in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
        (folder / name).write_bytes(records[2 * i : 2 * i + 2].tobytes())
    return records


def test_cifar_batches(tmp_path: Path) -> None:
    records, out = cifar_batches(tmp_path / "src"), tmp_path / "out"
    written = convert_cifar10(tmp_path / "src", out)
    assert [(item.path.name, item.records, item.shape[1]) for item in written] == [
        ("cifar10_train_lmdb", 10, 32),
        ("cifar10_test_lmdb", 2, 32),
        ("cifar10_pad4_train_lmdb", 10, 40),
        ("mean.binaryproto", 10, 32),
        ("mean_pad4.binaryproto", 10, 40),
    ]
    keys, images, labels = read_lmdb(out / "cifar10_train_lmdb")
    assert keys == [b"%05d" % i for i in range(10)] and labels == records[:10, 0].tolist()
    assert images.tobytes() == records[:10, 1:].tobytes()
    _, padded, padded_labels = read_lmdb(out / "cifar10_pad4_train_lmdb")
    assert padded_labels == labels and padded.sum() == images.sum()
    np.testing.assert_array_equal(padded[:, :, 4:-4, 4:-4], images)
    np.testing.assert_allclose(read_mean(out / "mean.binaryproto"), images.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(read_mean(out / "mean_pad4.binaryproto"), mean_image(padded))
    feed = make_feed(
        out,
        'mean_file: "mean_pad4.binaryproto" crop_size: 32',
        source="cifar10_pad4_train_lmdb",
        phase="TRAIN",
    )
    assert feed.next()[0].shape == (3, 3, 32, 32)


def class_folders(folder: Path, classes: list[str], per_class: int = 3) -> None:
    """Folders of PNG files; the file number is the image's red, the class number its blue value."""
    for split in ("train", "test"):
        for number, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for k in range(per_class):
                image = Image.new("RGB", (6, 5), (k, 100, number))
                image.save(folder / split / name / f"{k:04d}.png")


@pytest.mark.parametrize("packed", ["folder", "tar", "tar.gz", "tar.bz2", "tar.xz", "tar below a folder"])
def test_class_folders(packed: str, tmp_path: Path) -> None:
    class_folders(tmp_path / "src", ["cat", "truck"], 8)
    source = tmp_path / "src"
    if packed != "folder":
        suffix, arcname = ("tar", "cifar") if packed == "tar below a folder" else (packed, ".")
        source = tmp_path / f"src.{suffix}"
        with tarfile.open(source, f"w:{suffix.partition('.')[2]}") as tar:
            tar.add(tmp_path / "src", arcname=arcname)
        shutil.rmtree(tmp_path / "src")
    (train, labels), (test, test_labels) = read_cifar10(source)
    assert train.shape == (16, 3, 5, 6) and train.dtype == np.uint8
    assert sorted(set(labels.tolist())) == [CLASSES.index("cat"), CLASSES.index("truck")]
    assert test_labels.tolist() == [3] * 8 + [9] * 8
    assert test[:, 0, 0, 0].tolist() == [*range(8)] * 2
    order = np.random.RandomState(0).permutation(16)
    assert train[:, 0, 0, 0].tolist() == [k % 8 for k in order]
    assert train[:, 2, 0, 0].tolist() == [k // 8 for k in order] == [int(label == 9) for label in labels]


def test_other_classes_are_numbered_by_name(tmp_path: Path) -> None:
    class_folders(tmp_path, ["zebra", "ant"])
    _, (test, labels) = read_cifar10(tmp_path)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1] and test[:, 2, 0, 0].tolist() == [1, 1, 1, 0, 0, 0]


def test_names_that_leave_the_tar_are_only_names(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG")
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        for name in ("../../train/cat/1.png", "/test/cat/1.png"):
            member = tarfile.TarInfo(name)
            member.size = len(file.getvalue())
            tar.addfile(member, io.BytesIO(file.getvalue()))
    before = set(tmp_path.parent.rglob("*"))
    assert len(read_cifar10(tmp_path / "evil.tar")[0][1]) == 1
    assert set(tmp_path.parent.rglob("*")) == before


def lacks_batch(folder: Path) -> None:
    cifar_batches(folder)
    (folder / "data_batch_3.bin").unlink()


def cut_batch(folder: Path) -> None:
    cifar_batches(folder)
    (folder / "test_batch.bin").write_bytes(b"\0" * 3072)


def wrong_label(folder: Path) -> None:
    cifar_batches(folder)
    (folder / "test_batch.bin").write_bytes(b"\x0b" + b"\0" * 3072)


def no_test_images(folder: Path) -> None:
    class_folders(folder, ["cat"])
    shutil.rmtree(folder / "test")


def new_class_in_test(folder: Path) -> None:
    class_folders(folder, ["ant", "zebra"])
    shutil.rmtree(folder / "train/ant")


def broken_image(folder: Path) -> None:
    class_folders(folder, ["cat"])
    (folder / "train/cat/0001.png").write_bytes(b"no image")


def other_size(folder: Path) -> None:
    class_folders(folder, ["cat"])
    Image.new("RGB", (9, 9)).save(folder / "train/cat/0001.png")


def holds_a_tar(folder: Path) -> None:
    folder.mkdir()
    (folder / "cifar.tar.xz").touch()


def broken_tar(folder: Path) -> None:
    folder.write_bytes(b"not a tar")


def cut_tar(folder: Path, kind: str, left: float) -> None:
    """A tar of 60 images of which the last part is missing."""
    class_folders(folder, ["cat"], 30)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{kind}") as tar:
        tar.add(folder, arcname=".")
    shutil.rmtree(folder)
    folder.write_bytes(file.getvalue()[: int(left * len(file.getvalue()))])


@pytest.mark.parametrize("left", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_cut_tar_is_not_taken_for_a_smaller_set(kind: str, left: float, tmp_path: Path) -> None:
    cut_tar(tmp_path / "src", kind, left)
    with pytest.raises(ForceregError, match="src: not a readable folder or tar file"):
        read_cifar10(tmp_path / "src")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lacks_batch, r"data_batch_3\.bin missing"),
        (cut_batch, r"test_batch\.bin has 3072 bytes, expected a multiple of 3073"),
        (wrong_label, "label 11 found, expected 0 to 9"),
        (no_test_images, "no images under test/<class>/"),
        (new_class_in_test, "class 'ant' is in test but not in train"),
        (broken_image, r"train/cat/0001\.png: the image inside cannot be decoded"),
        (other_size, r"train/cat/0001\.png: is 3x9x9, expected 3x5x6"),
        (holds_a_tar, r"neither .*; give the file .*cifar\.tar\.xz itself"),
        (broken_tar, "not a readable folder or tar file"),
        (lambda folder: None, "no such file or folder"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bad_cifar_sources_are_named(damage, expected: str, tmp_path: Path) -> None:
    damage(tmp_path / "src")
    with pytest.raises(ForceregError, match=expected) as caught:
        convert_cifar10(tmp_path / "src", tmp_path / "out")
    assert str(tmp_path / "src") in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_nothing_is_replaced_without_force(idx_dir: Path, tmp_path: Path) -> None:
    put_lmdb(tmp_path / "out/mnist_test_lmdb", numbered(1))
    with pytest.raises(ForceregError, match=r"mnist_test_lmdb exists; give --force"):
        convert_mnist(idx_dir, tmp_path / "out")
    assert len(read_lmdb(tmp_path / "out/mnist_test_lmdb")[0]) == 1
    convert_mnist(idx_dir, tmp_path / "out", force=True)
    assert len(read_lmdb(tmp_path / "out/mnist_test_lmdb")[0]) == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "mnist_test_lmdb",
        "mnist_train_lmdb",
    ]


def test_a_replaced_lmdb_keeps_its_modes(idx_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert_mnist(idx_dir, out)
    kept = {"mnist_test_lmdb": 0o700, "mnist_test_lmdb/data.mdb": 0o600, "mnist_train_lmdb/data.mdb": 0o640}
    for name, mode in kept.items():
        (out / name).chmod(mode)
    convert_mnist(idx_dir, out, force=True)
    assert {name: (out / name).stat().st_mode & 0o777 for name in kept} == kept


def test_no_file_of_a_new_lmdb_is_mapped(tmp_path: Path) -> None:
    """As its lock file would be: to touch what a full disk has no room for ends the process."""
    folder = tmp_path / "lmdb"

    def records() -> Iterator[tuple[bytes, bytes]]:
        yield from numbered(1500)
        names = [path.name for path in tmp_path.rglob("*") if path.is_file()]
        assert names == ["data.mdb"]

    write_lmdb(folder, records(), False)
    assert [path.name for path in folder.iterdir()] == ["data.mdb"]


def test_force_replaces_only_lmdbs(idx_dir: Path, tmp_path: Path) -> None:
    thesis = tmp_path / "out/mnist_train_lmdb/thesis.tex"
    thesis.parent.mkdir(parents=True)
    thesis.touch()
    with pytest.raises(ForceregError, match="is not an LMDB"):
        convert_mnist(idx_dir, tmp_path / "out", force=True)
    assert thesis.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("old", [False, True], ids=["new", "replacing"])
def test_an_interrupted_write_leaves_what_was(error, old: bool, tmp_path: Path) -> None:
    def records() -> Iterator[tuple[bytes, bytes]]:
        yield from numbered(1500)
        raise error

    if old:
        put_lmdb(tmp_path / "db", numbered(2))
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else ForceregError):
        write_lmdb(tmp_path / "db", records(), force=True)
    assert [path.name for path in tmp_path.iterdir()] == (["db"] if old else [])
    if old:
        assert len(read_lmdb(tmp_path / "db")[0]) == 2


def test_records_are_committed_by_the_thousand(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "db", numbered(2345), force=False)
    with lmdb.open(str(tmp_path / "db"), readonly=True, lock=False) as env:
        assert env.stat()["entries"] == 2345
        assert env.info()["last_txnid"] == 3
    assert (tmp_path / "db/data.mdb").stat().st_size < 1 << 20


def test_a_file_size_limit_is_one_clear_line(run_limited, tmp_path: Path) -> None:
    """Stands for a full disk: LMDB's writes fail part way."""
    done = run_limited("write_lmdb(Path('db'), numbered(60000), False)")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stdout.startswith("cannot write db: ") and done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run_limited(tmp_path: Path, nursery: Nursery):
    """Runs a line of Python in tmp_path that may not write files above 1 MB."""

    def run(line: str) -> subprocess.CompletedProcess[str]:
        script = f"""
import resource, sys
from pathlib import Path
from forcereg.data.convert import write_lmdb
from forcereg.errors import ForceregError
from tests.data.lmdbs import numbered
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    {line}
except ForceregError as error:
    print(error)
    sys.exit(1)
"""
        return nursery.run("-c", script, cwd=tmp_path)

    return run


def test_real_mnist(mnist_dir: Path, tmp_path: Path) -> None:
    train, test = convert_mnist(mnist_dir, tmp_path)
    assert (train.records, test.records, train.shape) == (60_000, 10_000, (1, 28, 28))
    feed = make_feed(tmp_path, batch=10, source="mnist_train_lmdb")
    assert feed.next()[1].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]


def test_real_cifar(cifar_tar: Path) -> None:
    (train, labels), (test, test_labels) = read_cifar10(cifar_tar)
    assert train.shape == (50_000, 3, 32, 32) and test.shape == (10_000, 3, 32, 32)
    assert np.bincount(labels).tolist() == [5000] * 10 and np.bincount(test_labels).tolist() == [1000] * 10
    # the known channel means of CIFAR-10, red first
    np.testing.assert_allclose(train.mean((0, 2, 3)), [125.3, 123.0, 113.9], atol=0.5)
