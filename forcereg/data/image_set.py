"""Image files named in a list -> an LMDB, as Caffe's convert_imageset writes it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forcereg.data.budget import DECODING
from forcereg.data.convert import Record, Track, Written, check_free, in_order, require_same_shape, silent, write_lmdb
from forcereg.data.datum import serialized
from forcereg.data.decoding import Picture
from forcereg.data.image_data import ImageList, check_labels, read_list
from forcereg.data.images import resize
from forcereg.errors import ForceregError
from forcereg.schema import Datum
from forcereg.schema.scan import shown
from forcereg.system.files import read_file

KEY_BYTES = 511
"""The longest key that an LMDB takes."""
JPEG_QUALITY = 95
"""OpenCV's default, which Caffe leaves as it is."""

KINDS = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png"}


@dataclass(frozen=True)
class ImageSetOptions:
    """How images are stored.

    `root`: the folder that the list's paths start from (None: the working directory). `size`: resized to these rows
    and columns. `encoded`: as image files of kind `encode_type` (jpg, png; None: each as its name says, png for
    others) instead of raw pixels. `shuffle`: in an order decided by `seed`. `check_size`: all must be of one size.
    """

    root: Path | None = None
    size: tuple[int, int] | None = None
    gray: bool = False
    shuffle: bool = False
    seed: int = 0
    encoded: bool = False
    encode_type: str | None = None
    check_size: bool = False


AS_THEY_ARE = ImageSetOptions()


@dataclass(frozen=True)
class ImageSet(Written):
    """What was written; `shape` is empty if sizes differ. `skipped` images could not be read."""

    skipped: int = 0


@dataclass(frozen=True)
class _Found:
    """A listed image's file and, its header read, the image inside; or what is wrong with it."""

    key: bytes
    path: str
    label: int
    content: bytes = b""
    picture: Picture | None = None
    trouble: str = ""


@dataclass(frozen=True)
class _Item:
    """A listed image made a record, or what is wrong with it."""

    key: bytes
    path: str
    value: bytes | bytearray = b""
    shape: tuple[int, ...] = ()
    trouble: str = ""


def convert_images(
    listing: Path,
    out: Path,
    options: ImageSetOptions = AS_THEY_ARE,
    force: bool = False,
    track: Track = silent,
    warn: Callable[[str], None] = lambda text: None,
) -> ImageSet:
    """Write the images of `listing` (lines `path label`) as LMDB `out`: BGR planes, keys `<8-digit index>_<path>`.

    The index is the line's, from 0 on, or the place in the shuffled order. Images that can't be read are told to
    `warn` and left out, so their index is missing. Raises ForceregError for a wrong list, sizes that differ under
    `check_size`, or if nothing could be read; then `out` is as it was.
    """
    check_free([out], force)
    if options.root is not None and not options.root.is_dir():
        raise ForceregError(f"--root {options.root}: no such folder; expected the one that the list's paths start from")
    listed = read_list(listing, str(listing))
    _check_paths(listed, options)
    shapes: set[tuple[int, ...]] = set()
    skipped = written = 0

    def records() -> Iterator[Record]:
        nonlocal skipped, written
        # in two steps: what decoding takes is known by the header, so that files are read before memory is planned
        found = in_order(
            lambda planned: _find(planned, options), _plan(listed, options), lambda one: _size(one, options)
        )
        made = in_order(lambda one: _make(one, options), found, lambda one: _memory(one, options))
        for item in track(made, f"writing {out.name}", len(listed.paths)):
            if item.trouble:
                warn(f"{item.trouble}; skipped")
                skipped += 1
                continue
            if options.check_size and shapes:
                require_same_shape(item.path, item.shape, next(iter(shapes)), "; give --resize-height and -width")
            shapes.add(item.shape)
            written += 1
            yield item.key, item.value
            del item  # before the next one is decoded
        if not written:
            raise ForceregError(f"{listing}: none of its {skipped:,} images could be read; check the paths and --root")

    write_lmdb(out, records(), force)
    return ImageSet(out, written, shapes.pop() if len(shapes) == 1 else (), skipped)


