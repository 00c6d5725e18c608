"""CIFAR-10: binary batches or class folders of images -> LMDBs, mean images, the zero-padded train set."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from forcereg.data.convert import Track, Written, check_free, require_same_shape, silent, write_set
from forcereg.data.mean import write_mean
from forcereg.errors import ForceregError

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
KEY_DIGITS = 5
PAD = 4
SHAPE = (3, 32, 32)

_BATCH = re.compile(r"(?:^|/)(data_batch_[1-5]|test_batch)\.bin$")
_IMAGE = re.compile(r"(?:^|/)(train|test)/([^/]+)/([^/]+\.(?:png|jpe?g|bmp))$", re.IGNORECASE)

Labelled = tuple[np.ndarray, np.ndarray]


def convert_cifar10(source: Path, out: Path, force: bool = False, track: Track = silent) -> list[Written]:
    """Write cifar10_{train,test}_lmdb, mean.binaryproto and their 4-pixel padded train variants into `out`.

    `source`: a folder or tar file with the original binary batches, or with train/<class>/ and
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
    return images.sum(0, dtype=np.uint64).astype(np.float32) / np.float32(len(images))


def read_cifar10(source: Path, track: Track = silent) -> tuple[Labelled, Labelled]:
    """Train and test: images (N, 3, H, W) uint8 in R, G, B and labels (N,), whichever form `source` has."""
    batches: dict[str, bytes] = {}
    images: list[tuple[str, str, str, np.ndarray]] = []
    for name, data in track(_members(source), f"reading {source.name}", None):
        if found := _BATCH.search(name):
            batches[found[1]] = data
        elif found := _IMAGE.search(name):
            images.append((found[1].lower(), found[2], found[3], _rgb(f"{source}: {name}", data)))
            require_same_shape(f"{source}: {name}", images[-1][3].shape, images[0][3].shape)
    if batches:
        return _from_batches(source, batches)
    if images:
        return _from_images(source, images)
    tars = [path.name for path in source.glob("*.tar*")] if source.is_dir() else []
    hint = f"; give the file {source / tars[0]} itself" if tars else ""
    raise ForceregError(
        f"{source}: neither data_batch_1.bin ... nor train/<class>/ and test/<class>/ images there{hint}"
    )


def _members(source: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files of interest, in a folder or a tar; nothing is extracted to disk."""
    if source.is_dir():
        for folder, _, names in sorted(os.walk(source)):
            for path in (Path(folder, name) for name in sorted(names)):
                relative = path.relative_to(source).as_posix()
                if _BATCH.search(relative) or _IMAGE.search(relative):
                    yield relative, path.read_bytes()
        return
    try:
        with _decompressed(source) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                wanted = member.isfile() and (_BATCH.search(member.name) or _IMAGE.search(member.name))
                if wanted and (file := tar.extractfile(member)):
                    yield member.name, file.read()
            while stream.read(1 << 20):  # to the very end: tarfile takes a cut file for a shorter one
                pass
    except FileNotFoundError:
        raise ForceregError(f"{source}: no such file or folder; expected CIFAR-10 as a folder or tar") from None
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        raise ForceregError(f"{source}: not a readable folder or tar file ({error})") from error


def _decompressed(path: Path) -> BinaryIO:
    """`path` as a stream; its first bytes say how it is compressed, and reading a cut one raises."""
    with open(path, "rb") as file:
        start = file.read(6)
    for magic, opener in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if start.startswith(magic):
            return cast(BinaryIO, opener(path, "rb"))
    return open(path, "rb")


def _rgb(name: str, data: bytes) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ForceregError(f"{name}: not a readable image ({error})") from error


def _from_batches(source: Path, batches: dict[str, bytes]) -> tuple[Labelled, Labelled]:
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    missing = [f"{name}.bin" for name in names if name not in batches]
    if missing:
        raise ForceregError(f"{source}: {', '.join(missing)} missing; expected data_batch_1..5 and test_batch")
    size = 1 + int(np.prod(SHAPE))
    for name in names:
        if not batches[name] or len(batches[name]) % size:
            raise ForceregError(
                f"{source}: {name}.bin has {len(batches[name])} bytes, expected a multiple of {size} "
                "(label, then 3x32x32); get it again"
            )

    def labelled(data: bytes) -> Labelled:
        records = np.frombuffer(data, np.uint8).reshape(-1, size)
        if records[:, 0].max() >= len(CLASSES):
            raise ForceregError(f"{source}: label {records[:, 0].max()} found, expected 0 to 9; not CIFAR-10")
        return records[:, 1:].reshape(-1, *SHAPE), records[:, 0]

    return labelled(b"".join(batches[name] for name in names[:5])), labelled(batches["test_batch"])


def _from_images(source: Path, images: list[tuple[str, str, str, np.ndarray]]) -> tuple[Labelled, Labelled]:
    classes = sorted({class_name for split, class_name, _, _ in images if split == "train"})
    ids = CLASSES if set(classes) <= set(CLASSES) else classes
    images.sort(key=lambda item: item[:3])

    def labelled(split: str) -> Labelled:
        chosen = [item for item in images if item[0] == split]
        unknown = {item[1] for item in chosen} - set(ids)
        if unknown:
            raise ForceregError(f"{source}: class '{min(unknown)}' is in {split} but not in train")
        if not chosen:
            raise ForceregError(f"{source}: no images under {split}/<class>/; expected train and test")
        return np.stack([item[3] for item in chosen]), np.array([ids.index(item[1]) for item in chosen])

    (train, labels), test = labelled("train"), labelled("test")
    order = np.random.RandomState(0).permutation(len(train))  # files come grouped by class
    return (train[order], labels[order]), test
