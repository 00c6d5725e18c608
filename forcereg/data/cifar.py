"""CIFAR-10: binary batches or class folders of images -> LMDBs, mean images, the zero-padded train set."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from forcereg.data.budget import DECODING, MIB, OPTION
from forcereg.data.cifar_batches import Labelled, read_binary, read_pickled
from forcereg.data.convert import Track, Written, check_free, require_same_shape, silent, write_set
from forcereg.data.decoding import decode_image
from forcereg.data.mean import write_mean
from forcereg.data.packed import Damage, tar_files
from forcereg.errors import ForceregError
from forcereg.system.files import read_file

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# as convert_cifar_data's keys, where convert_mnist_data's have 8
KEY_DIGITS = 5
PAD = 4

_NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
_BATCH = re.compile(r"(?:^|/)(data_batch_[1-5]|test_batch)(\.bin)?$")
_IMAGE = re.compile(r"(?:^|/)(train|test)/([^/]+)/([^/]+\.(?:png|jpe?g|bmp))$", re.IGNORECASE)
_COPIES = 3
"""How many times images are in memory until they are written; each also counts as `_EACH` bytes more."""
_EACH = 512


def convert_cifar10(source: Path, out: Path, force: bool = False, track: Track = silent) -> list[Written]:
    """Write cifar10_{train,test}_lmdb, mean.binaryproto and their 4-pixel padded train variants into `out`.

    `source`: a folder or tar file with the original batches, binary or for Python, or with train/<class>/ and
    test/<class>/ folders of images. Planes are stored R, G, B. Raises ForceregError for bad input.
    """
    lmdbs = [out / name for name in ("cifar10_train_lmdb", "cifar10_test_lmdb", "cifar10_pad4_train_lmdb")]
    means = [out / "mean.binaryproto", out / "mean_pad4.binaryproto"]
    check_free([*lmdbs, *means], force)
    (train, labels), test = read_cifar10(source, track)
    padded = np.pad(train, ((0, 0), (0, 0), (PAD, PAD), (PAD, PAD)))
    written = [
        write_set(path, images, classes, KEY_DIGITS, force, track)
        for path, (images, classes) in zip(lmdbs, ((train, labels), test, (padded, labels)), strict=True)
    ]
    for path, images in zip(means, (train, padded), strict=True):
        write_mean(path, mean_image(images))
        written.append(Written(path, len(images), images.shape[1:]))
    return written


def mean_image(images: np.ndarray) -> np.ndarray:
    """(N, C, H, W) uint8 -> (C, H, W) float32, as compute_image_mean: float32 sum over float32 count."""
    # 50,000 bytes sum up to less than 2^24: Caffe's float32 sums are exact, too, and these are the same
    return images.sum(0, dtype=np.uint64).astype(np.float32) / np.float32(len(images))


def read_cifar10(source: Path, track: Track = silent) -> tuple[Labelled, Labelled]:
    """Train and test: images (N, 3, H, W) uint8 in R, G, B and labels (N,), whichever form `source` has."""
    batches: dict[str, Labelled] = {}
    images: list[tuple[str, str, str, np.ndarray]] = []
    kept = 0
    for name, data in track(_members(source), f"reading {source.name}", None):
        where = f"{source}: {name}"
        if found := _BATCH.search(name):
            if (batch := found[1] + (found[2] or "")) not in batches:
                batches[batch] = read_binary(where, data) if found[2] else read_pickled(where, data)
            kept += batches[batch][0].nbytes
        elif found := _IMAGE.search(name):
            images.append((found[1].lower(), found[2], found[3], _rgb(where, data)))
            require_same_shape(
                where, images[-1][3].shape, images[0][3].shape, "; resize all to one size, or leave it out"
            )
            kept += images[-1][3].nbytes + _EACH
        if _COPIES * kept > DECODING.limit:
            raise ForceregError(
                f"{where}: more than {kept // MIB:,} MiB of images so far, CIFAR-10 has 176; get it again, or raise "
                f"{OPTION} to {_COPIES} times its size if it is meant"
            )
    if batches:
        return _from_batches(source, batches)
    if images:
        return _from_images(source, images)
    tars = [path.name for path in source.glob("*.tar*")] if source.is_dir() else []
    hint = f"; give the file {source / tars[0]} itself" if tars else ""
    raise ForceregError(
        f"{source}: neither data_batch_1.bin ... (or data_batch_1 ...) nor train/<class>/ and test/<class>/ images "
        f"there{hint}"
    )


def _members(source: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files of interest, in a folder or a tar."""
    try:
        if not source.is_dir():
            yield from tar_files(source, lambda name: _BATCH.search(name) or _IMAGE.search(name))
            return
        # sorted: file systems list in any order, and equal folders are to make equal sets
        for folder, _, names in sorted(os.walk(source)):
            for path in (Path(folder, name) for name in sorted(names)):
                relative = path.relative_to(source).as_posix()
                if _BATCH.search(relative) or _IMAGE.search(relative):
                    yield relative, read_file(path, DECODING.limit)
    except FileNotFoundError:
        raise ForceregError(f"{source}: no such file or folder; expected CIFAR-10 as a folder or tar") from None
    except Damage as error:
        named = getattr(error, "filename", None) or source
        reason = getattr(error, "strerror", None) or error
        raise ForceregError(f"{named}: not a readable folder or tar file ({reason})") from error


def _rgb(name: str, data: bytes) -> np.ndarray:
    try:
        # decoding gives Caffe's B, G, R; CIFAR's planes are R, G, B, and its converter leaves them
        return decode_image(data, "color")[::-1]
    except ForceregError as error:
        raise ForceregError(f"{name}: {error}") from error


def _from_batches(source: Path, batches: dict[str, Labelled]) -> tuple[Labelled, Labelled]:
    suffix = ".bin" if any(name.endswith(".bin") for name in batches) else ""
    missing = [name + suffix for name in _NAMES if name + suffix not in batches]
    if missing:
        raise ForceregError(f"{source}: {', '.join(missing)} missing; expected data_batch_1..5 and test_batch")
    images, labels = zip(*(batches[name + suffix] for name in _NAMES), strict=True)
    batches.clear()
    return (np.concatenate(images[:5]), np.concatenate(labels[:5])), (images[5], labels[5])


def _from_images(source: Path, images: list[tuple[str, str, str, np.ndarray]]) -> tuple[Labelled, Labelled]:
    classes = sorted({class_name for split, class_name, _, _ in images if split == "train"})
    # CIFAR-10's own numbers, also where a class is missing: they are those of the batches
    ids = CLASSES if set(classes) <= set(CLASSES) else classes
    images.sort(key=lambda item: item[:3])

    def labelled(split: str) -> Labelled:
        chosen = [item for item in images if item[0] == split]
        unknown = {item[1] for item in chosen} - set(ids)
        if unknown:
            raise ForceregError(f"{source}: class '{min(unknown)}' is in {split} but not in train")
        if not chosen:
            raise ForceregError(f"{source}: no images under {split}/<class>/; expected train and test")
        rows = list(range(len(chosen)))
        if split == "train":  # files come grouped by class
            rows = np.random.RandomState(0).permutation(len(chosen)).tolist()
        return np.stack([chosen[row][3] for row in rows]), np.array([ids.index(chosen[row][1]) for row in rows])

    return labelled("train"), labelled("test")
