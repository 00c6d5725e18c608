"""The fields of a prototxt as a tree that asks no schema: what forks and own layers call theirs, nobody knows here.

A field's text in one form (`written`), its values in Python's (`plain`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor

from forcereg.schema import NetParameter
from forcereg.schema.numbers import FLOATS, repeats
from forcereg.schema.place import OPENING, tokens
from forcereg.schema.scan import MAX_DEPTH

_NUMBER = re.compile(
    r"[+-]?(?:(?P<hex>0x[0-9a-f]+)|(?P<octal>0[0-7]+)|(?P<whole>0|[1-9][0-9]*)|"
    r"(?P<real>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?f?|inf(?:inity)?|nan))",
    re.IGNORECASE,
)
_LONGEST_NUMBER = 400


@dataclass(slots=True)
class Scalar:
    """A value as it is written; strings that stand one behind the other are one."""

    text: str
    at: int


@dataclass(slots=True)
class Block:
    """A message: its fields, and where its bracket is."""

    fields: list[Field]
    at: int


@dataclass(slots=True)
class Field:
    """`name: value` or `name { ... }` from `at` to `end`, a separator behind it included; `listed`: in brackets.

    `end` is 0 where the text breaks off inside.
    """

    name: str
    at: int
    end: int = 0
    values: list[Scalar | Block] = field(default_factory=list)
    listed: bool = False

    @property
    def blocks(self) -> list[Block]:
        """Its values that are messages."""
        return [value for value in self.values if isinstance(value, Block)]

    @property
    def scalars(self) -> list[Scalar]:
        """Its values that are none."""
        return [value for value in self.values if isinstance(value, Scalar)]


class Broken(ValueError):
    """Where a text stops being fields."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"no field at {offset}")
        self.offset = offset


class _Reader:
    def __init__(self, text: str) -> None:
        self._stream = tokens(text)
        self._length = len(text)
        self.token, self.at, self.end = "", 0, 0
        self.step()

    def step(self) -> None:
        """To the next token; '' at the end."""
        self.end = self.at + len(self.token)
        self.token, self.at = next(self._stream, ("", self._length))

    def fields(self, found: list[Field], closing: str, depth: int) -> None:
        while self.token != closing:
            if not _is_name(self.token):
                raise Broken(self.at)
            found.append(Field(self.token, self.at))
            self._finish(found[-1], depth)

    def _finish(self, one: Field, depth: int) -> None:
        self.step()
        colon = self.token == ":"
        if colon:
            self.step()
        if self.token == "[":
            self._list(one, depth)
        elif self.token in OPENING:
            self._block(one, depth)
        elif colon:
            one.values.append(self._scalar())
        else:
            raise Broken(self.at)
        if self.token and self.token in ",;":
            self.step()
        one.end = self.end

    def _list(self, one: Field, depth: int) -> None:
        one.listed = True
        self.step()
        while self.token != "]":
            if self.token in OPENING:
                self._block(one, depth)
            else:
                one.values.append(self._scalar())
            if self.token == ",":
                self.step()
                if self.token == "]":
                    raise Broken(self.at)
            elif self.token != "]":
                raise Broken(self.at)
        self.step()

    def _block(self, one: Field, depth: int) -> None:
        # the reader calls itself: hostile brackets would exhaust Python's stack
        if depth >= MAX_DEPTH:
            raise Broken(self.at)
        block, closing = Block([], self.at), OPENING[self.token]
        one.values.append(block)
        self.step()
        self.fields(block.fields, closing, depth + 1)
        self.step()

    def _scalar(self) -> Scalar:
        token, at = self.token, self.at
        if token[:1] in ('"', "'"):
            pieces = []
            while self.token[:1] in ('"', "'") and self.token:
                if len(self.token) < 2 or self.token[-1] != self.token[0]:
                    raise Broken(self.at)
                pieces.append(self.token)
                self.step()
            return Scalar(" ".join(pieces), at)
        # int() of a very long number takes quadratic time, and Python refuses it
        if not token or not (_is_name(token) or (_NUMBER.fullmatch(token) and len(token) < _LONGEST_NUMBER)):
            raise Broken(at)
        self.step()
        return Scalar(token, at)


def _is_name(token: str) -> bool:
    return token.isidentifier() and token.isascii()


