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
from forcereg.snapshot.content import Blobs, ModelFile, StateFile, as_floats, check_names
from forcereg.system.hdf5 import DAMAGE, Member, Reader, Refused, is_text
from forcereg.system.memory import is_shortage

_END_OF_CONTENTS = 40  # where the oldest superblock holds it, 8 bytes little-endian
_NUMBERS = "biuf"  # kinds of dtypes
_STATE = ("iter", "current_step", "learned_net", "history")


def model_image(model: ModelFile) -> bytes:
    """A model as the content of a file. Raises ForceregError for a name or text that can't be stored."""

    def fill(file: h5py.File) -> Iterator[str]:
        yield from _put_blobs(file.create_group("data"), model.layers, str(model.path))
        if model.diffs:
            yield from _put_blobs(file.create_group("diff"), model.diffs, str(model.path))
        for key, text in model.attrs.items():
            yield key
            file.attrs.create(key, text, dtype=h5py.string_dtype("utf-8"))

    return _image(fill, model.path)


def state_image(state: StateFile) -> bytes:
    """A state as the content of a file. Raises TypeError for what its `extra` cannot hold, ForceregError as a model."""
    extra = None if state.extra is None else _arrays(state.extra)

    def fill(file: h5py.File) -> Iterator[str]:
        yield "learned_net"
        # one value along one axis, as Caffe reads it
        file["iter"] = np.array([state.iteration], np.int32)
        file["current_step"] = np.array([state.current_step], np.int32)
        _put_c_string(file, "learned_net", os.fsencode(state.learned_net))
        group = file.create_group("history")
        for index, values in enumerate(state.history):
            group[str(index)] = np.asarray(values, np.float32)
        if extra is not None:
            yield from _put_extra(file.create_group("forcereg"), extra)

    return _image(fill, state.path)


def read(raw: BinaryIO, path: Path) -> ModelFile | StateFile:
    """The contents of an open HDF5 file. Raises ForceregError for one that is damaged or holds neither.

    In `extra` numbers (0-d arrays too) come back as int, float or bool, tensors as arrays.
    """
    _check_whole(raw, path)
    with _opened(raw, path) as reader:  # through `raw`: no file locks, which some systems refuse
        if isinstance(reader.find("data"), h5py.Group):
            return _read_model(reader, path)
        if any(reader.find(name) is not None for name in _STATE):
            return _read_state(reader, path)
    raise ForceregError(f"{path}: holds neither a model (group 'data') nor a solver state ('iter', 'history', ...)")


def pack_extra(extra: Mapping[str, object], path: Path) -> bytes:
    """`extra` as the image of an HDF5 file, for a state of another format. Raises as `state_image`."""
    arrays = _arrays(extra)
    return _image(lambda file: _put_extra(file, arrays), path)


def unpack_extra(image: bytes, path: Path) -> dict[str, Any]:
    """`pack_extra` back. Raises ForceregError, opened by `path`, for damage."""
    with _opened(io.BytesIO(image), path) as reader:
        return _get_extra(reader, reader.root)


def _read_model(reader: Reader, path: Path) -> ModelFile:
    data, diff = (reader.find(name) for name in ("data", "diff"))
    layers, diffs = (_get_layers(reader, root, path) if isinstance(root, h5py.Group) else {} for root in (data, diff))
    return ModelFile(path, layers, reader.texts(reader.root), diffs)


def _read_state(reader: Reader, path: Path) -> StateFile:
    found = {name: reader.find(name) for name in _STATE}
    for name, member in found.items():
        if member is None:
            raise ForceregError(f"{path}: this is not a Caffe solver state: it lacks {name!r}")
    history = _get_numbered(reader, dict(reader.members(_group(found["history"]))), "history", path)
    if list(history) != list(range(len(history))):
        raise ForceregError(f"{path}: history has datasets {list(history)}, expected 0 to {len(history) - 1}")
    extra = reader.find("forcereg")
    return StateFile(
        path,
        iteration=_get_count(reader, found["iter"]),
        current_step=_get_count(reader, found["current_step"]),
        learned_net=os.fsdecode(reader.text(_dataset(found["learned_net"]))),
        history=list(history.values()),
        extra=None if extra is None else _get_extra(reader, _group(extra)),
    )


def _image(fill: Callable[[h5py.File], Iterator[str]], path: Path) -> bytes:
    """The bytes of the HDF5 file that `fill` composes, which names each thing before it stores it.

    Raises ForceregError, opened by `path`, for a name or text that HDF5 can't hold.
    """
    # in memory (once its size): h5py would tell of a full disk only while closing
    image, what = io.BytesIO(), ""
    try:
        with h5py.File(image, "w", libver="earliest") as file:  # earliest: Caffe's HDF5 may be 1.8
            for what in fill(file):
                if not what or "\0" in what:  # h5py would cut the name there
                    raise ValueError("no name")
    except (ValueError, RuntimeError) as error:  # what h5py raises for a NUL, a surrogate, an empty name
        if is_shortage(error):
            raise
        raise ForceregError(
            f"{path}: {what!r} holds a NUL character or what else HDF5 can't store ({error}); is the file damaged?"
        ) from error
    return image.getvalue()


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
def _opened(image: BinaryIO, path: Path) -> Iterator[Reader]:
    """A reader of an open file. What it refuses and what h5py finds wrong in the block raises ForceregError."""
    try:
        with h5py.File(image, "r") as file:
            yield Reader(file, container.size(image), image)
    except Refused as exc:
        raise ForceregError(f"{path}: {exc}; use another snapshot") from exc
    except DAMAGE as exc:
        raise container.damaged(path, exc) from exc


