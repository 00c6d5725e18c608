"""The layers without tops: HDF5Output writes its bottoms to a file, Silence drops them."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.layers.base import Layer, Shape, count
from forcereg.registry import layer
from forcereg.schema.spec import LayerSpec
from forcereg.system.files import check_regular, refused, write_bytes
from forcereg.system.paths import resolve

if TYPE_CHECKING:
    import h5py

LEGACY_AXES = 4
CHUNK = 1 << 14  # bytes
Rows = Mapping[str, np.ndarray]


@layer("Silence")
class Silence(Layer):
    """Takes blobs that nobody needs, so that they are no outputs of the net; their gradient is zero."""

    bottoms = (1, None)
    tops = (0, 0)
    per_item = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        self.out_shapes = ()

    def forward(self, *bottoms: Tensor) -> tuple[()]:
        return ()


@layer("HDF5Output", "hdf5_output_param", limits="waits for the GPU at every forward")
class HDF5Output(Layer):
    """Writes bottoms 0 and 1 to the float32 datasets `data` and `label`, with 4 axes (missing ones are 1).

    The first forward replaces the file, every later one appends its rows (Caffe stops at the second). Between
    forwards the file is complete and closed. A copy of the net goes on with the same file. The gradient is zero.
    """

    bottoms = (2, 2)
    tops = (0, 0)
    labels = frozenset({0, 1})
    capturable = False

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        name = spec.message.hdf5_output_param.file_name
        if not name:
            raise spec.fail('has no file to write; give hdf5_output_param { file_name: "out.h5" }')
        try:
            self.path = resolve(spec.root, name)
        except ForceregError as error:
            raise spec.fail(str(error)) from error
        self.begun = False
        for index, shape in enumerate(shapes):
            if len(shape) > LEGACY_AXES:
                raise spec.fail(
                    f"bottom {index} has shape {list(shape)}; a dataset has {LEGACY_AXES} axes, put a Flatten "
                    "or Reshape in front"
                )
        self._check_rows(shapes)
        self.out_shapes = ()

    def _check_rows(self, shapes: Sequence[Shape]) -> None:
        data, label = (_four(shape)[0] for shape in shapes)
        if data != label:
            raise self.spec.fail(
                f"bottom 0 has {data} rows and bottom 1 has {label}; make axis 0 of {list(shapes[0])} and "
                f"{list(shapes[1])} equal"
            )

    def forward(self, data: Tensor, label: Tensor) -> tuple[()]:
        self._check_rows([data.shape, label.shape])
        rows = {"data": _array(data), "label": _array(label)}
        try:
            # a file that was moved away meanwhile is begun anew
            if self.begun and self.path.exists():
                append(self.path, rows)
            else:
                create(self.path, rows)
        except ForceregError as exc:
            raise self.spec.fail(str(exc)) from exc
        self.begun = True
        return ()


def create(path: Path, rows: Rows) -> None:
    """Replaces `path` by an HDF5 file of these datasets, which can grow along axis 0. Raises ForceregError."""
    import h5py

    # in memory first: HDF5 tells of a full disk only while closing
    image = io.BytesIO()
    with h5py.File(image, "w", libver="earliest") as file:  # earliest: Caffe's HDF5 may be 1.8
        for name, values in rows.items():
            file.create_dataset(name, data=values, chunks=_chunks(values), maxshape=(None,) * values.ndim)
    write_bytes(path, image.getvalue())


def _chunks(values: np.ndarray) -> tuple[int, ...] | bool:
    """Many short rows to a chunk, however few come first; h5py's own choice for long ones."""
    row = values.shape[1:]
    rows = CHUNK // max(1, values.itemsize * count(row))
    return (rows, *(max(1, size) for size in row)) if rows else True


def append(path: Path, rows: Rows) -> None:
    """Adds rows to the datasets that `create` made. Raises ForceregError, and then the file is as before."""
    import h5py

    from forcereg.system.hdf5 import DAMAGE, Reader, Refused

    try:
        check_regular(path)
        with Staged(path) as staged:
            with h5py.File(staged, "r+") as file:
                reader = Reader(file, staged.seek(0, os.SEEK_END))
                for name, values in rows.items():
                    dataset = reader.find(name)
                    if not isinstance(dataset, h5py.Dataset):
                        raise Refused(f"there is no dataset '{name}'")
                    _extend(dataset, values, path)
            staged.commit()
    except DAMAGE as exc:
        # the system's own errors have a text; HDF5's are told below
        if isinstance(exc, OSError) and exc.strerror:
            raise refused(path, exc) from exc
        cause = " ".join(str(exc).split())
        raise ForceregError(f"cannot append to {path}: {cause}; let nothing else change it during the run") from exc


def _extend(dataset: h5py.Dataset, values: np.ndarray, path: Path) -> None:
    if dataset.shape[1:] != values.shape[1:]:
        raise ForceregError(
            f"cannot append to {path}: the rows of `{dataset.name[1:]}` are {list(values.shape[1:])}, those in the "
            f"file {list(dataset.shape[1:])}; keep one shape during the run"
        )
    start = dataset.shape[0]
    dataset.resize(start + len(values), axis=0)
    dataset[start:] = values


class Staged(io.FileIO):
    """A file for h5py whose changes stay in memory until `commit`, so that a full disk leaves it whole.

    (HDF5 would notice in the middle of its own changes, and tell only while closing.) The file may not shrink.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, "r+")
        self._old = self._size = os.fstat(self.fileno()).st_size
        self._writes: list[tuple[int, bytes]] = []
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view, start = memoryview(buffer).cast("B"), self._position
        size = max(0, min(len(view), self._size - start))
        # beyond the file's end, where it has grown in memory only, zeros
        view[:size] = os.pread(self.fileno(), size, start).ljust(size, b"\0")
        for at, data in self._writes:
            low, high = max(at, start), min(at + len(data), start + size)
            if low < high:
                view[low - start : high - start] = data[low - at : high - at]
        self._position += size
        return size

    def write(self, buffer: Any) -> int:
        data, start = bytes(buffer), self._position
        inside = max(0, self._old - start)  # what is already there is kept apart from what makes the file longer
        self._writes += [(start + at, part) for at, part in ((0, data[:inside]), (inside, data[inside:])) if part]
        self._position += len(data)
        self._size = max(self._size, self._position)
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        size = self._position if size is None else size
        if size < self._old:
            raise OSError(f"the file would shrink from {self._old} to {size} bytes")
        self._size = size
        return size

    def commit(self) -> None:
        """Writes the changes to the file, first all that makes it longer. Raises OSError, the file being as before."""
        descriptor = self.fileno()
        inside = [(at, data) for at, data in self._writes if at < self._old]
        before = [(at, os.pread(descriptor, len(data), at)) for at, data in inside]
        try:
            os.truncate(descriptor, self._size)
            for at, data in self._writes:
                if at >= self._old:
                    _write_all(descriptor, data[: self._size - at], at)
            for at, data in inside:
                _write_all(descriptor, data, at)
        except OSError:
            for at, data in reversed(before):
                _write_all(descriptor, data, at)
            os.truncate(descriptor, self._old)
            raise


def _write_all(descriptor: int, data: bytes, position: int) -> None:
    rest = memoryview(data)
    while rest:  # a disk that fills up takes a part first
        written = os.pwrite(descriptor, rest, position)
        rest, position = rest[written:], position + written


def _four(shape: Shape) -> Shape:
    return (*shape, *[1] * (LEGACY_AXES - len(shape)))


def _array(x: Tensor) -> np.ndarray:
    return x.detach().to("cpu", torch.float32).reshape(_four(x.shape)).numpy()
