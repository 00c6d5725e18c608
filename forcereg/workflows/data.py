"""Data sets as LMDBs, with the names and keys that Caffe's converters give, and mean images: `forcereg data`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from forcereg.data import cifar, idx, set_mean
from forcereg.data.convert import Written
from forcereg.errors import UsageError
from forcereg.system.arguments import checked
from forcereg.system.events import Observer, Tell
from forcereg.system.paths import StrPath

if TYPE_CHECKING:
    from forcereg.data.image_set import ImageSet


@checked
def convert_mnist(
    idx_dir: StrPath, out_dir: StrPath, *, force: bool = False, observer: Observer | None = None
) -> list[Written]:
    """MNIST's four idx files (plain or .gz) in `idx_dir` -> out_dir/mnist_train_lmdb and out_dir/mnist_test_lmdb.

    Of each: `.path`, `.records` and `.shape` (C, H, W) of an image. Raises ForceregError for a missing, damaged or
    inconsistent file, and for an LMDB that is there unless `force`, with which it is replaced.

    >>> for made in forcereg.convert_mnist("mnist", "."):
    ...     print(made.path, made.records, made.shape)
    mnist_train_lmdb 4 (1, 28, 28)
    mnist_test_lmdb 4 (1, 28, 28)
    """
    return idx.convert_mnist(Path(idx_dir), Path(out_dir), force, Tell(observer).track)


@checked
def convert_digits(out_dir: StrPath, *, force: bool = False, observer: Observer | None = None) -> list[Written]:
    """The 1,797 handwritten digits of scikit-learn, at 28x28, under MNIST's names: 1,497 train, 300 test.

    Result and errors as of `convert_mnist`; ForceregError without scikit-learn (the extra `digits`).

    >>> [(made.path.name, made.records) for made in forcereg.convert_digits("digits")]
    [('mnist_train_lmdb', 1497), ('mnist_test_lmdb', 300)]
    """
    return idx.convert_digits(Path(out_dir), force, Tell(observer).track)


@checked
def convert_cifar10(
    src: StrPath, out_dir: StrPath, *, force: bool = False, observer: Observer | None = None
) -> list[Written]:
    """CIFAR-10 -> cifar10_train_lmdb, cifar10_test_lmdb, mean.binaryproto, and the zero-padded ones for ResNets.

    `src`: a folder or tar file of data_batch_1..5.bin and test_batch.bin, of the same for Python (without .bin), or of
    train/<class>/ and test/<class>/ folders of images. Planes are stored R, G, B; images from class folders are
    shuffled (seed 0). Result and errors as of `convert_mnist`.

    >>> import numpy, pathlib
    >>> record = bytes([7]) + numpy.zeros(3072, numpy.uint8).tobytes()  # the label, then R, G and B of 32x32
    >>> for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
    ...     done = pathlib.Path(f"{name}.bin").write_bytes(2 * record)
    >>> [(made.path.name, made.records, made.shape) for made in forcereg.convert_cifar10(".", "cifar10")][:2]
    [('cifar10_train_lmdb', 10, (3, 32, 32)), ('cifar10_test_lmdb', 2, (3, 32, 32))]
    """
    return cifar.convert_cifar10(Path(src), Path(out_dir), force, Tell(observer).track)


@checked
def convert_imageset(
    listing: StrPath,
    out: StrPath,
    *,
    root: StrPath | None = None,
    resize_height: int | None = None,
    resize_width: int | None = None,
    gray: bool = False,
    shuffle: bool = False,
    seed: int = 0,
    encoded: bool = False,
    encode_type: str | None = None,
    check_size: bool = False,
    force: bool = False,
    observer: Observer | None = None,
) -> ImageSet:
    """Images that `listing` names, in lines of a path and a label -> LMDB `out` (Caffe's convert_imageset).

    `root`: the folder that the list's paths start from, None for the working directory. `resize_height` and
    `resize_width`, in pixels, go together. `gray`: store one channel. `shuffle`: in random order, decided by `seed`.
    `encoded`: store image files instead of raw pixels, unchanged where possible; `encode_type`: all as such files,
    "jpg" or "png". `check_size`: refuse images of different sizes. Keys are the line's number, from 00000000 on, and
    the path; planes are stored B, G, R. Images that can't be read are warned of and left out. The result has `.path`,
    `.records`, `.shape` (C, H, W), empty if sizes differ, and `.skipped`. Raises ForceregError for a wrong list, if
    nothing could be read, and for an LMDB that is there unless `force`; UsageError for one size of two.

    >>> made = forcereg.convert_imageset("photos.txt", "photos_lmdb", root="photos", resize_height=8, resize_width=8)
    >>> made.records, made.shape, made.skipped
    (4, (3, 8, 8), 0)
    """
    from forcereg.data.image_set import ImageSetOptions, convert_images  # loads torch, which the others do without

    if (resize_height is None) != (resize_width is None):
        raise UsageError("--resize-height and --resize-width go together; give both or neither")
    if encode_type not in (None, "jpg", "png"):
        raise UsageError(f"encode_type is '{encode_type}'; expected jpg or png")
    size = None if resize_height is None or resize_width is None else (resize_height, resize_width)
    folder = None if root is None else Path(root)
    wanted = ImageSetOptions(folder, size, gray, shuffle, seed, encoded, encode_type, check_size)
    tell = Tell(observer)
    return convert_images(Path(listing), Path(out), wanted, force, tell.track, tell.warn)


@checked
def convert_mean(
    source: StrPath, out: StrPath, *, force: bool = False, observer: Observer | None = None
) -> tuple[np.ndarray, int]:
    """The mean image of an LMDB or LevelDB, written to `out` as a mean_file (Caffe's compute_image_mean).

    Returns it, float32 (C, H, W), and the number of images. Raises ForceregError for a damaged record, if images differ
    in shape, and for a file that is there unless `force`.

    >>> mean, count = forcereg.convert_mean("train_lmdb", "mean.binaryproto")
    >>> mean.shape, count
    ((1, 8, 8), 60)
    """
    return set_mean.convert_mean(Path(source), Path(out), force, Tell(observer).track)
