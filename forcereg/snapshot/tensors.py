"""Models as `.safetensors`, by the library of that name: arrays by name, texts in `__metadata__`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from forcereg.errors import ForceregError
from forcereg.snapshot import container, flat
from forcereg.snapshot.content import ModelFile

_LONGEST = 100_000_000
"""Bytes of a header that the library takes."""
_FLOATS = ("F64", "F32", "F16", "BF16")


def write(path: Path, arrays: flat.Arrays, texts: flat.Texts) -> None:
    """Writes the file. Raises OSError if the system refuses."""
    _library(path)
    from safetensors.numpy import save

    # its save_file would hide the system's errors, and make the file unreadable for others
    path.write_bytes(save(dict(arrays), dict(texts)))


def read(raw: BinaryIO, path: Path) -> ModelFile:
    """The model in an open file. Raises ForceregError for one that is damaged or holds something else."""
    length, whole = int.from_bytes(raw.read(8), "little"), container.size(raw)
    if length > _LONGEST:
        raise ForceregError(f"{path}: its header tells {length:,} bytes, safetensors takes {_LONGEST:,} at most")
    if length > whole - 8:
        raise container.damaged(path, f"its header tells {length:,} bytes, the file has {whole:,}")
    library = _library(path)
    try:
        with library.safe_open(path, framework="pt") as file:
            arrays = {name: _values(file, name, path) for name in list(file.keys())}
            texts = dict(file.metadata() or {})
    except (library.SafetensorError, ValueError, RuntimeError, OverflowError) as error:
        raise container.damaged(path, error) from error
    return flat.model(path, arrays, texts)


def _values(file: Any, name: str, path: Path) -> np.ndarray:
    """An array as float32 or float64, in memory of its own: the library's lies in the file."""
    kind = file.get_slice(name).get_dtype()
    flat.check_type(path, name, kind, kind in _FLOATS)
    tensor = file.get_tensor(name)
    return np.array(tensor.double().numpy() if kind == "F64" else tensor.float().numpy())


def _library(path: Path) -> Any:
    try:
        import safetensors
    except ImportError:
        raise ForceregError(
            f'{path}: .safetensors needs the library of that name; install it with pip install "forcereg[export]"'
        ) from None
    return safetensors