def read_fields(text: str) -> tuple[list[Field], int | None]:
    """The fields of a text, and where it stops being fields: the last ones are unfinished there; None: it doesn't."""
    found: list[Field] = []
    try:
        _Reader(text).fields(found, "", 0)
    except Broken as error:
        return found, error.offset
    return found, None


# -- as text


def written(fields: Iterable[Field]) -> str:
    """The fields in the form of `to_text`, one in each line, lists of several in brackets one by one."""
    return "".join(_lines(fields, ""))


def _lines(fields: Iterable[Field], indent: str) -> Iterator[str]:
    for one in fields:
        if one.listed and len(one.values) < 2 and not one.blocks:  # what says that it is a list
            yield f"{indent}{one.name}: [{''.join(value.text for value in one.scalars)}]\n"
            continue
        for value in one.values:
            if isinstance(value, Scalar):
                yield f"{indent}{one.name}: {value.text}\n"
            else:
                yield f"{indent}{one.name} {{\n"
                yield from _lines(value.fields, indent + "  ")
                yield f"{indent}}}\n"


# -- as values


def plain(fields: Iterable[Field], descriptor: Any = None) -> dict[str, Any]:
    """Fields as Python values by their names: dicts for messages, lists for what is given several times or in brackets.

    Strings, numbers and bools are what they look like; other words are strings. `descriptor`: of the message that they
    are, if it is one of Caffe's: what this repeats is a list always. Raises ValueError for a string that isn't UTF-8.
    """
    found: dict[str, Any] = {}
    known = descriptor.fields_by_name if descriptor is not None else {}
    gathered: dict[str, list[Any]] = {}
    several = set()
    for one in fields:
        kind = known.get(one.name)
        gathered.setdefault(one.name, []).extend(_value(value, kind) for value in one.values)
        if one.listed or (kind is not None and repeats(kind)):
            several.add(one.name)
    for name, values in gathered.items():
        found[name] = values if name in several or len(values) != 1 else values[0]
    return found


def _value(value: Scalar | Block, kind: Any) -> Any:
    if isinstance(value, Block):
        return plain(value.fields, kind.message_type if kind is not None else None)
    made = _scalar(value.text)
    # 1 in a float field is 1.0, or keywords would differ with how it is written
    return float(made) if kind is not None and kind.type in FLOATS and isinstance(made, int) else made


def _scalar(text: str) -> Any:
    if text[0] in "\"'":
        return _string(text)
    if text in ("true", "True", "false", "False"):
        return text in ("true", "True")
    match = _NUMBER.fullmatch(text)
    if match is None:
        return text
    sign = -1 if text[0] == "-" else 1
    if match["real"]:
        return sign * float(match["real"].lower().rstrip("f") if "inf" not in text.lower() else "inf")
    digits = match["hex"] or match["octal"] or match["whole"]
    return sign * int(digits, 16 if match["hex"] else 8 if match["octal"] else 10)


def _string(text: str) -> str:
    message = NetParameter()
    try:
        # by protobuf itself, whose escapes are not Python's
        text_format.Parse(f"name: {text}", message)
    except text_format.ParseError:
        raise ValueError(f"{text[:40]} is no string in UTF-8") from None
    return str(message.name)


def message_values(message: Any) -> dict[str, Any]:
    """What is set in a message of Caffe's, as `plain` gives it: enums by their names."""
    found: dict[str, Any] = {}
    for kind, value in message.ListFields():
        values = [_known(kind, one) for one in (value if repeats(kind) else (value,))]
        found[kind.name] = values if repeats(kind) else values[0]
    return found


def _known(kind: Any, value: Any) -> Any:
    if kind.message_type is not None:
        return message_values(value)
    if kind.type == FieldDescriptor.TYPE_ENUM:
        return kind.enum_type.values_by_number[value].name
    return _shortest(value) if kind.type == FieldDescriptor.TYPE_FLOAT else value


def _shortest(value: float) -> float:
    """The number as it was written, of which the message holds the nearest float32."""
    # compared as float32: which is what the message holds
    known = struct.pack("f", value)
    # 9 digits always do, but then 0.1 would be 0.100000001
    return next(
        (short for digits in (6, 7, 8) if struct.pack("f", short := float(f"{value:.{digits}g}")) == known), value
    )
