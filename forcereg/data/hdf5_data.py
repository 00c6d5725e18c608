"""The HDF5Data layer: rows of the HDF5 files that a text file lists, in order or shuffled, over and over."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from forcereg.data.feed import Feed, FeedContext, LabelRange, Shard, first_nonfinite, seed_of, seeded
from forcereg.errors import ForceregError, did_you_mean
from forcereg.registry import source
from forcereg.schema.scan import shown
from forcereg.schema.spec import LayerSpec
from forcereg.system.files import check_regular, open_file, read_file
from forcereg.system.memory import free_memory
from forcereg.system.paths import resolve

if TYPE_CHECKING:
    import h5py

    from forcereg.system.hdf5 import Reader

Rows = slice | Tensor
Shape = tuple[int, ...]
CPU = torch.device("cpu")
PIECE = 1 << 24  # bytes of values that are looked at at a time
HDF5 = b"\x89HDF\r\n\x1a\n"
LIST = 64 << 20  # bytes of a list of files
MUCH = 64 << 20  # bytes: for fewer, what is free isn't asked


@dataclass(frozen=True)
class File:
    """One listed file: as `named` in the list, the rows that its datasets have, and one row's shape in each."""

    named: str
    path: Path
    rows: int
    items: tuple[Shape, ...]


def sharded(parts: list[tuple[int, Rows]], shard: Shard) -> list[tuple[int, Rows]]:
    """Those of the rows of `Order.take` that are this process's; files without any are left out."""
    if shard.size == 1:
        return parts
    kept: list[tuple[int, Rows]] = []
    first = shard.rank
    for file, rows in parts:
        if isinstance(rows, Tensor):
            own: Rows = rows[first :: shard.size]
            count = len(rows)
        else:
            count, own = rows.stop - rows.start, slice(rows.start + first, rows.stop, shard.size)
        if first < count:
            kept.append((file, own))
        first = (first - count) % shard.size
    return kept


