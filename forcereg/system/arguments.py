"""What Python calls are given, checked before anything is opened: a slip is one line, not a traceback from inside."""

from __future__ import annotations

import functools
import inspect
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, SupportsFloat, TypeVar

from forcereg.errors import UsageError

P = ParamSpec("P")
T = TypeVar("T")
LEAST = {
    **dict.fromkeys(("batch", "clip_until", "data_aware", "data_budget", "every", "iterations", "jobs", "keep"), 1),
    **dict.fromkeys(("min_size", "multiple", "patience", "powersgd_rank", "recalibrate", "resize_height"), 1),
    **dict.fromkeys(("resize_width", "seeds", "smooth", "threads", "trials"), 1),
    **dict.fromkeys(("finetune", "over", "powersgd_start", "records", "seed", "warmup", "workers"), 0),
    "clusters": 2,
}
"""The smallest value of whole numbers by their names; the options of commands have the same."""


def checked(call: Callable[P, T]) -> Callable[P, T]:
    """The call, which raises UsageError for an argument that isn't what its annotation says.

    Whole numbers become Python's own, of whatever library they are. Annotations that `KINDS` lacks aren't looked at.
    """
    signature = inspect.signature(call)

    @functools.wraps(call)
    def checking(*args: P.args, **named: P.kwargs) -> T:
        given = signature.bind(*args, **named)
        for name, value in given.arguments.items():
            said = signature.parameters[name].annotation
            kind = KINDS.get(str(said).removesuffix(" | None"))
            if kind is not None and not (value is None and str(said).endswith(" | None")):
                given.arguments[name] = kind(name, value)
        return call(*given.args, **given.kwargs)

    return checking


def wrong(name: str, value: Any, expected: str) -> UsageError:
    """The error for an argument."""
    shown = repr(value)
    # a net or an array is as long as a book
    return UsageError(f"{name} is {shown if len(shown) < 60 else f'a {type(value).__name__}'}; expected {expected}")


def whole(name: str, value: Any) -> int:
    """A whole number of any library. True is none: who gives it means a flag."""
    least = LEAST.get(name)
    try:
        found = operator.index(value)
    except TypeError:
        found = None
    if found is None or isinstance(value, bool):
        raise wrong(name, value, "a whole number")
    if least is not None and found < least:
        raise wrong(name, found, f"{least} or more")
    return found


def number(name: str, value: Any) -> float:
    """A number of any library, whose range whoever takes it checks."""
    if isinstance(value, bool | str | bytes) or not isinstance(value, SupportsFloat):
        raise wrong(name, value, "a number")
    return value if isinstance(value, int | float) else float(value)


def switch(name: str, value: Any) -> bool:
    """True or False, of any library, or 1 or 0; a text, which would count as True, is a slip."""
    try:
        found = bool(value) if type(value).__name__ in ("bool", "bool_") else {0: False, 1: True}[operator.index(value)]
    except (TypeError, KeyError):
        raise wrong(name, value, "True or False") from None
    return found


def rank(name: str, value: Any) -> Any:
    """A rank, or several of a method that has several."""
    return tuple(whole(name, one) for one in value) if isinstance(value, tuple | list) else whole(name, value)


def text(name: str, value: Any) -> str:
    """Text."""
    if not isinstance(value, str):
        raise wrong(name, value, "text")
    return value


def path(name: str, value: Any) -> str | os.PathLike[str]:
    """A path; bytes, which Python takes for one too, don't go into nets and states."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise wrong(name, value, "a path")
    return value


def several(one: Callable[[str, Any], Any], expected: str) -> Callable[[str, Any], Any]:
    """The check of one, or of several in any collection."""

    def check(name: str, value: Any) -> Any:
        if isinstance(value, str | os.PathLike):
            return one(name, value)
        if isinstance(value, bytes) or not isinstance(value, Iterable):
            raise wrong(name, value, expected)
        return [one(name, each) for each in value]

    return check


names = several(text, "a name, or several in a list")


def layers(name: str, value: Any) -> Any:
    """Names and patterns, or a function of a layer."""
    if callable(value):
        return value
    found = several(text, "names, patterns (conv*) or a function of a layer")(name, value)
    if not found and not isinstance(value, str):
        raise UsageError(f"{name} is empty; leave it out for all layers")
    return found


def numbers(name: str, value: Any) -> list[Any]:
    """Several numbers, whose range whoever takes them checks."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise wrong(name, value, "numbers, as in [0.01, 0.05]")
    # those of numpy don't go into JSON
    found = [one.item() if hasattr(one, "item") else one for one in value]
    if not found:
        raise UsageError(f"{name} is empty; expected numbers, as in [0.01, 0.05]")
    return found


def shapes(name: str, value: Any) -> dict[str, list[int]]:
    """Blob -> shape."""
    if not isinstance(value, Mapping):
        raise wrong(name, value, 'shapes by blob, as in {"data": [1, 3, 32, 32]}')
    return {blob: shape(f"the shape of {blob!r} in {name}", given) for blob, given in value.items()}


def shape(name: str, value: Any) -> list[int]:
    """Whole numbers."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise wrong(name, value, "whole numbers, as in [1, 3, 32, 32]")
    return [whole(name, size) for size in value]


def device(name: str, value: Any) -> Any:
    """The name of a device, or torch's object for one."""
    if not isinstance(value, str) and not hasattr(value, "type"):
        raise wrong(name, value, "a device, as in cpu or cuda:0")
    return value


def phase(name: str, value: Any) -> str | int:
    """TRAIN or TEST, or their numbers."""
    return value if isinstance(value, str) else whole(name, value)


def module(name: str, value: Any) -> Any:
    """A torch.nn.Module, known by its methods: this runs where torch isn't loaded."""
    if not callable(getattr(value, "named_modules", None)) or isinstance(value, type):
        raise wrong(name, value, "a torch.nn.Module")
    return value


def tensor(name: str, value: Any) -> Any:
    """A torch.Tensor."""
    if not callable(getattr(value, "is_floating_point", None)):
        raise wrong(name, value, "a Tensor")
    return value


def observer(name: str, value: Any) -> Any:
    """What events are told."""
    if not callable(value):
        raise wrong(name, value, "a function of an Event")
    return value


def observers(name: str, value: Any) -> list[Any]:
    """Several of them."""
    if not isinstance(value, Iterable):
        raise wrong(name, value, "functions of an Event in a list")
    return [observer(name, one) for one in value]


KINDS: dict[str, Callable[[str, Any], Any]] = {
    "int": whole,
    "float": number,
    "bool": switch,
    "str": text,
    "str | int": phase,
    "str | torch.device": device,
    "nn.Module": module,
    "Tensor": tensor,
    "Rank": rank,
    "StrPath": path,
    "StrPath | Sequence[StrPath]": several(path, "a path, or several in a list"),
    "str | Sequence[str]": names,
    "Sequence[str]": names,
    "Named | str": names,
    "Picked | str": layers,
    "Sequence[float]": numbers,
    "Mapping[str, Sequence[int]]": shapes,
    "Observer": observer,
    "Sequence[Observer]": observers,
}
"""Annotation, without None -> what checks it."""
