"""Dicts by name in the net's order, with what Python 2's dicts had: scripts of its time run on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import Any, TypeVar

V = TypeVar("V")


class _Listed:
    """A view that also indexes and adds as a list does."""

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]  # type: ignore[call-overload]

    def __add__(self, other: Any) -> list[Any]:
        return [*self, *other]  # type: ignore[misc]

    def __radd__(self, other: Any) -> list[Any]:
        return [*other, *self]  # type: ignore[misc]

    def index(self, item: Any) -> int:
        """The place of the first that equals `item`. Raises ValueError."""
        return list(self).index(item)  # type: ignore[call-overload]

    def sort(self, **_: Any) -> None:
        """Raises TypeError: Python 2 sorted a copy."""
        raise TypeError("keys are a view of the net's; use sorted(...)")


class _Keys(_Listed, KeysView[str]):
    pass


class _Values(_Listed, ValuesView[Any]):
    pass


class _Items(_Listed, ItemsView[str, Any]):
    pass


class Named(OrderedDict[str, V]):
    """Name -> thing, in the net's order."""

    def keys(self) -> Any:
        """The names."""
        return _Keys(self)

    def values(self) -> Any:
        """The things."""
        return _Values(self)

    def items(self) -> Any:
        """Pairs of both."""
        return _Items(self)

    def iterkeys(self) -> Iterator[str]:
        """As in Python 2."""
        return iter(self.keys())

    def itervalues(self) -> Iterator[V]:
        """As in Python 2."""
        return iter(self.values())

    def iteritems(self) -> Iterator[tuple[str, V]]:
        """As in Python 2."""
        return iter(self.items())

    def has_key(self, name: str) -> bool:
        """As in Python 2."""
        return name in self
