"""The mean image of a whole set, as Caffe's compute_image_mean makes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from math import prod
from pathlib import Path

import numpy as np

from forcereg.data.convert import Track, check_free, in_order, silent
from forcereg.data.datum import decode, shape_text
from forcereg.data.mean import write_mean
from forcereg.data.opening import open_records
from forcereg.data.records import Records, record_error
from forcereg.errors import ForceregError

CHUNK = 32
"""Records that one thread sums up at a time."""


def convert_mean(source: Path, out: Path, force: bool = False, track: Track = silent) -> tuple[np.ndarray, int]:
    """Write the mean image of all records of `source`, an LMDB or LevelDB, to `out`; it (C, H, W) and their count.

    Image files inside are decoded; sums are float64, in which sums of bytes are exact. Raises ForceregError for a
    damaged record and if images differ in shape; then `out` is as it was.
    """
    check_free([out], force)
    if out.is_dir():
        raise ForceregError(f"{out} is a folder; expected the name of a file to write, like mean.binaryproto")
    records = open_records(source)
    # Caffe's tool takes the first record's, too
    shape = _decode(source, *next(records.read())).shape

    def total(chunk: Sequence[tuple[bytes, bytes]]) -> tuple[np.ndarray, int]:
        # float64 of its own for each chunk: threads add up without waiting for each other
        part = np.zeros(shape)
        for key, value in chunk:
            image = _decode(source, key, value)
            if image.shape != shape:
                same = image.shape[0] == shape[0]
                size = "size (--resize-height, --resize-width), or subtract mean_value, which fits images of any size"
                fix = size if same else "number of channels (--gray or not)"
                text = f"is {shape_text(image.shape)}, expected {shape_text(shape)} as the first"
                raise record_error(str(source), key, f"{text}; write the set with one {fix}")
            part += image
        return part, len(chunk)

    known = records.count(0)  # None for a LevelDB, which would have to be read to know
    steps = None if known is None else -(-known // CHUNK)
    mean, count = np.zeros(shape), 0
    # 8 bytes a value for a chunk's sums, beside its records
    parts = in_order(total, _chunks(records), lambda chunk: 8 * prod(shape) + sum(len(value) for _, value in chunk))
    for part, number in track(parts, f"reading {source.name}", steps):
        mean += part
        count += number
    mean = (mean / count).astype(np.float32)
    write_mean(out, mean)
    return mean, count


def _chunks(records: Records) -> Iterator[list[tuple[bytes, bytes]]]:
    reader = records.read()
    while chunk := list(islice(reader, CHUNK)):
        yield chunk


def _decode(source: Path, key: bytes, value: bytes) -> np.ndarray:
    try:
        return decode(value)[0]
    except ForceregError as error:
        raise record_error(str(source), key, str(error)) from error
