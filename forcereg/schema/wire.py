"""protobuf's wire format, field by field, so that millions of weights are read and written as bytes.

Passing them through a message's Python lists would take minutes and many times their memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np

Piece: TypeAlias = bytes | memoryview

MOST = 1 << 17
"""Fields that a message may have; each takes a hundred times its two bytes here. Large nets have some thousands."""
VARINT, EIGHT, COUNTED, FOUR = 0, 1, 2, 5
_HEAD = 20  # bytes: a tag and a number, the longest there are


class Damage(ValueError):
    """Bytes that are no message."""


class Field(NamedTuple):
    """A field of a message in a file: its tag at `begin`, its content from `start` to `end`."""

    number: int
    wire: int
    begin: int
    start: int
    end: int


def fields(file: BinaryIO, start: int, end: int) -> Iterator[Field]:
    """The fields of the message between two positions, contents unread. Raises Damage."""
    position, count = start, 0
    while position < end:
        count += 1
        if count > MOST:
            raise Damage(f"a message holds more than {MOST:,} fields")
        # the head alone: contents may be gigabytes
        head = read(file, position, min(position + _HEAD, end))
        key, used = _number(head, 0)
        number, wire = key >> 3, key & 7
        length = {EIGHT: 8, FOUR: 4}.get(wire, 0)
        if wire == COUNTED:
            length, used = _number(head, used)
        elif wire == VARINT:
            length = _number(head, used)[1] - used
        elif not length:
            raise Damage(f"byte {position} opens no field")
        begin, content = position, position + used
        position = content + length
        # protobuf numbers fields from 1 to 2^29 - 1
        if not 0 < number < 1 << 29 or position > end:
            raise Damage(f"the field at byte {begin} is cut off or none")
        yield Field(number, wire, begin, content, position)


def read(file: BinaryIO, start: int, end: int) -> bytes:
    """The bytes between two positions. Raises Damage if the file ends before."""
    file.seek(start)
    found = file.read(end - start)
    if len(found) < end - start:
        raise Damage(f"it ends at byte {start + len(found)}")
    return found


def read_array(file: BinaryIO, field: Field, dtype: str) -> np.ndarray:
    """A packed field's numbers, read into the array. Raises Damage."""
    import numpy as np  # here: commands that only read prototxts start without it

    kind = np.dtype(dtype)
    if (field.end - field.start) % kind.itemsize:
        raise Damage(f"the field at byte {field.begin} holds a part of a number")
    # read into its own memory, without a copy as bytes
    values = np.empty((field.end - field.start) // kind.itemsize, kind)
    file.seek(field.start)
    if file.readinto(values.view(np.uint8).data) < values.nbytes:  # type: ignore[attr-defined]
        raise Damage(f"it ends within the field at byte {field.begin}")
    return values


def message(number: int, pieces: Iterable[Piece]) -> list[Piece]:
    """A counted field (text, bytes, packed numbers or a message) of these contents."""
    content = list(pieces)
    # pieces, not one bytes object: they are written one by one, and weights are never copied
    return [varint(number << 3 | COUNTED) + varint(sum(map(len, content))), *content]


def varint(value: int) -> bytes:
    """A number >= 0 in protobuf's variable length."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def tag(head: bytes) -> tuple[int, int]:
    """Number and wire type of the field that opens these bytes. Raises Damage."""
    value, _ = _number(head, 0)
    return value >> 3, value & 7


def _number(head: bytes, position: int) -> tuple[int, int]:
    """A number of variable length, and the position behind it."""
    value = 0
    # ten bytes hold 64 bits: protobuf's longest
    for shift in range(0, 70, 7):
        if position >= len(head):
            break
        byte = head[position]
        value |= (byte & 127) << shift
        position += 1
        if byte < 128:
            return value, position
    raise Damage("a number is cut off or too long")