def _check_paths(listed: ImageList, options: ImageSetOptions) -> None:
    """Raises ForceregError for a path that makes too long a key, or has labels in it, before hours of work."""
    for line, path in zip(listed.lines, listed.paths, strict=True):
        check_labels(f"{listed.name}:{line}", path, _full(path, options))
        length = len(_key(0, path))
        if length > KEY_BYTES:
            where = f"{listed.name}:{line}: '{shown(path, 60)}'"
            raise ForceregError(
                f"{where}: with its index a key of {length} bytes; an LMDB takes {KEY_BYTES}, use --root"
            )


def _key(index: int, path: str) -> bytes:
    return b"%08d_%s" % (index, path.encode("utf-8", "surrogateescape"))


def _plan(listed: ImageList, options: ImageSetOptions) -> Iterator[tuple[int, str, int]]:
    """(index, path, label) in the order of writing."""
    rows = range(len(listed.paths))
    if not options.shuffle:
        for row in rows:
            yield int(listed.lines[row]) - 1, listed.paths[row], int(listed.labels[row])
        return
    random = np.random.RandomState(options.seed)  # its streams never change between numpy versions
    for index, row in enumerate(random.permutation(len(rows))):
        yield index, listed.paths[row], int(listed.labels[row])


def _full(path: str, options: ImageSetOptions) -> str:
    # a path that begins with a slash is still below the root, as in Caffe
    return path if options.root is None else os.path.join(options.root, path.lstrip("/"))


def _size(planned: tuple[int, str, int], options: ImageSetOptions) -> int:
    """Bytes of the image's file, 0 if they can't be read (told later)."""
    try:
        return os.stat(_full(planned[1], options)).st_size
    except (OSError, ValueError):
        return 0


def _find(planned: tuple[int, str, int], options: ImageSetOptions) -> _Found:
    index, path, label = planned
    key, full = _key(index, path), _full(path, options)
    try:
        content = read_file(full, DECODING.limit)
        return _Found(key, path, label, content, Picture(content, "gray" if options.gray else "color"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error  # ValueError: a path that no system has
        return _Found(key, path, label, trouble=f"{shown(full, 200)}: cannot be read ({reason})")
    except ForceregError as error:
        return _Found(key, path, label, trouble=f"{shown(full, 200)}: {error}")


def _memory(found: _Found, options: ImageSetOptions) -> int:
    """Bytes that decoding it takes, and the record twice."""
    if found.picture is None:
        return 0
    # the pixels that are resized to may be more than those that are decoded
    height, width = options.size or found.picture.shape[1:]
    return found.picture.memory + 2 * found.picture.shape[0] * height * width


def _make(found: _Found, options: ImageSetOptions) -> _Item:
    if found.picture is None:
        return _Item(found.key, found.path, trouble=found.trouble)
    try:
        image = found.picture.decode()
    except ForceregError as error:
        return _Item(found.key, found.path, trouble=f"{shown(_full(found.path, options), 200)}: {error}")
    if options.size is not None:
        image = resize(image, *options.size)
    shape = (int(image.shape[0]), int(image.shape[1]), int(image.shape[2]))
    if options.encoded or options.encode_type:
        datum = Datum(data=_encoded(found, image, options), encoded=True, label=found.label)
        return _Item(found.key, found.path, datum.SerializeToString(), shape)
    return _Item(found.key, found.path, serialized(image, found.label), shape)


def _encoded(found: _Found, image: np.ndarray, options: ImageSetOptions) -> bytes:
    """The file's own bytes if they are what is wanted, else the image encoded anew."""
    own = KINDS.get(os.path.splitext(found.path)[1].lower())
    kind = options.encode_type or own
    # a palette, transparency or 16 bits are taken differently by other readers
    plain = found.picture is not None and not found.picture.deep
    channels = {"RGB": 3, "L": 1}.get(found.picture.mode if found.picture and plain else "")
    if options.size is None and own == kind and channels == image.shape[0]:
        return found.content
    return encode(image, kind or "png")


def encode(image: np.ndarray, kind: str) -> bytes:
    """(C, H, W) uint8, BGR or grey -> a jpg or png file."""
    from PIL import Image

    pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image[::-1].transpose(1, 2, 0))
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels)
    if kind == "jpg":
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    else:
        picture.save(buffer, "PNG")
    return buffer.getvalue()