class Order:
    """Which rows come next: all of a file, then the next file's.

    `shuffle` permutes the files in each pass over the list and the rows each time a file comes up. A permutation
    depends on the seed, the pass and the file's turn alone, so the position says all: `turn` files of `loop` are
    done, and `row` rows of the current one.
    """

    def __init__(self, rows: Sequence[int], shuffle: bool, seed: int) -> None:
        self.rows, self.shuffle, self.seed = rows, shuffle, seed
        self.loop = self.turn = self.row = 0
        self._drawn: dict[tuple[int, ...], Tensor] = {}

    def take(self, count: int) -> list[tuple[int, Rows]]:
        """The next `count` rows: numbers of files, and rows in them."""
        parts: list[tuple[int, Rows]] = []
        while count:
            file = self._file()
            end = min(self.row + count, self.rows[file])
            count -= end - self.row
            rows = slice(self.row, end)
            parts.append((file, self._permutation(self.rows[file], 1 + self.turn)[rows] if self.shuffle else rows))
            self._go_to(end, file)
        return parts

    def _file(self) -> int:
        return int(self._permutation(len(self.rows), 0)[self.turn]) if self.shuffle else self.turn

    def _go_to(self, row: int, file: int) -> None:
        self.row = row
        if row == self.rows[file]:
            self.row, self.turn = 0, self.turn + 1
        if self.turn == len(self.rows):
            self.turn, self.loop = 0, self.loop + 1

    def _permutation(self, size: int, number: int) -> Tensor:
        key = (self.seed, self.loop, number)
        if key not in self._drawn:
            # the files' order and the current file's rows; nothing older is asked for again
            self._drawn = {old: drawn for old, drawn in self._drawn.items() if old == (*key[:2], 0)}
            self._drawn[key] = torch.randperm(size, generator=seeded(CPU, *key), device=CPU)
        return self._drawn[key]

    def state_dict(self) -> dict[str, int]:
        """The position and the seed."""
        return {"seed": self.seed, "loop": self.loop, "file": self.turn, "row": self.row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; a position that the files no longer have is wrapped into them."""
        self.seed, self.loop = int(state["seed"]), int(state["loop"])
        self.turn = int(state["file"]) % len(self.rows)
        self.row = int(state["row"]) % self.rows[self._file()]


@source("HDF5Data", "hdf5_data_param", limits="no transform_param, as in Caffe")
class HDF5Feed(Feed):
    """Tops (batch_size, ...) of the datasets called as the tops, int or float, any number of axes, as float32.

    Batches run on over the end of a file into the next and from the last into the first. If all files fit the
    budget they are read once and kept on the device, else one file is in memory at a time. Raises ForceregError
    naming file and dataset for anything that doesn't fit; all files' headers are looked at before the first batch.
    """

    def __init__(self, spec: LayerSpec, ctx: FeedContext) -> None:
        param = spec.message.hdf5_data_param
        if not spec.tops:
            raise spec.fail("has no tops; expected one or more, called as datasets in the files")
        if spec.message.HasField("transform_param"):
            raise spec.fail("has a transform_param, which HDF5Data doesn't take; write the files with the final values")
        if param.batch_size == 0:
            raise spec.fail("hdf5_data_param.batch_size is missing or 0; expected at least 1")
        if not param.source:
            raise spec.fail("hdf5_data_param.source is missing; expected a text file that lists HDF5 files")
        try:
            self.files = _find(ctx.root, param.source, spec.tops)
        except ForceregError as error:
            raise spec.fail(str(error)) from error
        self.where, self.tops, self.device = spec.where, spec.tops, ctx.device
        self.shard, self.batch = ctx.shard, ctx.shard.batch(spec, int(param.batch_size))
        self.items = self.files[0].items
        self.shapes = tuple((self.batch, *item) for item in self.items)
        # Caffe shuffles by C's rand, which random_seed doesn't reach; here it does
        self.order = Order([file.rows for file in self.files], param.shuffle, seed_of(ctx))
        self.starts = [0, *accumulate(self.order.rows)]
        values = self.starts[-1] * sum(prod(item) for item in self.items)
        self.resident = 4 * values <= ctx.budget
        self.limits: dict[str, list[LabelRange]] = {}
        self._all: list[Tensor] | None = None
        self._one: tuple[int, list[Tensor]] | None = None

    def skip(self, batches: int) -> None:
        """See Feed; nothing is read."""
        self.order.take(batches * self.batch * self.shard.size)

    def size(self, most: int | None = None) -> int:
        """See Feed."""
        return self.starts[-1]

    def next(self) -> tuple[Tensor, ...]:
        """The next batch, the caller's own."""
        # of a file that can't be read: whoever asks again, once it is repaired, gets the same rows
        before = self.order.state_dict()
        parts = sharded(self.order.take(self.batch * self.shard.size), self.shard)
        try:
            return self._of_all(parts) if self.resident else self._of_each(parts)
        except ForceregError as error:
            self.order.load_state_dict(before)
            raise ForceregError(f"{self.where}: {error}") from error

    def _of_all(self, parts: list[tuple[int, Rows]]) -> tuple[Tensor, ...]:
        if self._all is None:
            self._all = self._read_all()
        # slices of what lies on the device need no index there
        if not self.order.shuffle:
            spans = [slice(*self.starts[file : file + 2]) for file, _ in parts]
            picks = [(span, rows) for span, (_, rows) in zip(spans, parts, strict=True)]
            return tuple(torch.cat([values[span][rows] for span, rows in picks]) for values in self._all)
        index = torch.cat([rows + self.starts[file] for file, rows in parts if isinstance(rows, Tensor)])
        if self.device.type == "cuda":
            # from memory that isn't page-locked the copy would be waited for
            index = index.pin_memory().to(self.device, non_blocking=True)
        return tuple(values.index_select(0, index) for values in self._all)

    def _read_all(self) -> list[Tensor]:
        everything = [torch.empty((self.starts[-1], *item), device=self.device) for item in self.items]
        # file by file into the place of each: all of them never lie in memory twice
        for number, (start, end) in enumerate(pairwise(self.starts)):
            for values, part in zip(everything, self._read(number), strict=True):
                values[start:end].copy_(part)
        return everything

    def _of_each(self, parts: list[tuple[int, Rows]]) -> tuple[Tensor, ...]:
        pin = self.device.type == "cuda"
        batch = [torch.empty(shape, device=CPU, pin_memory=pin) for shape in self.shapes]
        start = 0
        for number, rows in parts:
            if self._one is None or self._one[0] != number:
                self._one = None  # before the next file is read: never two at a time
                self._one = number, self._read(number)
            for top, values in zip(batch, self._one[1], strict=True):
                picked = values[rows]
                top[start : start + len(picked)] = picked
            start += len(picked)
        return tuple(top.to(self.device, non_blocking=True) for top in batch)

    def _read(self, number: int) -> list[Tensor]:
        """All datasets of a file as float32 on the host, labels checked."""
        file = self.files[number]
        tensors = []
        with _opened(file.named, file.path) as reader:
            for top, item in zip(self.tops, file.items, strict=True):
                dataset = _dataset(file.named, reader, top)
                # of the file as it is now, which was looked at when the net was built
                if dataset.shape != (file.rows, *item):
                    raise ForceregError(
                        f"{file.named}: dataset '{top}' is {list(dataset.shape)}, was {[file.rows, *item]} at the "
                        "start; don't change files in use"
                    )
                values = _values(file.named, top, dataset)
                self._check_labels(file.named, top, values)
                tensors.append(torch.from_numpy(values))
        return tensors

    def find_nonfinite(self, most: int | None = None) -> str | None:
        """See Feed; a few rows at a time are in memory."""
        left = self.size() if most is None else most
        for file in self.files:
            with _opened(file.named, file.path) as opened:
                for top, item in zip(self.tops, file.items, strict=True):
                    dataset = _dataset(file.named, opened, top)
                    step = max(1, (PIECE // 4) // max(1, prod(item)))
                    for first in range(0, min(left, file.rows), step):
                        values = _values(file.named, top, dataset, slice(first, min(first + step, left)))
                        if (bad := first_nonfinite(values)) is not None:
                            row = first + bad // (values.size // len(values))
                            return f"{file.named}: dataset '{top}', row {row}: {values.flat[bad]:g}"
            left -= file.rows
            if left <= 0:
                break
        return None

    def limit_labels(self, count: int, ignore: int | None, consumer: str, top: str = "") -> None:
        """See Feed; any top may hold labels. They are checked when their file is read."""
        self.limits.setdefault(top or self.tops[-1], []).append(LabelRange(count, ignore, consumer))
        # what is in memory was checked without this limit
        self.close()

    def _check_labels(self, named: str, top: str, values: np.ndarray) -> None:
        for limit in self.limits.get(top, ()):
            bad = limit.first_bad(values)
            if bad is not None:
                row = bad // (values.size // len(values))
                raise ForceregError(
                    f"{named}: dataset '{top}', row {row}: label {values.flat[bad]:g} found, expected {limit}"
                )

    def state_dict(self) -> dict[str, Any]:
        """The position in files and rows, and the seed of the permutations."""
        return self.order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Feed."""
        self.order.load_state_dict(state)

    def close(self) -> None:
        """See Feed."""
        self._all = self._one = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_all": None, "_one": None}


def _find(root: Path, listing: str, tops: Sequence[str]) -> list[File]:
    """The files of a list, each with the same datasets. Relative names are taken from `root`, as the list's is."""
    path = resolve(root, listing)
    try:
        names = read_file(path, LIST).decode().split()
    except UnicodeDecodeError:
        kind = "an HDF5 file itself" if _is_hdf5(path) else "not a text file"
        raise ForceregError(f"source '{listing}' is {kind}; expected a text file that lists HDF5 files") from None
    except OSError as error:
        raise ForceregError(f"source '{listing}': {path} cannot be read ({error.strerror}); check the path") from error
    if not names:
        raise ForceregError(f"source '{listing}' is empty; expected at least one HDF5 file, separated by white space")
    files = [_header(shown(name, 200), resolve(root, name), tops) for name in names]
    for file in files:
        for top, found, expected in zip(tops, file.items, files[0].items, strict=True):
            if found != expected:
                raise ForceregError(
                    f"{file.named}: dataset '{top}' has rows of {list(found)}, expected {list(expected)} as in "
                    f"{files[0].named}"
                )
    return files


def _header(named: str, path: Path, tops: Sequence[str]) -> File:
    with _opened(named, path) as reader:
        shapes = [_dataset(named, reader, top).shape for top in tops]
    rows = shapes[0][0]
    for top, shape in zip(tops, shapes, strict=True):
        if shape[0] != rows:
            raise ForceregError(
                f"{named}: dataset '{top}' has {shape[0]} rows, '{tops[0]}' has {rows}; expected as many"
            )
    return File(named, path, rows, tuple(shape[1:] for shape in shapes))


@contextlib.contextmanager
def _opened(named: str, path: Path) -> Iterator[Reader]:
    """A reader of the file. What it refuses and what h5py finds wrong in the block raises ForceregError."""
    import h5py

    from forcereg.system.hdf5 import DAMAGE, Reader, Refused

    try:
        # in front of h5py, which would wait for a pipe's other end
        check_regular(path)
        with h5py.File(path, "r") as file:
            yield Reader(file, path.stat().st_size)
    except FileNotFoundError:
        raise ForceregError(
            f"{named}: no such file ({path}); names in the list start where the net's paths do"
        ) from None
    except Refused as error:
        raise ForceregError(f"{named}: {error}; write it again") from error
    except DAMAGE as error:
        cause = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        raise ForceregError(f"{named}: not a readable HDF5 file ({shown(cause, 200)}); write it again") from error


def _is_hdf5(path: Path) -> bool:
    with open_file(path) as file:
        return file.read(len(HDF5)) == HDF5


def _dataset(named: str, reader: Reader, top: str) -> h5py.Dataset:
    """The dataset of a top, counted as read."""
    import h5py

    from forcereg.system.hdf5 import text_of

    found = reader.find(top)
    if found is None:
        # a file of anybody's may hold millions
        names = [text_of(name) for name in islice(reader.root, 1000)]
        hint = did_you_mean(top, names) or f"; it has {', '.join(names) or 'none'}"
        raise ForceregError(f"{named}: no dataset '{top}'{hint} (datasets are called as the tops)")
    if not isinstance(found, h5py.Dataset):
        raise ForceregError(f"{named}: '{top}' is a group; expected a dataset called as the top")
    if found.dtype.kind not in "biuf":
        kind = "text" if h5py.check_string_dtype(found.dtype) else str(found.dtype)
        raise ForceregError(f"{named}: dataset '{top}' holds {kind}; expected integers or floats")
    if not found.shape or 0 in found.shape:
        what = f"is {list(found.shape)}, without values" if found.shape else "is a single value"
        raise ForceregError(f"{named}: dataset '{top}' {what}; expected one row or more")
    # datasets together may not promise more than the file can hold
    reader.reserve(found)
    return found


def _values(named: str, top: str, dataset: h5py.Dataset, rows: slice = slice(None)) -> np.ndarray:
    """Rows of a dataset as float32. Raises ForceregError."""
    needed = 4 * len(range(*rows.indices(len(dataset)))) * prod(dataset.shape[1:])
    try:
        if needed > MUCH and needed > free_memory():
            raise MemoryError
        # HDF5 converts while it reads, in small pieces; but it has no conversion of booleans
        values = dataset[rows] if dataset.dtype.kind == "b" else dataset.astype(np.float32)[rows]
    except MemoryError as error:
        raise ForceregError(
            f"{named}: dataset '{top}' needs {needed / 2**30:,.1f} GiB, more memory than there is; split it into "
            "several files"
        ) from error
    except OSError as error:
        raise ForceregError(f"{named}: dataset '{top}' cannot be read ({error}); write the file again") from error
    return np.asarray(values, np.float32)
