"""Where in a prototxt its parser stopped: in which blocks, at which field, at which token."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Any

AHEAD = 5000
"""Tokens of a block that are looked at for what it says."""

TOKEN = re.compile(
    r"""
      \#[^\n]* | (?P<token>
        [a-zA-Z_][0-9a-zA-Z_+-]*
      | (?:[0-9+-]|\.[0-9])[0-9a-zA-Z_.+-]*
      | "[^"\\\n]*(?:\\.[^"\\\n]*)*+(?:"|\\?(?=\n|\Z))
      | '[^'\\\n]*(?:\\.[^'\\\n]*)*+(?:'|\\?(?=\n|\Z))
      | \S )
    """,
    re.VERBOSE,
)
"""The tokens that protobuf's parser sees, and comments."""
OPENING, CLOSING = {"{": "}", "<": ">"}, {"}": "{", ">": "<"}


class Wanted(Enum):
    """What would go on."""

    NAME = "a field name"
    COLON = '":"'
    OPEN = '"{"'
    VALUE = "a value"
    SEPARATOR = '"," or "]"'


@dataclass
class Block:
    """The file, or a block in it: what it may hold (None: nobody knows), and its bracket and where that stands.

    `listed`: the field (None: an unknown one) of the list that is open in it, if one is.
    """

    kind: Any
    bracket: str = ""
    at: int = 0
    listed: tuple[Any, ...] = ()


@dataclass
class Place:
    """`token` at `offset` of a text is not `wanted`. `field`: the last that was named; `before`: the token before.

    `blocks`: the file, then the blocks around the place, outermost first. `in_list`: between brackets.
    """

    text: str
    offset: int
    blocks: list[Block]
    wanted: Wanted = Wanted.NAME
    field: Any = None
    token: str = ""
    before: str = ""
    in_list: bool = False


def tokens(text: str, start: int = 0) -> Iterator[tuple[str, int]]:
    """The tokens of a text from `start` on, with their offsets."""
    return ((match["token"], match.start()) for match in TOKEN.finditer(text, start) if match["token"])


def find_place(text: str, kind: Any, offset: int) -> Place:
    """Follows a text that is right before `offset` as a message of the descriptor `kind`."""
    place = Place(text, offset, [Block(kind)])
    stream = tokens(text)
    for token, at in stream:
        if at >= offset:
            place.token, place.offset = token, at
            break
        _step(place, token, at)
        place.before = token
    return place


def _step(place: Place, token: str, at: int) -> None:
    block = place.blocks[-1]
    if place.wanted is Wanted.NAME:
        if token in CLOSING and len(place.blocks) > 1:
            place.blocks.pop()
            outer = place.blocks[-1]
            if outer.listed:
                place.field, place.wanted, place.in_list = outer.listed[0], Wanted.SEPARATOR, True
        # strings one behind the other are one value, not a name
        elif token not in (",", ";", "[") and not (token[0] in "\"'" and place.before[:1] in ("'", '"')):
            # of an unknown block everything is unknown: what is in it is only counted by brackets
            place.field = block.kind.fields_by_name.get(token) if block.kind is not None else None
            scalar = place.field is not None and place.field.message_type is None
            place.wanted = Wanted.COLON if scalar else Wanted.OPEN
    elif token == ":" and place.wanted in (Wanted.COLON, Wanted.OPEN):
        place.wanted = Wanted.OPEN if place.field is not None and place.wanted is Wanted.OPEN else Wanted.VALUE
    elif token == "[" and not place.in_list and place.wanted in (Wanted.OPEN, Wanted.VALUE):
        place.in_list, block.listed = True, (place.field,)
    elif token == "]" and place.in_list:
        place.in_list, block.listed, place.wanted = False, (), Wanted.NAME
    elif token == "," and place.wanted is Wanted.SEPARATOR:
        place.wanted = Wanted.OPEN if place.field is not None and place.field.message_type else Wanted.VALUE
    elif token in OPENING and (place.wanted is Wanted.OPEN or (place.field is None and place.wanted is Wanted.VALUE)):
        kind = place.field.message_type if place.field is not None else None
        place.blocks.append(Block(kind, token, at))
        place.wanted, place.in_list = Wanted.NAME, False
    elif place.wanted is Wanted.VALUE:
        place.wanted = Wanted.SEPARATOR if place.in_list else Wanted.NAME


def said(place: Place, block: Block, name: str) -> str:
    """The first value of the field `name` in a block, before the place or behind it, as written; '' if none is near."""
    depth, before = 0, ["", ""]
    # bounded, as a block of a snapshot in text goes on for megabytes
    for token, _ in islice(tokens(place.text, block.at), AHEAD):
        if before == [name, ":"] and depth == 1:
            return token
        depth += (token in OPENING) - (token in CLOSING)
        if depth == 0:
            break
        before = [before[1], token]
    return ""
