"""Models and solver states as Caffe's binary messages, NetParameter and SolverState.

The messages are taken apart by their fields, so that weights go as bytes from file to array and back, and a
file may be larger than what protobuf itself parses at once. What forcereg adds travels in fields whose numbers
Caffe does not know and skips, in both messages the same:

    16000  "forcereg model" or "forcereg state": opens the file, so that one that was cut off is told from Caffe's
    16001  a text attribute of a model, as in a map: 1 its name, 2 its text
    16002  the extra state, as the image of an HDF5 file
    16003  the checksum: ends the file

Of other programs' files, values that lie as bytes in one type are read too: half precision, of NVIDIA's fork and of
OpenCV's shrinkCaffeModel. Their diffs are skipped.

A program that parses and writes such a file anew keeps these fields, but behind Caffe's: then the checksum is
the old file's and isn't looked at.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from itertools import takewhile
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from forcereg.errors import ForceregError
from forcereg.schema import BlobProto, BlobShape, InnerProductParameter, NetParameter, SolverState, wire
from forcereg.schema.blobs import LEGACY, blob_values, raw_type
from forcereg.schema.dialects import OPENING
from forcereg.snapshot import container
from forcereg.snapshot.content import ModelFile, StateFile, as_floats, float_bytes

LIMIT = (1 << 31) - 1
"""Bytes of a message that protobuf, and so Caffe, can read."""

_OPENING, _ATTRIBUTE, _EXTRA, _CHECKSUM = OPENING, 16001, 16002, 16003
_KINDS = {b"forcereg model": "model", b"forcereg state": "state"}
# the wire types that fields have in each message; a NetParameter's 4, input_dim, may have two
_MODEL = {1: 2, 2: 2, 3: 2, 5: 0, 6: 2, 7: 0, 8: 2, 100: 2}
_STATE = {1: 0, 2: 2, 3: 2, 4: 0}
_PACKED = {5: "<f4", 6: "<f4", 8: "<f8", 9: "<f8"}  # the numbers of a BlobProto
_DATA, _DIFF = ((8, "double_data"), (5, "data")), ((9, "double_diff"), (6, "diff"))  # Caffe prefers doubles, too
_RAW = (12, 13)  # values and diffs as bytes, of other programs
# wire.Damage is a ValueError; DecodeError is what the C runtime raises, the pure Python one lets others through
_DAMAGE = (DecodeError, OSError, ValueError, IndexError, RecursionError, struct.error)
_NO_TEXT = frozenset(range(32)) - frozenset(b"\t\n\v\f\r")  # every message has some of these, no prototxt does


class _Layer(NamedTuple):
    """The numbers of a layer's name, blobs and inner_product_param."""

    name: int
    blobs: int
    inner: int = 0


class _Blob(NamedTuple):
    values: np.ndarray
    diff: np.ndarray | None
    legacy: bool


_FORMS = {100: _Layer(1, 7, 117), 2: _Layer(4, 6, 17)}  # `layer` and, in the first two formats, `layers`
_V0, _V0_LAYER = 1, _Layer(1, 50)  # in `layers`: the message that holds both in the first format


def model_pieces(model: ModelFile, net: Any) -> list[wire.Piece]:
    """A model as the content of a file; `net`: a NetParameter of its layers without blobs.

    Raises ForceregError if that is more than a message may hold.
    """
    head = NetParameter()
    head.CopyFrom(net)
    # layer by layer below, each with its blobs behind it
    head.ClearField("layer")
    # in front: cut anywhere behind it, a file is known as ours and misses its checksum
    pieces = wire.message(_OPENING, [b"forcereg model"])
    for key, text in model.attrs.items():
        pieces += wire.message(_ATTRIBUTE, wire.message(1, [key.encode()]) + wire.message(2, [text.encode()]))
    pieces.append(head.SerializeToString())
    for layer in net.layer:
        content: list[wire.Piece] = [layer.SerializeToString()]
        blobs, changes = model.layers.get(layer.name, {}), model.diffs.get(layer.name, {})
        for index in range(len(blobs)):
            content += wire.message(7, _put_blob(blobs[index], changes.get(index)))
        pieces += wire.message(100, content)
    return _closed(model.path, pieces)


