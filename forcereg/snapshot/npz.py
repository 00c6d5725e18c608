"""Models as numpy's `.npz`: a zip of one .npy for each array, texts as arrays without axes.

What a zip or an array declares is judged before memory is taken for it, and a pickle is never read.
"""

from __future__ import annotations

import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from forcereg.errors import ForceregError, printable
from forcereg.snapshot import container, flat
from forcereg.snapshot.content import ModelFile
from forcereg.system.memory import free_memory

_RATIO = 1032
"""How many times their bytes in the file compressed values may take: deflate can't do more."""
_SMALL = 1 << 12
_SPARE = 64 << 20
_WIDEST = 32
"""Axes of an array, as in a BlobProto."""
# what zipfile and numpy's header raised for files in which bytes of every part were changed
_DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, LookupError, NotImplementedError, RuntimeError,
           SyntaxError, TypeError, OverflowError, MemoryError)  # fmt: skip


def write(path: Path, arrays: flat.Arrays, texts: flat.Texts) -> None:
    """Writes the file: the same model gives the same bytes. Raises OSError if the system refuses."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        # texts first: damage to the zip's list, which can hide what follows, then hides no checksum
        for name, values in {**{key: np.array(text) for key, text in texts.items()}, **arrays}.items():
            # zip64, as numpy's own: an array may be larger than 2 GB
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                npy.write_array(file, values, allow_pickle=False)


def read(raw: BinaryIO, path: Path) -> ModelFile:
    """The model in an open file. Raises ForceregError for one that is damaged or holds something else."""
    arrays, texts = {}, {}
    try:
        with zipfile.ZipFile(raw) as archive:
            members = archive.infolist()
            _check(members, path, container.size(raw))
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name in arrays or name in texts:
                    raise ValueError(f"{name!r} is there twice")
                values = _values(archive, member, path)
                if values.dtype.kind == "U" and not values.ndim:
                    texts[name] = str(values)
                else:
                    flat.check_type(path, name, values.dtype, values.dtype.kind == "f")
                    arrays[name] = values
    except _DAMAGE as error:
        raise container.damaged(path, str(error) or type(error).__name__) from error
    return flat.model(path, arrays, texts)


def _check(members: list[zipfile.ZipInfo], path: Path, whole: int) -> None:
    """Raises ForceregError for a zip of something else, ValueError for one that declares more than it can hold."""
    for member in members:
        if not member.filename.endswith(".npy"):
            raise ForceregError(
                f"{path}: is a zip with '{printable(member.filename)}' in it; expected the arrays of an .npz (what "
                "torch.save writes is a pickle, which could run code and is never read)"
            )
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{member.filename!r} is compressed by method {member.compress_type}")
        if member.file_size > member.compress_size * _RATIO + _SMALL:
            raise ValueError(f"{member.filename!r} declares {member.file_size:,} bytes")
    if sum(member.compress_size for member in members) > whole:
        raise ValueError("its arrays declare more bytes than the file has")
    needed = sum(member.file_size for member in members)
    if needed > _SPARE and needed > (free := free_memory()):
        raise ForceregError(f"{path}: its arrays take {needed:,} bytes, but only {free:,} bytes of memory are free")


def _values(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> np.ndarray:
    """A member's array. Raises ForceregError for Python objects, ValueError for damage."""
    with archive.open(member) as opened:
        file: Any = opened  # typed as less than it is
        shape, by_columns, kind = _header(file)
        if kind.hasobject:
            name = printable(member.filename)
            raise ForceregError(
                f"{path}: {name!r} holds Python objects, a pickle, which could run code; expected floats"
            )
        size, left = prod(shape) * kind.itemsize, member.file_size - file.tell()
        if len(shape) > _WIDEST or min(shape, default=0) < 0 or size != left:
            raise ValueError(f"{member.filename!r} declares shape {list(shape)} of {kind} in {left:,} bytes")
        data = bytearray(size)
        view, at = memoryview(data), 0
        while at < size:
            at += file.readinto(view[at:]) or size + 1  # nothing: the file ends
        if at != size or file.read(1):  # read behind the end: then zip compares its checksum
            raise ValueError(f"{member.filename!r} is cut short")
    values: np.ndarray = np.frombuffer(data, kind) if size else np.empty(prod(shape), kind)
    return values.reshape(shape, order="F" if by_columns else "C")


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """An array's shape, whether it lies by columns, and its type. Raises ValueError."""
    try:
        version = npy.read_magic(file)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if read is not None:  # 3.0 is of structures
            return read(file)
    except _DAMAGE as error:
        if isinstance(error, zipfile.BadZipFile):
            raise
    raise ValueError(f"'{file.name}' opens with no header of an array")
