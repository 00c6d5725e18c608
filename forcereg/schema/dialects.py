"""Binary nets of forks in which one number is another field: told apart where they can be, else read as it is said.

A net of the force fork has `display` in every layer, and one that forcereg wrote says so. In all others a number that
collides, with a value that matters, is refused, unless the caller names the fork: then its fields get our numbers.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import NamedTuple

from forcereg.errors import ForceregError, UsageError, did_you_mean
from forcereg.schema.scan import shown
from forcereg.schema.wire import COUNTED, FOUR, VARINT, Damage, Field, Piece, fields, message, varint

DIALECTS = {"ssl": "the SSL branch", "force": "the force fork", "skimcaffe": "SkimCaffe"}
"""What a caller may call a fork, and its name."""
OPENING = 16000
"""The number of the field that opens what forcereg writes."""
_LAYER, _PARAM, _CONVOLUTION = 100, 6, 106
_NAME, _TYPE = 1, 2
_MASKED = {"Convolution", "Deconvolution", "InnerProduct"}


class _Meaning(NamedTuple):
    """A number's field in one fork: its name, wire type, our number, and of an enum our value for each of its."""

    field: str
    wire: int
    number: int
    values: tuple[int, ...] = ()


_CONNECTIVITY = _Meaning("connectivity_mode", VARINT, 1012, (0, 1, 2))
_BREADTH, _SHAPE = _Meaning("breadth_decay_mult", FOUR, 1005), _Meaning("kernel_shape_decay_mult", FOUR, 1006)
_MEANINGS: dict[tuple[int, ...], dict[str, _Meaning]] = {
    (_LAYER, 12): {
        "force": _Meaning("display", VARINT, 12, (0, 1)),
        "ssl": _CONNECTIVITY,
        "skimcaffe": _CONNECTIVITY,
    },
    (_LAYER, _PARAM, 5): {
        "force": _Meaning("force_regularize", COUNTED, 5),
        "ssl": _BREADTH,
        "skimcaffe": _BREADTH,
    },
    (_LAYER, _PARAM, 6): {"force": _Meaning("force_mult", FOUR, 6), "ssl": _SHAPE, "skimcaffe": _SHAPE},
    (_LAYER, _CONVOLUTION, 21): {
        "ssl": _Meaning("conv_mode", VARINT, 21, (0, 1, 2, 3, 4)),
        "skimcaffe": _Meaning("conv_mode", VARINT, 21, (0, 2, 3, 4)),
    },
}
"""Path of numbers from the net on -> what stands there, by fork."""
_INSIDE = {path[:length] for path in _MEANINGS for length in range(1, len(path))}


class _Found(NamedTuple):
    layer: str
    path: tuple[int, ...]
    wire: int
    value: float  # 0: without effect; a message counts as 1


def check_dialect(dialect: str | None) -> None:
    """Raises UsageError for a name of no fork."""
    if dialect is not None and dialect not in DIALECTS:
        raise UsageError(
            f"unknown dialect {dialect!r}{did_you_mean(dialect, DIALECTS)}; expected {', '.join(DIALECTS)}"
        )


def translated(data: bytes, name: str, dialect: str | None = None) -> bytes:
    """A binary NetParameter by our numbers, without the field that opens ours.

    `dialect`: whose numbers it has, one of DIALECTS. Raises ForceregError, opened by `name`, for numbers that mean
    different fields where nothing tells which, and where the named fork has no such field; what is damaged comes back
    as it is.
    """
    try:
        own, found, types = _collisions(data)
    except (Damage, struct.error):
        return data
    if own and dialect is not None:
        raise ForceregError(f"{name}: forcereg wrote this net, with its own numbers; leave out the dialect {dialect}")
    if own:
        return _without_opening(data)
    if dialect is None:
        _refuse_unclear(found, types, name)
        return data
    for one in found:
        _check_meaning(one, name, dialect)
    changed = any(meanings[dialect].number != path[-1] for path, meanings in _MEANINGS.items() if dialect in meanings)
    return b"".join(map(bytes, _renumbered(data, dialect))) if changed else data