def state_pieces(state: StateFile) -> list[wire.Piece]:
    """A state as the content of a file. Raises ForceregError as `model_pieces`, TypeError for its `extra`."""
    pieces = wire.message(_OPENING, [b"forcereg state"])
    pieces.append(SolverState(iter=state.iteration, current_step=state.current_step).SerializeToString())
    # by its bytes: a path needn't be UTF-8, which protobuf would ask for
    pieces += wire.message(2, [os.fsencode(state.learned_net)])
    for values in state.history:
        pieces += wire.message(3, _put_blob(values))
    if state.extra is not None:
        from forcereg.snapshot.hdf5 import pack_extra

        pieces += wire.message(_EXTRA, [pack_extra(state.extra, state.path)])
    return _closed(state.path, pieces)


def check_size(name: str, model: int, state: int) -> None:
    """Raises ForceregError, opened by `name`, if a model or state of so many bytes is too large for a message."""
    if max(model, state) > LIMIT:
        what, size = ("model", model) if model > LIMIT else ("solver state", state)
        raise ForceregError(
            f"{name}: the {what} takes {size:,} bytes, a binaryproto file {LIMIT:,} at most; set snapshot_format: HDF5"
            ", or write a file whose name ends in .h5"
        )


def read(raw: BinaryIO, path: Path) -> ModelFile | StateFile:
    """The contents of an open binaryproto file. Raises ForceregError for one that is damaged or holds neither."""
    # ahead of the fields: text or an image would be called a damaged snapshot
    _check_start(raw, path)
    try:
        top = _whole(raw)
        kind = _kind(raw, top)
        if kind == "model":
            return _read_model(raw, path, top)
        if kind == "state":
            return _read_state(raw, path, top)
    except _DAMAGE as exc:
        raise container.damaged(path, exc) from exc
    raise ForceregError(f"{path}: this is a binary message, but neither a model nor a solver state")


def read_net(raw: BinaryIO, path: Path) -> bytes:
    """The NetParameter of an open binary model, in whichever format, without the blobs. Raises ForceregError.

    With the field that tells whose numbers it has, for decode_net.
    """
    try:
        parts = (_without_blobs(raw, field) for field in _whole(raw) if field.number <= _OPENING)
        return b"".join(bytes(piece) for pieces in parts for piece in pieces)
    except _DAMAGE as exc:
        raise container.damaged(path, exc) from exc


# -- writing


def _closed(path: Path, pieces: list[wire.Piece]) -> list[wire.Piece]:
    """The pieces, and the tag of the checksum that comes behind them."""
    # a field around the footer, or other programs would stumble over bytes that belong to none
    pieces.append(wire.varint(_CHECKSUM << 3 | wire.COUNTED) + wire.varint(container.FOOTER))
    size = sum(map(len, pieces)) + container.FOOTER
    check_size(f"cannot write {path}", size, size)
    return pieces


def _put_blob(values: np.ndarray, diff: np.ndarray | None = None) -> list[wire.Piece]:
    pieces = wire.message(5, [float_bytes(values)])
    if diff is not None:
        pieces += wire.message(6, [float_bytes(diff)])
    return pieces + wire.message(7, [BlobShape(dim=np.shape(values)).SerializeToString()])


# -- reading


def _check_start(raw: BinaryIO, path: Path) -> None:
    """Raises ForceregError for a file that is no message: a model's or state's opens with a field that they have."""
    head = wire.read(raw, 0, min(4096, container.size(raw)))
    try:
        number, kind = wire.tag(head)
    except wire.Damage:
        number, kind = 0, 0
    known = {*_MODEL.items(), *_STATE.items(), (_OPENING, wire.COUNTED)}
    is_text = head.isascii() and _NO_TEXT.isdisjoint(head)
    if is_text or (number, kind) not in known:
        found = "text" if is_text else "neither HDF5 nor binaryproto"
        raise ForceregError(
            f"{path}: this is {found}; expected a snapshot: a .caffemodel or .solverstate, also as .h5, or weights as "
            ".safetensors or .npz"
        )


