"""The direct sparse convolution's loops over tiles and filters, compiled by Numba when they are first run.

What is compiled is kept in the user's cache folder: only the first process waits for it, a second or two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numba.core import config as numba_config

from forcereg.layers.sparse.vectors import BYTES, MOST, add_up

config: Any = numba_config
add: Any = add_up
FILTERS = 64
"""Whose sums one task keeps: enough to use each block of the input often, few enough for the second cache."""


@cache
def loops(vectors: int) -> Callable[..., None]:
    """The loops for tiles of so many vectors of output positions."""

    def loops(
        out: Any,
        x: Any,
        length: int,
        values: Any,
        offsets: Any,
        starts: Any,
        bias: Any,
        row: int,
        first: int,
        last: int,
    ) -> None:
        filters, height, width = out.shape[1:]
        tile = vectors * BYTES // out.itemsize
        parts = (filters + FILTERS - 1) // FILTERS
        tiles = ((height - 1) * row + width + tile - 1) // tile
        blocks = (starts.size - 1) // filters
        sums = np.empty(FILTERS * tile, out.dtype)
        for task in range(first, last):
            image, place, part = task // (tiles * parts), task // parts % tiles, task % parts
            start, base = place * tile, image * length + place * tile
            begin, end = part * FILTERS, min(part * FILTERS + FILTERS, filters)
            for f in range(begin, end):
                sums[(f - begin) * tile : (f - begin + 1) * tile] = bias[f]
            for block in range(blocks):
                for f in range(begin, end):
                    i = block * filters + f
                    add(sums, (f - begin) * tile, x, base, values, offsets, starts[i], starts[i + 1], vectors)
            # between the end of an output row and the next one's start lies what nobody wants
            for f in range(begin, end):
                skipped = (f - begin) * tile - start
                # where padding is wide a row goes on beyond the next one's start
                for y in range(max(0, (start - width) // row + 1), min((start + tile - 1) // row + 1, height)):
                    for p in range(max(y * row, start), min(y * row + width, start + tile)):
                        out[image, f, y, p - y * row] = sums[skipped + p]

    # no lock of Python's while they run, which is why threads help
    compiled: Any = partial(njit, nogil=True, error_model="numpy")
    with _kept_for_the_user():
        try:
            return compiled(loops, cache=True)
        except RuntimeError:  # no folder can be written
            return compiled(loops)


@contextmanager
def _kept_for_the_user() -> Iterator[None]:
    """While it lasts numba places its caches in the user's folder, if $NUMBA_CACHE_DIR doesn't say where."""
    before = config.CACHE_DIR
    # not beside this file, which may be everybody's
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    config.CACHE_DIR = before or str(Path(home, "forcereg", "numba"))
    try:
        yield
    finally:
        config.CACHE_DIR = before


@dataclass(frozen=True)
class Tiling:
    """Output positions in `count` tiles of `size`, `vectors` full ones each."""

    vectors: int
    size: int
    count: int


def tiling(positions: int, itemsize: int) -> Tiling:
    """Tiles of equal size for so many positions, as few as registers allow."""
    lanes = BYTES // itemsize
    needed = ceil(positions / lanes)
    count = ceil(needed / MOST)
    vectors = ceil(needed / count)
    return Tiling(vectors, vectors * lanes, count)


def run(
    out: np.ndarray,
    x: np.ndarray,
    values: np.ndarray,
    offsets: np.ndarray,
    starts: np.ndarray,
    bias: np.ndarray,
    *,
    row: int,
    threads: int,
) -> None:
    """Fills out (N, filters, height, width) from x (N, length), whose output rows are `row` values apart.

    out[n, f, y, x'] = bias[f] + the sum over j of values[j] * x[n, offsets[j] + y * row + x'], for j from
    starts[i] to starts[i + 1] with i = b * filters + f, over all blocks b. x reaches a tile beyond the last offset.
    """
    images, filters, height, width = out.shape
    tiles = tiling((height - 1) * row + width, out.itemsize)
    tasks = images * tiles.count * ceil(filters / FILTERS)
    call = partial(loops(tiles.vectors), out, x.reshape(-1), x.shape[1], values, offsets, starts, bias, row)
    count = min(threads, tasks)
    ends = [tasks * i // count for i in range(count + 1)] if count else [0]
    if count > 1:
        list(_pool(count, os.getpid()).map(call, ends, ends[1:]))
    elif count:
        call(0, tasks)


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads for the loops, which hold no lock of Python's; a forked process has none of its parent's."""
    return ThreadPoolExecutor(threads, thread_name_prefix="sparse")