def _refuse_unclear(found: list[_Found], types: list[str], name: str) -> None:
    """Raises for the first number that matters, unless all that is there can be the force fork's alone."""
    # in every layer, also in those that have no weights to mask: display
    shows = sum(one.path == (_LAYER, 12) for one in found) == len(types) and not _MASKED.issuperset(types)
    regular = any(one.path == (_LAYER, _PARAM, 5) and one.wire == COUNTED for one in found)
    if (shows or regular) and all(_meaning_problem(one, "force") == "" for one in found):
        return
    for one in found:
        if one.value:
            forks: dict[str, list[str]] = {}
            for fork, meaning in _MEANINGS[one.path].items():
                forks.setdefault(meaning.field, []).append(DIALECTS[fork])
            names = " or ".join(f"{field} of {' or '.join(told)}" for field, told in forks.items())
            raise ForceregError(
                f"{name}: layer '{shown(one.layer, 80)}': field {one.path[-1]}, {one.value:g}, may be {names}; tell "
                f"whose net it is: `forcereg convert {name} OUT.caffemodel --dialect {'|'.join(DIALECTS)}`, and use OUT"
            )


def _check_meaning(one: _Found, name: str, dialect: str) -> None:
    if problem := _meaning_problem(one, dialect):
        raise ForceregError(
            f"{name}: layer '{shown(one.layer, 80)}': {problem}; it is no net of {DIALECTS[dialect]}, give another "
            "dialect"
        )


def _meaning_problem(one: _Found, dialect: str) -> str:
    """Why the fork can't have written this; '' if it can."""
    meaning = _MEANINGS[one.path].get(dialect)
    if meaning is None:
        return f"field {one.path[-1]} is none of {DIALECTS[dialect]}" if one.value else ""
    if one.wire != meaning.wire:
        return f"field {one.path[-1]} has another type than {meaning.field}"
    if meaning.values and one.value not in range(len(meaning.values)):
        return f"field {one.path[-1]}, {meaning.field}, is {one.value:g}, which it can't be"
    return ""


def _collisions(data: bytes) -> tuple[bool, list[_Found], list[str]]:
    """Whether forcereg wrote it, every colliding field, and the layers' types. Raises Damage."""
    file, found, types = io.BytesIO(data), list[_Found](), list[str]()
    top = list(fields(file, 0, len(data)))
    for one in top:
        if (one.number, one.wire) == (_LAYER, COUNTED):
            inside = list(fields(file, one.start, one.end))
            name, kind = (_text(data, inside, number) for number in (_NAME, _TYPE))
            types.append(kind)
            for inner in inside:
                found += _below(file, data, inner, (_LAYER, inner.number), name)
    return any(one.number == OPENING for one in top), found, types


def _text(data: bytes, inside: list[Field], number: int) -> str:
    spans = [data[one.start : one.end] for one in inside if (one.number, one.wire) == (number, COUNTED)]
    return spans[-1].decode("utf-8", "replace") if spans else ""


def _below(file: io.BytesIO, data: bytes, one: Field, path: tuple[int, ...], layer: str) -> Iterator[_Found]:
    if path in _MEANINGS:
        yield _Found(layer, path, one.wire, _value(data, one))
    elif path in _INSIDE and one.wire == COUNTED:
        for inner in fields(file, one.start, one.end):
            yield from _below(file, data, inner, (*path, inner.number), layer)


def _value(data: bytes, one: Field) -> float:
    content = data[one.start : one.end]
    if one.wire == FOUR:
        return float(struct.unpack("<f", content)[0])
    if one.wire == VARINT:
        return float(sum((byte & 127) << 7 * at for at, byte in enumerate(content)))
    return 1.0


def _renumbered(data: bytes, dialect: str, path: tuple[int, ...] = ()) -> Iterator[Piece]:
    """The message `data` at `path` in pieces, the fork's numbers and values replaced by ours."""
    view = memoryview(data)
    for one in fields(io.BytesIO(data), 0, len(data)):
        here = (*path, one.number)
        meaning = _MEANINGS.get(here, {}).get(dialect)
        if here in _INSIDE and one.wire == COUNTED:
            yield from message(one.number, _renumbered(data[one.start : one.end], dialect, here))
        elif meaning is None:
            yield view[one.begin : one.end]
        elif meaning.values:
            value = meaning.values[int(_value(data, one))]
            yield varint(meaning.number << 3 | VARINT) + varint(value)
        else:
            length = varint(one.end - one.start) if one.wire == COUNTED else b""
            yield varint(meaning.number << 3 | one.wire) + length + data[one.start : one.end]


def _without_opening(data: bytes) -> bytes:
    spans = [one for one in fields(io.BytesIO(data), 0, len(data)) if one.number < OPENING]
    return b"".join(data[one.begin : one.end] for one in spans)