def _whole(raw: BinaryIO) -> list[wire.Field]:
    """The fields of the file, its checksum compared. Raises Damage."""
    top = list(wire.fields(raw, 0, container.size(raw)))
    fits = container.checksum_fits(raw)
    numbers = [field.number for field in top]
    # by another program, which puts unknown fields behind those it knows: the checksum was of the old bytes
    written_anew = numbers[0] != _OPENING and _OPENING in numbers
    if fits is False and not written_anew:
        raise wire.Damage("its checksum is wrong")
    # a file of ours has one: without it, it was cut or written over
    if fits is None and numbers[0] == _OPENING:
        raise wire.Damage("its last bytes are missing or overwritten")
    return top


def _kind(raw: BinaryIO, top: Sequence[wire.Field]) -> str | None:
    """ "model", "state" or None: as we wrote it, else as the fields tell."""
    for field in top:
        if field.number == _OPENING:
            return _KINDS.get(wire.read(raw, field.start, field.end))
    found = {(field.number, field.wire) for field in top}
    # unknown numbers pass: forks add fields of their own
    if all(_STATE.get(number, kind) == kind for number, kind in found) and (1, wire.VARINT) in found:
        return "state"
    if all(_MODEL.get(number, kind) == kind for number, kind in found) and any(number in _FORMS for number, _ in found):
        return "model"
    return None


def _read_model(raw: BinaryIO, path: Path, top: Sequence[wire.Field]) -> ModelFile:
    layers: dict[str, dict[int, np.ndarray]] = {}
    diffs: dict[str, dict[int, np.ndarray]] = {}
    transposed: set[str] = set()
    legacy = False
    if {2, 100} <= {field.number for field in top}:
        raise ForceregError(f"{path}: holds `layer` and `layers`, two formats in one; use another snapshot")
    for field in top:
        if field.number not in _FORMS:
            continue
        name, blobs, inner = _layer_parts(raw, field)
        if blobs and layers.get(name):
            raise ForceregError(f"{path}: two layers are called {name!r} and have weights; rename one of them")
        found = [_get_blob(raw, blob, f"{path}: layer {name!r} blob {index}") for index, blob in enumerate(blobs)]
        layers.setdefault(name, {}).update((index, blob.values) for index, blob in enumerate(found))
        changes = {index: blob.diff for index, blob in enumerate(found) if blob.diff is not None}
        if changes:
            diffs[name] = changes
        # one is enough: Caffe's versions wrote either form throughout
        legacy |= any(blob.legacy for blob in found)
        if any(InnerProductParameter.FromString(wire.read(raw, part.start, part.end)).transpose for part in inner):
            transposed.add(name)
    attrs = dict(_attribute(raw, field) for field in top if field.number == _ATTRIBUTE)
    return ModelFile(path, layers, attrs, diffs, legacy, frozenset(transposed))


def _read_state(raw: BinaryIO, path: Path, top: Sequence[wire.Field]) -> StateFile:
    from forcereg.snapshot.hdf5 import unpack_extra

    named = [field for field in top if field.number == 2]
    if not named:
        raise ForceregError(f"{path}: this is not a Caffe solver state: it lacks 'learned_net'")
    numbers = SolverState.FromString(_joined(raw, (field for field in top if field.number in (1, 4))))
    found = [field for field in top if field.number == 3]
    history = [_get_blob(raw, field, f"{path}: history blob {index}") for index, field in enumerate(found)]
    extra = [wire.read(raw, field.start, field.end) for field in top if field.number == _EXTRA]
    return StateFile(
        path,
        iteration=numbers.iter,
        current_step=numbers.current_step,
        # the last, as protobuf takes it of a field that comes twice
        learned_net=os.fsdecode(wire.read(raw, named[-1].start, named[-1].end)),
        history=[blob.values for blob in history],
        extra=unpack_extra(extra[-1], path) if extra else None,
        legacy=any(blob.legacy for blob in history),
    )


def _layer_parts(raw: BinaryIO, field: wire.Field) -> tuple[str, list[wire.Field], list[wire.Field]]:
    """A layer's name and where its blobs and its inner_product_param are, in any of the three formats."""
    form, parts = _FORMS[field.number], list(wire.fields(raw, field.start, field.end))
    if field.number == 2:
        inner = [part for part in parts if part.number == _V0 and part.wire == wire.COUNTED]
        if inner:
            form, parts = _V0_LAYER, list(wire.fields(raw, inner[-1].start, inner[-1].end))
    # of another wire type a field is unknown to protobuf, and skipped
    counted = [part for part in parts if part.wire == wire.COUNTED]
    names = [wire.read(raw, part.start, part.end) for part in counted if part.number == form.name]
    # Caffe takes any bytes for a name
    name = names[-1].decode("utf-8", "surrogateescape") if names else ""
    blobs, inner = ([part for part in counted if part.number == number] for number in (form.blobs, form.inner))
    return name, blobs, inner


