"""MNIST: idx files -> LMDBs as Caffe's convert_mnist_data writes them; scikit-learn's digits likewise."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from forcereg.data.budget import DECODING
from forcereg.data.convert import Track, Written, check_free, silent, write_set
from forcereg.data.packed import Damage, read_up_to
from forcereg.errors import ForceregError
from forcereg.system.files import open_file

IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049
KEY_DIGITS = 8
TEST_PER_CLASS = 30  # of about 180 digits a class: 300 test images, 1,497 to train on
SIDE = 28


def convert_mnist(folder: Path, out: Path, force: bool = False, track: Track = silent) -> list[Written]:
    """Write out/mnist_train_lmdb and out/mnist_test_lmdb from the four idx files (plain or .gz) in `folder`.

    Raises ForceregError for a missing, damaged or inconsistent file.
    """
    targets = _targets(out)
    check_free(targets, force)
    sets = [
        (read_idx(folder, f"{stem}-images", IMAGES_MAGIC), read_idx(folder, f"{stem}-labels", LABELS_MAGIC))
        for stem in ("train", "t10k")
    ]
    for stem, (images, labels) in zip(("train", "t10k"), sets, strict=True):
        if len(images) != len(labels):
            raise ForceregError(f"{folder}: {len(images)} {stem} images but {len(labels)} labels; expected as many")
    return [
        write_set(path, images[:, None], labels, KEY_DIGITS, force, track)
        for path, (images, labels) in zip(targets, sets, strict=True)
    ]


def convert_digits(out: Path, force: bool = False, track: Track = silent) -> list[Written]:
    """Write scikit-learn's 1,797 handwritten digits, resized to 28x28, under the names MNIST would get.

    The split is fixed: 30 digits of each class are for testing. Raises ForceregError without scikit-learn.
    """
    targets = _targets(out)
    check_free(targets, force)
    images, labels = _load_digits()
    random = np.random.RandomState(0)  # its streams never change between numpy versions
    order = random.permutation(len(labels))
    rank = np.empty(len(labels), np.int64)
    for digit in range(10):
        of_digit = order[labels[order] == digit]
        rank[of_digit] = np.arange(len(of_digit))
    in_test = rank[order] < TEST_PER_CLASS
    resized = np.stack([_resize(image) for image in images])
    return [
        write_set(path, resized[rows][:, None], labels[rows], KEY_DIGITS, force, track)
        for path, rows in zip(targets, (order[~in_test], order[in_test]), strict=True)
    ]


def read_idx(folder: Path, stem: str, magic: int) -> np.ndarray:
    """The idx file `stem` (as "train-images") of uint8 in `folder`: (N,) labels or (N, H, W) images."""
    # the magic number's last byte says how many sizes follow
    axes = magic % 256
    # as published with a dash; some unpackers make it a dot
    names = [f"{stem}{dot}idx{axes}-ubyte{suffix}" for dot in "-." for suffix in ("", ".gz")]
    path = next((folder / name for name in names if os.path.exists(folder / name)), None)
    if path is None:
        raise ForceregError(f"{folder}: no {names[0]} or {names[1]} there; expected MNIST's four idx files")
    try:
        with open_file(path) as file:
            stream: Any = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            header = read_up_to(stream, 4 * (axes + 1))
            found = int.from_bytes(header[:4], "big")
            if found != magic or len(header) < 4 * (axes + 1):
                raise ForceregError(f"{path}: magic number {found}, expected {magic}; not an idx file of this kind")
            shape = struct.unpack_from(f">{axes}I", header, 4)
            count = math.prod(shape)
            if 2 * count > DECODING.limit:
                DECODING.refuse(2 * count, f"{path}: what its header promises, {count:,} values,", "get it again")
            data = read_up_to(stream, count)
            # too long is damaged, too; and behind the last byte gzip compares its checksum
            more = bool(stream.read(1))
    # ahead of Damage, which is all of them, too
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ForceregError(f"{path}: damaged gzip file ({error}); get it again") from error
    except Damage as error:
        raise ForceregError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if more or len(data) != count or not count:
        held = f"more than {count}" if more else f"{len(data)}"
        raise ForceregError(f"{path}: holds {held} values, its header promises {count}; get it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _targets(out: Path) -> list[Path]:
    return [out / "mnist_train_lmdb", out / "mnist_test_lmdb"]


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ForceregError(
            'scikit-learn, which ships the digits, is missing; run `pip install "forcereg[digits]"`'
        ) from error
    digits = load_digits()
    return digits.images, digits.target


def _resize(image: np.ndarray) -> np.ndarray:
    """Bilinear, half-pixel centres: (8, 8) of 0..16 -> (28, 28) uint8 of 0..255."""
    from PIL import Image

    # float32: bytes would be rounded before they are resized
    grey = Image.fromarray((image * (255 / 16)).astype(np.float32))
    resized = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return np.rint(resized).clip(0, 255).astype(np.uint8)