def _put_blobs(root: h5py.Group, layers: Blobs, where: str) -> Iterator[str]:
    check_names(layers, where)
    for layer, blobs in layers.items():
        yield layer
        group = root.require_group(layer)
        for index, values in blobs.items():
            group[str(index)] = np.asarray(values, np.float32)


def _put_c_string(file: h5py.File, name: str, text: bytes) -> None:
    """A fixed-length, null-terminated scalar string; h5py's high-level calls would pad without the null."""
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(len(text) + 1)
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_obj_track_times(False)  # as h5py's own: the same state gives the same bytes
    dataset = h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create(h5py.h5s.SCALAR), settings)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array(text, f"S{len(text) + 1}"), mtype=kind)


def _arrays(extra: Mapping[str, object]) -> dict[str, Any]:
    """`extra` with arrays for its numbers and tensors. Raises TypeError for anything but those and text."""
    # before h5py sees any of it: an error of the device must not pass for one of the file
    found: dict[str, Any] = {}
    for key, value in extra.items():
        if isinstance(value, Mapping):
            found[key] = _arrays(value)
        elif isinstance(value, str):
            found[key] = value
        else:
            found[key] = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
            if found[key].dtype.kind not in _NUMBERS:
                raise TypeError(f"a solver state cannot hold {key!r} of type {type(value).__name__}")
    return found


def _put_extra(group: h5py.Group, extra: Mapping[str, Any]) -> Iterator[str]:
    for key, value in extra.items():
        name = quote(key, safe=" ").replace(".", "%2E")  # keys may be layer names with `/`
        yield name
        if isinstance(value, Mapping):
            yield from _put_extra(group.create_group(name), value)
        elif isinstance(value, str):
            group.create_dataset(name, data=value, dtype=h5py.string_dtype("utf-8"))
        else:
            group.create_dataset(name, data=value)


def _get_extra(reader: Reader, group: h5py.Group) -> dict[str, Any]:
    return {unquote(name): _get_value(reader, member) for name, member in reader.members(group)}


def _get_value(reader: Reader, member: Member) -> Any:
    if isinstance(member, h5py.Group):
        return _get_extra(reader, member)
    if is_text(member):
        return reader.text(member).decode()
    values = reader.values(member)
    if values.dtype.kind not in _NUMBERS:
        raise Refused(f"{member.name!r} holds values of type {values.dtype}; expected numbers")
    return values if member.shape else values.item()


def _get_layers(reader: Reader, group: h5py.Group, path: Path, name: str = "") -> dict[str, dict[int, np.ndarray]]:
    """Layer `name` and all layers below; groups that only lead to nested names (`inception/1x1`) are not layers."""
    members = dict(reader.members(group))
    layers = {}
    if name:
        blobs = _get_numbered(reader, members, f"layer {name!r}", path)
        # an empty group is a layer without blobs; one with groups only is a part of their names
        if blobs or not members:
            layers[name] = blobs
    for key, member in members.items():
        if isinstance(member, h5py.Group):
            layers.update(_get_layers(reader, member, path, f"{name}/{key}" if name else key))
    return layers


def _get_numbered(reader: Reader, members: Mapping[str, Member], where: str, path: Path) -> dict[int, np.ndarray]:
    """The datasets `0`, `1`, ... of a group, in the order of the numbers (by name 10 would follow 1)."""
    found = {}
    for name, member in members.items():
        if isinstance(member, h5py.Group):
            continue
        kind = member.dtype
        # as Caffe counts them: 00 or +1 would be a second blob of one number
        if not re.fullmatch(r"0|[1-9][0-9]{0,8}", name) or kind.kind != "f":
            raise ForceregError(f"{path}: {where} has a dataset {name!r} of type {kind}, expected numbered floats")
        # double builds of Caffe write float64
        found[int(name)] = as_floats(reader.values(member))
    return dict(sorted(found.items()))


def _get_count(reader: Reader, member: Member | None) -> int:
    """The whole number that a dataset holds. Raises Refused for anything else."""
    dataset = _dataset(member)
    values = reader.values(dataset)
    if values.size != 1 or values.dtype.kind not in "iu":
        raise Refused(f"{dataset.name!r} holds {values.size} values of type {values.dtype}; expected one whole number")
    return int(values.item())


def _group(member: Member | None) -> h5py.Group:
    if not isinstance(member, h5py.Group):
        raise Refused(f"{getattr(member, 'name', member)!r} is a dataset; expected a group")
    return member


def _dataset(member: Member | None) -> h5py.Dataset:
    if not isinstance(member, h5py.Dataset):
        raise Refused(f"{getattr(member, 'name', member)!r} is a group; expected a dataset")
    return member
