"""What a model and a solver state hold, in Caffe's HDF5 layout.

A model holds group `data` with a group per layer (empty for layers without parameters) and in it the float32
datasets `0`, `1`, ...; a solver state holds `iter`, `current_step`, `learned_net` and group `history`. What
forcereg adds, Caffe does not look at: attributes at a model's root, and group `forcereg` in a state.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote, unquote

import h5py
import numpy as np
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.snapshot.container import reading, write

Blobs: TypeAlias = Mapping[str, Mapping[int, np.ndarray]]
"""Layer name -> position of the blob in its layer (0 = weights, 1 = bias, ...) -> values in Caffe's dims."""


@dataclass(frozen=True)
class ModelFile:
    """A model's contents; `attrs`: the text attributes (`forcereg_net`, ...); `diffs`: empty if not saved."""

    path: Path
    layers: dict[str, dict[int, np.ndarray]]
    attrs: dict[str, str]
    diffs: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class StateFile:
    """A solver state's contents. `extra` is None if Caffe wrote the file."""

    path: Path
    iteration: int
    current_step: int
    learned_net: str
    history: list[np.ndarray]
    extra: dict[str, Any] | None


def check_names(layers: Mapping[str, Iterable[int]], where: str) -> None:
    """Raise ForceregError, opened by `where`, if layers (name -> its blobs' positions) cannot be stored."""
    parts = {name: name.split("/") for name in layers}
    groups = {"/".join(split[: i + 1]) for split in parts.values() for i in range(len(split))}
    for name, blobs in layers.items():
        if "\0" in name or not {"", "."}.isdisjoint(parts[name]):
            raise ForceregError(f"{where}: layer {name!r} cannot be stored in HDF5; choose a plain name")
        for blob in (f"{name}/{index}" for index in blobs):
            if blob in groups:  # one path cannot be both a dataset and a group
                raise ForceregError(f"{where}: a layer may not be called {blob!r} beside {name!r}; rename it")


def write_model(
    path: str | Path, layers: Blobs, diffs: Blobs | None = None, attrs: Mapping[str, str] | None = None
) -> None:
    """Write a model (`*.caffemodel.h5`) that Caffe can read; `layers` names all layers of the net.

    A shared blob belongs under its owner alone. A `/` in a name makes nested groups.
    Raises ForceregError if the file cannot be written (the old one stays) or a name cannot be stored.
    """

    def fill(file: h5py.File) -> None:
        for name, blobs in (("data", layers), ("diff", diffs)):
            if blobs is not None:
                _put_blobs(file.create_group(name), blobs, str(path))
        for key, text in (attrs or {}).items():
            file.attrs.create(key, text, dtype=h5py.string_dtype("utf-8"))

    write(path, fill)


def read_model(path: str | Path) -> ModelFile:
    """Read a model that Caffe or forcereg wrote. Raises ForceregError for any other file."""
    path = Path(path)
    with reading(path) as file:
        if not isinstance(file.get("data"), h5py.Group):
            raise _wrong_kind(file, path, "model", "data")
        layers = _get_blobs(file["data"], path)
        diffs = _get_blobs(file["diff"], path) if "diff" in file else {}
        attrs = {key: text for key, text in file.attrs.items() if isinstance(text, str)}
    return ModelFile(path, layers, attrs, diffs)


def write_state(
    path: str | Path,
    iteration: int,
    current_step: int,
    learned_net: str,
    history: Sequence[np.ndarray],
    extra: Mapping[str, object] | None = None,
) -> None:
    """Write a solver state (`*.solverstate.h5`) that Caffe can read.

    `extra` is a nested dict of numbers, text, arrays and CPU or GPU tensors. Raises ForceregError if the file
    cannot be written (the old one stays), TypeError for anything else in `extra`.
    """

    def fill(file: h5py.File) -> None:
        file["iter"] = np.array([iteration], np.int32)
        file["current_step"] = np.array([current_step], np.int32)
        _put_c_string(file, "learned_net", os.fsencode(learned_net))
        group = file.create_group("history")
        for index, values in enumerate(history):
            group[str(index)] = np.asarray(values, np.float32)
        if extra is not None:
            _put_extra(file.create_group("forcereg"), extra)

    write(path, fill)


def read_state(path: str | Path) -> StateFile:
    """Read a solver state that Caffe or forcereg wrote. Raises ForceregError as `read_model`.

    In `extra` numbers (0-d arrays too) come back as int, float or bool, tensors as arrays.
    """
    path = Path(path)
    with reading(path) as file:
        for name in ("iter", "current_step", "learned_net", "history"):
            if name not in file:
                raise _wrong_kind(file, path, "solver state", name)
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


def _wrong_kind(file: h5py.File, path: Path, expected: str, lacks: str) -> ForceregError:
    """What the file is instead of the `expected` kind."""
    if expected != "model" and "data" in file:
        return ForceregError(f"{path}: this is a model, expected a {expected}; give the *.solverstate.h5")
    if expected == "model" and "learned_net" in file:
        model = os.fsdecode(np.ravel(file["learned_net"][()])[0])
        return ForceregError(f"{path}: this is a solver state, expected a {expected}; give its model, {model}")
    return ForceregError(f"{path}: this is not a Caffe {expected}: it lacks {lacks!r}")
