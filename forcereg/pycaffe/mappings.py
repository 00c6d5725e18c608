"""Dicts by name in the net's order, with what Python 2's dicts had: scripts of its time run on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

V = TypeVar("V")


class Listed(list[Any]):
    """Keys, values or items: a list, as in Python 2, that also takes part in set operations, as a view does."""

    def __and__(self, other: Iterable[Any]) -> set[Any]:
        return set(self) & set(other)

    def __or__(self, other: Iterable[Any]) -> set[Any]:
        return set(self) | set(other)

    def __sub__(self, other: Iterable[Any]) -> set[Any]:
        return set(self) - set(other)

    def __xor__(self, other: Iterable[Any]) -> set[Any]:
        return set(self) ^ set(other)

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def __rsub__(self, other: Iterable[Any]) -> set[Any]:
        return set(other) - set(self)

    def isdisjoint(self, other: Iterable[Any]) -> bool:
        """Whether they have nothing in common."""
        return set(self).isdisjoint(other)


class Old(dict[str, V]):
    """Name -> thing with Python 2's methods, such as what a pass comes to. It is stored, as by `np.save`, as a dict."""

    def __reduce__(self) -> Any:
        return dict, (list(super().items()),)

    def keys(self) -> Any:
        """The names."""
        return Listed(self)

    def values(self) -> Any:
        """The things."""
        return Listed(super().values())

    def items(self) -> Any:
        """Pairs of both."""
        return Listed(super().items())

    def iterkeys(self) -> Iterator[str]:
        """As in Python 2."""
        return iter(self)

    def itervalues(self) -> Iterator[V]:
        """As in Python 2."""
        return iter(super().values())

    def iteritems(self) -> Iterator[tuple[str, V]]:
        """As in Python 2."""
        return iter(super().items())

    def has_key(self, name: str) -> bool:
        """As in Python 2."""
        return name in self


class Named(Old[V], OrderedDict[str, V]):
    """Name -> thing, in the net's order."""

    __reduce__ = OrderedDict.__reduce__
