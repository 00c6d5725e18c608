"""Lists as Caffe's Python interface hands them out: they index, slice, grow and shrink, but don't compare or sort."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Vec(Generic[T]):
    """A list without list's comparisons and searches, as C++ vectors are in Python. IndexError beyond its ends."""

    def __init__(self, items: Iterable[T] = ()) -> None:
        self._items = list(items)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def __contains__(self, item: object) -> bool:
        return item in self._items

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._part(self._items[index])
        try:
            return self._items[index]
        except IndexError:
            raise IndexError("Index out of range") from None

    def _part(self, items: list[T]) -> Vec[T]:
        return type(self)(items)

    def __setitem__(self, index: Any, value: Any) -> None:
        try:
            self._items[index] = value
        except IndexError:
            raise IndexError("Index out of range") from None

    def __delitem__(self, index: Any) -> None:
        try:
            del self._items[index]
        except IndexError:
            raise IndexError("Index out of range") from None

    def append(self, item: T) -> None:
        """Adds one."""
        self._items.append(item)

    def extend(self, items: Iterable[T]) -> None:
        """Adds several."""
        self._items.extend(items)


class IntVec(Vec[int]):
    """Whole numbers, such as a blob's shape."""


class DtypeVec(Vec[float]):
    """Numbers, such as loss weights."""


class BoolVec(Vec[bool]):
    """Truth values: a Python layer's propagate_down."""


class StringVec(Vec[str]):
    """Names."""


class LayerVec(Vec[Any]):
    """The layers of a net."""


class NetVec(Vec[Any]):
    """Nets, such as a solver's test_nets."""
