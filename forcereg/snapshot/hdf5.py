"""Models and solver states in Caffe's HDF5 layout.

A model holds group `data` with a group per layer (empty for layers without parameters) and in it the float32
datasets `0`, `1`, ...; a solver state holds `iter`, `current_step`, `learned_net` and group `history`. What
forcereg adds, Caffe does not look at: attributes at a model's root, and group `forcereg` in a state.
The checksum lies behind what HDF5 looks at, and HDF5 drops it when it edits a file.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

import h5py
import numpy as np
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.snapshot import container
from forcereg.snapshot.content import Blobs, ModelFile, StateFile, check_names

_END_OF_CONTENTS = 40  # where the oldest superblock holds it, 8 bytes little-endian
_STATE = ("iter", "current_step", "learned_net", "history")
# What h5py raised for files without checksum when bytes in every part of them were changed; a link that leads
# nowhere gives None, hence AttributeError, and a number may lack its value, hence IndexError (a LookupError).
_DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)


def model_image(model: ModelFile) -> memoryview:
    """A model as the content of a file. Raises ForceregError if the name of a layer cannot be stored."""

    def fill(file: h5py.File) -> None:
        _put_blobs(file.create_group("data"), model.layers, str(model.path))
        if model.diffs:
            _put_blobs(file.create_group("diff"), model.diffs, str(model.path))
        for key, text in model.attrs.items():
            file.attrs.create(key, text, dtype=h5py.string_dtype("utf-8"))

    return _image(fill)


def state_image(state: StateFile) -> memoryview:
    """A state as the content of a file. Raises TypeError for what its `extra` cannot hold."""

    def fill(file: h5py.File) -> None:
        file["iter"] = np.array([state.iteration], np.int32)
        file["current_step"] = np.array([state.current_step], np.int32)
        _put_c_string(file, "learned_net", os.fsencode(state.learned_net))
        group = file.create_group("history")
        for index, values in enumerate(state.history):
            group[str(index)] = np.asarray(values, np.float32)
        if state.extra is not None:
            _put_extra(file.create_group("forcereg"), state.extra)

    return _image(fill)


def read(raw: BinaryIO, path: Path) -> ModelFile | StateFile:
    """The contents of an open HDF5 file. Raises ForceregError for one that is damaged or holds neither.

    In `extra` numbers (0-d arrays too) come back as int, float or bool, tensors as arrays.
    """
    _check_whole(raw, path)
    with _damage_told(path), h5py.File(raw, "r") as file:  # through `raw`: no file locks, which some systems refuse
        if isinstance(file.get("data"), h5py.Group):
            return _read_model(file, path)
        if any(name in file for name in _STATE):
            return _read_state(file, path)
    raise ForceregError(f"{path}: holds neither a model (group 'data') nor a solver state ('iter', 'history', ...)")


def pack_extra(extra: Mapping[str, object]) -> memoryview:
    """`extra` as the image of an HDF5 file, for a state of another format. Raises TypeError as `state_image`."""
    return _image(lambda file: _put_extra(file, extra))


def unpack_extra(image: bytes, path: Path) -> dict[str, Any]:
    """`pack_extra` back. Raises ForceregError, opened by `path`, for damage."""
    with _damage_told(path), h5py.File(io.BytesIO(image), "r") as file:
        return _get_extra(file)


def _read_model(file: h5py.File, path: Path) -> ModelFile:
    layers = _get_blobs(file["data"], path)
    diffs = _get_blobs(file["diff"], path) if "diff" in file else {}
    attrs = {key: text for key, text in file.attrs.items() if isinstance(text, str)}
    return ModelFile(path, layers, attrs, diffs)


def _read_state(file: h5py.File, path: Path) -> StateFile:
    for name in _STATE:
        if name not in file:
            raise ForceregError(f"{path}: this is not a Caffe solver state: it lacks {name!r}")
    history = _get_numbered(file["history"], "history", path)
    if list(history) != list(range(len(history))):
        raise ForceregError(f"{path}: history has datasets {list(history)}, expected 0 to {len(history) - 1}")
    return StateFile(
        path,
        iteration=int(np.ravel(file["iter"][()])[0]),
        current_step=int(np.ravel(file["current_step"][()])[0]),
        learned_net=os.fsdecode(np.ravel(file["learned_net"][()])[0]),
        history=list(history.values()),
        extra=_get_extra(file["forcereg"]) if "forcereg" in file else None,
    )


def _image(fill: Callable[[h5py.File], None]) -> memoryview:
    """The bytes of the HDF5 file that `fill` composes.

    In memory (once its size): h5py would tell of a full disk only while closing.
    """
    image = io.BytesIO()
    with h5py.File(image, "w", libver="earliest") as file:  # earliest: Caffe's HDF5 may be 1.8
        fill(file)
    return image.getbuffer()


def _check_whole(raw: BinaryIO, path: Path) -> None:
    """Compare the checksum where there is one, and notice a footer that was cut or overwritten.

    To be called before HDF5 opens the file: some damaged structures make it loop for ever.
    """
    fits = container.checksum_fits(raw)
    if fits is False:
        raise container.damaged(path, "its checksum is wrong")
    if fits is None:
        raw.seek(_END_OF_CONTENTS)
        end = int.from_bytes(raw.read(8), "little")
        if 0 < container.size(raw) - end <= container.FOOTER:
            raise container.damaged(path, "its last bytes are missing or overwritten")


@contextlib.contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """What h5py finds wrong in the block raises ForceregError."""
    try:
        yield
    except _DAMAGE as exc:
        raise container.damaged(path, exc) from exc


def _put_blobs(root: h5py.Group, layers: Blobs, where: str) -> None:
    check_names(layers, where)
    for layer, blobs in layers.items():
        group = root.require_group(layer)
        for index, values in blobs.items():
            group[str(index)] = np.asarray(values, np.float32)


def _put_c_string(file: h5py.File, name: str, text: bytes) -> None:
    """A fixed-length, null-terminated scalar string; h5py's high-level calls would pad without the null."""
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(len(text) + 1)
    dataset = h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create(h5py.h5s.SCALAR))
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array(text, f"S{len(text) + 1}"), mtype=kind)


