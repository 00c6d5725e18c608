"""JSON that forcereg keeps beside nets, read back: by then it may be cut, edited, or somebody else's.

A form is a type as one writes it in Python: a dataclass, `list[int]`, `dict[str, float]`, `str | None`. What is of
another form is not ours, which the reader's caller takes as nothing known, or tells in a line.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from forcereg.system.files import read_file

T = TypeVar("T")
MOST = 64 << 20
"""Bytes of a file."""
DEEPEST = 50
"""Lists and objects within each other."""
DIGITS = 1000
LATER = {"later": True}
"""The metadata of a field, with a default, that files lack which were written before there was one."""
LARGEST = 1 << 63
"""Whole numbers stay below it, and what is computed from them can be told as a float."""


def known(path: Path | None, form: type[T]) -> T | None:
    """What a file holds; None for no file, one that can't be read, and one that isn't of the form."""
    try:
        return None if path is None else of_form(read_json(path), form)
    except (OSError, ValueError):
        return None


def read_json(path: str | Path, most: int = MOST) -> Any:
    """The value in a file. Raises OSError as `files.read_file`, ValueError for what is no JSON (see `parse_json`)."""
    return parse_json(read_file(path, most).decode("utf-8"))


def parse_json(text: str) -> Any:
    """The value of a text. Raises ValueError: json.JSONDecodeError knows the place, others say what is wrong.

    A name may stand once in an object; whole numbers have at most `DIGITS`; nothing is nested beyond `DEEPEST`.
    """
    try:
        # Python's json takes the last of two equal names, and digits without end in quadratic time
        found = json.loads(text, object_pairs_hook=_once, parse_int=_whole)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    # by levels, not by recursion: the depth is what isn't known yet
    level, depth = [found], 0
    while level := [inner for value in level for inner in _inside(value)]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError("nested too deeply")
    return found


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"'{key}' stands twice; keep one")
        found[key] = value
    return found


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def of_form(value: Any, form: Any) -> Any:
    """`value`, dataclasses made of objects that have all of their fields. Raises ValueError for another form.

    A field whose metadata is `LATER` may be missing. A dataclass may have a method `check` that raises ValueError for
    values that can't be.
    """
    origin = get_origin(form)
    if form is Any:
        return value
    if origin is types.UnionType:
        return _one_of(value, get_args(form))
    if origin is list and isinstance(value, list):
        return [of_form(one, *get_args(form)) for one in value]
    if origin is dict and isinstance(value, dict):
        _, inner = get_args(form)
        return {key: of_form(one, inner) for key, one in value.items()}
    if dataclasses.is_dataclass(form) and isinstance(value, dict):
        return _made(value, form)
    # JSON writes 1.0 as 1 in other hands than ours; a bool is an int to Python, so types are compared
    if form is float and type(value) is int and -LARGEST < value < LARGEST:
        return value
    if type(value) is not form or (form is int and not -LARGEST < value < LARGEST):
        raise ValueError(f"a value isn't {getattr(form, '__name__', form)}")
    return value


def _one_of(value: Any, forms: Iterable[Any]) -> Any:
    for form in forms:
        try:
            return of_form(value, form)
        except ValueError:
            continue
    raise ValueError("a value is of no form that it may have")


def _made(value: dict[str, Any], form: Any) -> Any:
    hints = _hints(form)
    later = {one.name for one in dataclasses.fields(form) if one.metadata == LATER}
    # all or none: a file of another version isn't guessed at
    if value.keys() | later != hints.keys():
        raise ValueError(f"its names aren't {', '.join(hints)}")
    made = form(**{name: of_form(one, hints[name]) for name, one in value.items()})
    if hasattr(made, "check"):
        made.check()
    return made


@functools.cache
def _hints(form: Any) -> dict[str, Any]:
    return get_type_hints(form)
