"""Models as flat files of named arrays, `.safetensors` and `.npz`, which programs read that know nothing of Caffe.

An array is called `<layer>.<position>` and float32; the texts beside the arrays are a model's attributes. A blob that
layers share lies under its owner alone, as in HDF5. Neither format tells every changed byte, so a checksum is among
the texts; a file without it, of another program, is read unchecked.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np

from forcereg.errors import ForceregError, printable
from forcereg.snapshot import container
from forcereg.snapshot.content import ModelFile, as_floats, float_bytes

CHECKSUM = "forcereg_checksum"
"""The text that holds the CRC-32 of all else, as 8 hexadecimal digits."""
LONGEST = 60_000
"""Bytes of a name: a zip's end at 65,535."""
Arrays: TypeAlias = Mapping[str, np.ndarray]
Texts: TypeAlias = Mapping[str, str]
_NAME = re.compile(r"(.*)\.(0|[1-9][0-9]{0,8})", re.DOTALL)  # the last dot: layers' names may have some


def parts(model: ModelFile) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What a file of the model holds: arrays and texts. Raises ForceregError for what such a file can't."""
    arrays = {
        f"{layer}.{index}": np.asarray(values, "<f4", order="C")
        for layer, blobs in model.layers.items()
        for index, values in blobs.items()
    }
    texts = {key: text for key, text in model.attrs.items() if key != CHECKSUM}
    for text in (*arrays, *texts, *texts.values()):
        _check_text(text, model.path)
    for name in (*arrays, *texts):
        if len(name.encode()) > LONGEST:
            raise ForceregError(
                f"cannot write {model.path}: the name '{printable(name[:60])}...' is longer than {LONGEST:,} bytes; "
                "choose a shorter one, or write a .caffemodel"
            )
    if double := arrays.keys() & texts.keys():
        raise ForceregError(
            f"cannot write {model.path}: '{printable(min(double))}' is a blob and an attribute; rename the layer"
        )
    return arrays, {CHECKSUM: _checksum(arrays, texts), **texts}


def model(path: Path, arrays: Arrays, texts: Texts) -> ModelFile:
    """A file's arrays and texts as a model. Raises ForceregError for other names or numbers, and for damage."""
    layers: dict[str, dict[int, np.ndarray]] = {}
    for name, values in sorted(arrays.items(), key=_place):
        match = _NAME.fullmatch(name)
        if match is None:
            raise ForceregError(
                f"{path}: holds an array '{printable(name)}'; expected names as 'conv1.0', <layer>.<position of the "
                "blob>; for the state of a torch module use load_state_dict"
            )
        layers.setdefault(match[1], {})[int(match[2])] = as_floats(values)
    told = texts.get(CHECKSUM)
    rest = {key: text for key, text in texts.items() if key != CHECKSUM}
    if told is not None and told != _checksum(arrays, rest):
        raise container.damaged(path, f"its {CHECKSUM} is wrong; a program that changes it must leave that out")
    return ModelFile(path, layers, rest)


def check_type(path: Path, name: str, kind: object, is_float: bool) -> None:
    """Raises ForceregError, which names `kind`, for an array that isn't of floats."""
    if not is_float:
        raise ForceregError(f"{path}: '{printable(name)}' holds values of type {kind}; expected floats, as float32")


def _place(item: tuple[str, np.ndarray]) -> tuple[str, int]:
    layer, _, index = item[0].rpartition(".")
    return layer, int(index) if index.isdecimal() and len(index) < 10 else -1


def _check_text(text: str, path: Path) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ForceregError(
            f"cannot write {path}: '{printable(text[:60])}' isn't Unicode; write a .caffemodel"
        ) from error
    if "\0" in text:  # zip and numpy end a text there
        raise ForceregError(f"cannot write {path}: '{printable(text[:60])}' holds a NUL character; write a .caffemodel")


def _checksum(arrays: Arrays, texts: Texts) -> str:
    checksum = 0
    for key, text in sorted(texts.items()):
        checksum = zlib.crc32(f"{key}\0{text}\0".encode(), checksum)
    for name, values in sorted(arrays.items()):
        checksum = zlib.crc32(f"{name}\0{list(values.shape)}\0".encode(), checksum)
        checksum = zlib.crc32(float_bytes(values), checksum)
    return f"{checksum:08x}"
