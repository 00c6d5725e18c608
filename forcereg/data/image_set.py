"""Image files named in a list -> an LMDB, as Caffe's convert_imageset writes it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forcereg.data.convert import Track, Written, check_free, in_order, require_same_shape, silent, write_lmdb
from forcereg.data.image_data import ImageList, read_list
from forcereg.data.images import load_image, resize
from forcereg.errors import ForceregError
from forcereg.schema import Datum
from forcereg.schema.scan import shown

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
class _Item:
    """A listed image to be made a record, or what is wrong with it."""

    key: bytes
    path: str
    value: bytes = b""
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
    _check_keys(listed)
    shapes: set[tuple[int, ...]] = set()
    skipped = written = 0

    def records() -> Iterator[tuple[bytes, bytes]]:
        nonlocal skipped, written
        made = in_order(lambda planned: _make(planned, options), _plan(listed, options))
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
        if not written:
            raise ForceregError(f"{listing}: none of its {skipped:,} images could be read; check the paths and --root")

    write_lmdb(out, records(), force)
    return ImageSet(out, written, shapes.pop() if len(shapes) == 1 else (), skipped)


def _check_keys(listed: ImageList) -> None:
    """Raises ForceregError for a path that makes too long a key, before hours of work."""
    for line, path in zip(listed.lines, listed.paths, strict=True):
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


def _make(planned: tuple[int, str, int], options: ImageSetOptions) -> _Item:
    index, path, label = planned
    key = _key(index, path)
    # a path that begins with a slash is still below the root, as in Caffe
    full = path if options.root is None else os.path.join(options.root, path.lstrip("/"))
    try:
        content = Path(full).read_bytes()
        image = load_image(content, not options.gray)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error  # ValueError: a path that no system has
        return _Item(key, path, trouble=f"{shown(full, 200)}: cannot be read ({reason})")
    except ForceregError as error:
        return _Item(key, path, trouble=f"{shown(full, 200)}: {error}")
    if options.size is not None:
        image = resize(image, *options.size)
    shape = (int(image.shape[0]), int(image.shape[1]), int(image.shape[2]))
    if options.encoded or options.encode_type:
        datum = Datum(data=_encoded(content, image, path, options), encoded=True)
    else:
        datum = Datum(channels=shape[0], height=shape[1], width=shape[2], data=image.tobytes())
    datum.label = label
    return _Item(key, path, datum.SerializeToString(), shape)


def _encoded(content: bytes, image: np.ndarray, path: str, options: ImageSetOptions) -> bytes:
    """The file's own bytes if they are what is wanted, else the image encoded anew."""
    own = KINDS.get(os.path.splitext(path)[1].lower())
    kind = options.encode_type or own
    if options.size is None and own == kind and _channels(content) == image.shape[0]:
        return content
    return encode(image, kind or "png")


def _channels(content: bytes) -> int:
    """3 or 1 for a plain colour or grey file; 0 for others (palettes, transparency), which readers take differently."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        return {"RGB": 3, "L": 1}.get(image.mode, 0)


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