def _without_blobs(raw: BinaryIO, field: wire.Field, form: _Layer | None = None) -> list[wire.Piece]:
    """A field of a net; of a layer, in any of the three formats, without what holds its blobs."""
    form = form or _FORMS.get(field.number)
    if form is None or field.wire != wire.COUNTED:
        return [wire.read(raw, field.begin, field.end)]
    content: list[wire.Piece] = []
    for part in wire.fields(raw, field.start, field.end):
        inner = _V0_LAYER if (field.number, form, part.number) == (2, _FORMS[2], _V0) else None
        if inner is not None and part.wire == wire.COUNTED:
            content += _without_blobs(raw, part, inner)
        elif part.number != form.blobs or part.wire != wire.COUNTED:
            content.append(wire.read(raw, part.begin, part.end))
    return wire.message(field.number, content)


def _attribute(raw: BinaryIO, field: wire.Field) -> tuple[str, str]:
    parts = {part.number: wire.read(raw, part.start, part.end) for part in wire.fields(raw, field.start, field.end)}
    return parts.get(1, b"").decode(), parts.get(2, b"").decode()


def _get_blob(raw: BinaryIO, field: wire.Field, where: str) -> _Blob:
    """The values of a BlobProto, as float32. Raises ForceregError if they don't fill its shape, or Damage."""
    parts = list(takewhile(_is_usual, wire.fields(raw, field.start, field.end)))
    if (parts[-1].end if parts else field.start) < field.end:  # a field for each number: protobuf reads these faster
        parts = [field._replace(number=0, begin=field.start)]
    rest = BlobProto.FromString(_joined(raw, (part for part in parts if part.number not in (*_PACKED, *_RAW))))
    # as in Caffe these four count where any of them is set, and `shape` doesn't
    legacy = any(rest.HasField(name) for name in LEGACY)
    shape = tuple(getattr(rest, name) for name in LEGACY) if legacy else tuple(rest.shape.dim)
    data, diff = (_numbers(raw, parts, rest, fields) for fields in (_DATA, _DIFF))
    if not data.size:
        data = _raw_numbers(raw, parts, rest, where)
    if min(shape, default=0) < 0 or len(shape) > 32 or data.size != prod(shape) or diff.size not in (0, data.size):
        raise ForceregError(f"{where} holds {data.size} values in shape {list(shape)}; expected one value each")
    return _Blob(data.reshape(shape), diff.reshape(shape) if diff.size else None, legacy)


def _is_usual(part: wire.Field) -> bool:
    return part.number not in _PACKED or part.wire == wire.COUNTED


def _numbers(raw: BinaryIO, parts: Sequence[wire.Field], rest: Any, fields: Iterable[tuple[int, str]]) -> np.ndarray:
    """The first of `fields` that holds any, as float32: its packed pieces, nearly always one, else what `rest` has."""
    for number, name in fields:
        found = [part for part in parts if part.number == number and part.end > part.start]
        arrays = [wire.read_array(raw, part, _PACKED[number]) for part in found] or [np.array(getattr(rest, name))]
        if len(arrays[0]):
            return as_floats(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
    return np.empty(0, np.float32)


def _raw_numbers(raw: BinaryIO, parts: Sequence[wire.Field], rest: Any, where: str) -> np.ndarray:
    """The values that are there as bytes, as float32. Raises ForceregError for a type that weights don't have."""
    found = [part for part in parts if (part.number, part.wire) == (_RAW[0], wire.COUNTED)]
    if not found:
        return blob_values(rest, where)
    return as_floats(wire.read_array(raw, found[-1], raw_type(rest, where).str))


def _joined(raw: BinaryIO, parts: Iterable[wire.Field]) -> bytes:
    return b"".join(wire.read(raw, part.begin, part.end) for part in parts)
