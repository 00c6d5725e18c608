"""Every extension point of forcereg: one `Registry` each, filled by a decorator where the thing is defined.

A new layer, filler, data source, learning rate policy, force type, solver type or
decomposition is one function or class with one decorator; nothing else needs to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from forcereg.errors import ForceregError, did_you_mean

T = TypeVar("T")


@dataclass(frozen=True)
class About:
    """What users are told of a registered thing: the LayerParameter messages it reads, and its limits in a phrase.

    One of `params` is the name of a message, or `message.field,field` where only some of its fields are read.
    """

    params: tuple[str, ...] = ()
    limits: str = ""


class Registry(Generic[T]):
    """Named implementations of one kind ("layer type", "filler", ...).

    Used as a decorator: `@layer("ReLU")`. A name given twice is a programming error.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._known: dict[str, T] = {}
        self._about: dict[str, About] = {}

    def __call__(self, name: str, params: str = "", limits: str = "") -> Callable[[T], T]:
        """The decorator. `params` (space separated) and `limits` go into the support table."""

        def register(item: T) -> T:
            if name in self._known:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._known[name] = item
            self._about[name] = About(tuple(params.split()), limits)
            return item

        return register

    def get(self, name: str, where: str = "") -> T:
        """The implementation called `name`; `where` (file, line, layer) opens the error if there is none."""
        if name in self._known:
            return self._known[name]
        prefix = f"{where}: " if where else ""
        hint = did_you_mean(name, self._known) or f"; known are {', '.join(sorted(self._known))}"
        raise ForceregError(f"{prefix}unknown {self.kind} {name!r}{hint}")

    def about(self, name: str) -> About:
        """What was said of `name` when it was registered."""
        return self._about[name]

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._known))


layer: Registry[Any] = Registry("layer type")
filler: Registry[Any] = Registry("filler type")
source: Registry[Any] = Registry("data layer type")
lr_policy: Registry[Any] = Registry("lr_policy")
force_type: Registry[Any] = Registry("force_type")
solver_type: Registry[Any] = Registry("solver type")
factorizer: Registry[Any] = Registry("decomposition method")
