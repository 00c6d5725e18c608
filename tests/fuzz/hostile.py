"""Files in other forms than ours: every entry retyped, dropped, added; bytes changed by chance."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

DEEP, LONG, TWICE = "@deep@", "@long@", "@twice@"
_RAW = {f'"{DEEP}"': "[" * 100_000 + "]" * 100_000, f'"{LONG}"': "9" * 5000, f'"{TWICE}": 0': '"a": 1, "a": 1'}
HOSTILE: tuple[Any, ...] = (
    None, True, 0, -1, 1, 10**400, -(2**63), 0.5, -1e308, 1e308, float("nan"), float("inf"), "", "x", "1", "nan",
    "\ud800\x1b[2J\n=1", "x" * 10_000, [], {}, [None], [[1]], {"": None}, [1] * 1000, DEEP, LONG, {TWICE: 0},
)  # fmt: skip
"""Values in the place of others."""


def text_of(value: Any) -> str:
    """The value as JSON, with what Python has no value for."""
    text = json.dumps(value)
    for mark, raw in _RAW.items():
        text = text.replace(mark, raw)
    return text


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value within a value, itself first."""
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from places(inner, (*path, key))


def variants(value: Any) -> Iterator[str]:
    """JSON of a value with one entry changed: every entry, by everything in `HOSTILE`, and none, and one more."""
    for path in places(value):
        for other in HOSTILE:
            yield text_of(replaced(value, path, other))
        if path:
            yield text_of(dropped(value, path))
        inner = at(value, path)
        if isinstance(inner, dict):
            yield text_of(replaced(value, path, {**inner, "more": 1}))
        if isinstance(inner, list):
            yield text_of(replaced(value, path, [*inner, *inner, "more"]))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    """What lies there."""
    for key in path:
        value = value[key]
    return value


def replaced(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    """A copy with `other` there."""
    if not path:
        return other
    made = copy.deepcopy(value)
    at(made, path[:-1])[path[-1]] = other
    return made


def dropped(value: Any, path: tuple[Any, ...]) -> Any:
    """A copy without it."""
    made = copy.deepcopy(value)
    del at(made, path[:-1])[path[-1]]
    return made


def mangled(chance: random.Random, data: bytes) -> bytes:
    """The bytes with some cut out, doubled, replaced or put in."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(made) + 1)
        end = min(len(made), start + chance.choice((0, 1, 1, 2, 8, 100, 1000)))
        put = chance.choice(
            (
                b"",
                bytes(made[start:end]) * 2,
                chance.randbytes(end - start),
                chance.choice(
                    (b"\0", b"\n", b"\r", b"\xff", b"\x1b[2J", b"\xe2\x80\xae", b'"', b"{", b"}", b"[", b",")
                ),
                chance.choice((b"1e999", b"-1", b"9" * 400, b"9" * 5000, b"nan", b"inf", b"-inf", b"1.2.3", b"null")),
            )
        )
        made[start:end] = put
    return bytes(made)
