"""What `caffe.Net(...)` is called with, in both of its forms."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from forcereg.pycaffe.state import ArgumentError

NAMES = ("network_file", "phase", "level", "stages", "weights")


class Asked(NamedTuple):
    """A net's file, state and weights; `early`: the weights' file is looked at before the net is built."""

    network: str
    phase: int
    level: int = 0
    stages: tuple[str, ...] = ()
    weights: str | None = None
    early: bool = False


def is_path(value: Any) -> bool:
    """Whether `value` can be a file's name."""
    return isinstance(value, str | bytes | os.PathLike)


def asked(args: Sequence[Any], named: Mapping[str, Any]) -> Asked:
    """The arguments, checked. Raises ArgumentError."""
    # the older form, without keywords
    if len(args) == 3 and not named and is_path(args[0]) and is_path(args[1]):
        return Asked(os.fsdecode(args[0]), _whole("phase", args[2]), weights=os.fsdecode(args[1]), early=True)
    if len(args) > len(NAMES):
        raise ArgumentError(f"Net takes {', '.join(NAMES)}; {len(args)} were given")
    given = dict(zip(NAMES, args, strict=False))
    for name, value in named.items():
        if name not in NAMES or name in given:
            raise ArgumentError(f"Net has no keyword {name!r}, or got it twice; it takes {', '.join(NAMES)}")
        given[name] = value
    for name in NAMES[:2]:
        if name not in given:
            raise ArgumentError(f"Net needs a {name}, as in Net('deploy.prototxt', caffe.TEST)")
    network, weights = given["network_file"], given.get("weights")
    for name, value in (("network_file", network), ("weights", weights)):
        if not is_path(value) and not (name == "weights" and value is None):
            raise ArgumentError(f"Net: {name} is a {type(value).__name__}; expected a path")
    stages = () if given.get("stages") is None else given["stages"]
    if isinstance(stages, str) or not all(isinstance(stage, str) for stage in stages):
        raise ArgumentError("Net: stages are texts in a list")
    level = _whole("level", given.get("level", 0))
    found = None if weights is None else os.fsdecode(weights)
    return Asked(os.fsdecode(network), _whole("phase", given["phase"]), level, tuple(stages), found)


def _whole(what: str, value: Any) -> int:
    try:
        return int(value.__index__())
    except AttributeError:
        raise ArgumentError(f"Net: {what} is a {type(value).__name__}; expected a whole number") from None