def _put_extra(group: h5py.Group, extra: Mapping[str, object]) -> None:
    for key, value in extra.items():
        name = quote(key, safe=" ").replace(".", "%2E")  # keys may be layer names with `/`
        if isinstance(value, Mapping):
            _put_extra(group.create_group(name), value)
        elif isinstance(value, str):
            group.create_dataset(name, data=value, dtype=h5py.string_dtype("utf-8"))
        else:
            array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
            if array.dtype.kind not in "biuf":
                raise TypeError(f"a solver state cannot hold {key!r} of type {type(value).__name__}")
            group.create_dataset(name, data=array)


def _get_extra(group: h5py.Group) -> dict[str, Any]:
    return {unquote(name): _get_value(item) for name, item in group.items()}


def _get_value(item: h5py.Group | h5py.Dataset) -> Any:
    if isinstance(item, h5py.Group):
        return _get_extra(item)
    if h5py.check_string_dtype(item.dtype):
        return item.asstr()[()]
    return item[()] if item.shape else item[()].item()


def _get_blobs(root: h5py.Group, path: Path) -> dict[str, dict[int, np.ndarray]]:
    """All layers below `root`; groups that only lead to nested names (`inception/1x1`) are not layers."""
    layers = {}
    groups: list[h5py.Group] = []
    root.visititems(lambda _, item: groups.append(item) if isinstance(item, h5py.Group) else None)
    for group in groups:
        layer = group.name.removeprefix(f"{root.name}/")
        blobs = _get_numbered(group, f"layer {layer!r}", path)
        if blobs or not len(group):
            layers[layer] = blobs
    return layers


def _get_numbered(group: h5py.Group, where: str, path: Path) -> dict[int, np.ndarray]:
    """The datasets `0`, `1`, ... of a group, in the order of the numbers (by name 10 would follow 1)."""
    found = {}
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            continue
        dtype = getattr(item, "dtype", np.dtype(np.void))  # None where a link leads nowhere
        if not re.fullmatch(r"0|[1-9][0-9]*", name) or dtype.kind != "f":
            raise ForceregError(f"{path}: {where} has a dataset {name!r} of type {dtype}, expected numbered floats")
        found[int(name)] = np.asarray(item[()], np.float32)
    return dict(sorted(found.items()))
