"""Blobs as Caffe's Python interface has them: for scripts, and for layers written in Python."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcereg.errors import Fatal
from forcereg.layers.pycaffe.memory import Memory, Shape
from forcereg.layers.pycaffe.vectors import IntVec, Vec
from forcereg.schema.spec import MAX_AXES, MAX_COUNT

LEGACY_AXES = 4
Check = Callable[[Shape], None]


def whole(number: Any) -> int:
    """`number` as an int: anything that is one, NumPy's too, or a float without a fraction. Raises TypeError."""
    if isinstance(number, float | np.floating) and float(number).is_integer():
        return int(number)
    return operator.index(number)


def sizes(dims: Sequence[Any]) -> Shape:
    """The sizes that a `reshape` is given: one by one, or all in one sequence. Raises TypeError."""
    if len(dims) == 1 and isinstance(dims[0], Iterable) and not isinstance(dims[0], str | bytes):
        dims = list(dims[0])
    return tuple(whole(dim) for dim in dims)


def check_shape(shape: Shape) -> None:
    """Raises Fatal for a shape that no blob may have."""
    if len(shape) > MAX_AXES:
        raise Fatal(f"a blob of shape {list(shape)} would have {len(shape)} axes; it has at most {MAX_AXES}")
    if min(shape, default=0) < 0 or prod(shape) > MAX_COUNT:
        raise Fatal(f"a blob can't have shape {list(shape)}; expected sizes of 0 or more, {MAX_COUNT:,} values at most")


class Blob:
    """Values (`data`) and their gradient (`diff`), float32: numpy arrays that stay live.

    What is written into them counts in the next pass, and they show what passes leave there. Nets make blobs; to make
    one raises RuntimeError.
    """

    __slots__ = ("__weakref__", "_check", "_own_shape", "_shaped", "grads", "values")

    _check: Check
    _own_shape: Shape | None
    _shaped: bool
    values: Memory
    grads: Memory

    def __init__(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("This class cannot be instantiated from Python; nets make their blobs")

    @classmethod
    def of(
        cls, values: Memory, grads: Memory, shape: Shape | None = None, check: Check = check_shape, shaped: bool = True
    ) -> Blob:
        """A blob of this memory; `shape`: its own, where it shares the memory with a blob of another one.

        `check` raises for a shape that it may not get; `shaped`: whether it has got one yet.
        """
        blob = cls.__new__(cls)
        blob.values, blob.grads, blob._own_shape, blob._check, blob._shaped = values, grads, shape, check, shaped
        return blob

    @classmethod
    def zeros(cls, shape: Shape = (), check: Check = check_shape, shaped: bool = True) -> Blob:
        """A blob of zeros."""
        return cls.of(Memory(shape), Memory(shape), None, check, shaped)

    @property
    def data(self) -> np.ndarray:
        """The values."""
        return self.values.array(self._own_shape)

    @property
    def diff(self) -> np.ndarray:
        """The gradient."""
        return self.grads.array(self._own_shape)

    @property
    def sizes(self) -> Shape:
        """The sizes as a tuple."""
        return self.values.shape if self._own_shape is None else self._own_shape

    @property
    def is_shaped(self) -> bool:
        """Whether it ever got a shape."""
        return self._shaped

    @property
    def shape(self) -> IntVec:
        """The sizes; none for a scalar."""
        return IntVec(self.sizes)

    @property
    def count(self) -> int:
        """The number of values."""
        return prod(self.sizes) if self._shaped else 0

    @property
    def num(self) -> int:
        """Size of axis 0; 1 if there is none."""
        return self._legacy(0)

    @property
    def channels(self) -> int:
        """Size of axis 1; 1 if there is none."""
        return self._legacy(1)

    @property
    def height(self) -> int:
        """Size of axis 2; 1 if there is none."""
        return self._legacy(2)

    @property
    def width(self) -> int:
        """Size of axis 3; 1 if there is none."""
        return self._legacy(3)

    def _legacy(self, axis: int) -> int:
        shape = self.sizes
        if len(shape) > LEGACY_AXES:
            raise Fatal(f"a blob of {len(shape)} axes has no num, channels, height and width; use shape")
        return shape[axis] if axis < len(shape) else 1

    def reshape(self, *dims: Any, **names: Any) -> None:
        """Sets the sizes; other blobs follow at the net's next reshape or forward.

        Values stay while the new count is at most the largest so far. Raises TypeError for what are no whole numbers,
        RuntimeError for keywords and for sizes that no blob has.
        """
        if names:
            raise RuntimeError("Blob.reshape takes no kwargs")
        shape = sizes(dims)
        if shape != self.sizes or not self._shaped:
            self._check(shape)
            if self.values.fixed:
                self._show(shape)
                return
            self.values.resize(shape)
            self.grads.resize(shape)
            self._own_shape, self._shaped = None, True

    def _show(self, shape: Shape) -> None:
        """Weights are of their layer's shape; arrays of them may have another one."""
        if prod(shape) != self.count:
            raise Fatal(
                f"a weight of shape {list(self.sizes)} can't get shape {list(shape)}, of another count; change the "
                "layer's parameters in the net"
            )
        self._own_shape = shape

    def put(self, tensor: Tensor) -> None:
        """Makes `tensor` the values; a gradient of another shape becomes zeros."""
        self.values.put(tensor)
        if self.grads.shape != self.values.shape:
            self.grads.resize(self.values.shape)

    @property
    def _gpu_data_ptr(self) -> int:
        return _pointer(self.values)

    @property
    def _gpu_diff_ptr(self) -> int:
        return _pointer(self.grads)


def _pointer(memory: Memory) -> int:
    if memory.device.type != "cuda":
        raise AttributeError("the blob isn't on a GPU; call caffe.set_mode_gpu() before")
    memory.put(memory.read().contiguous())
    return memory.read().data_ptr()


class BlobVec(Vec[Blob]):
    """Blobs, such as a layer's parameters."""

    def __init__(self, items: Iterable[Blob] = (), make: Callable[[Shape, int], Blob] | None = None) -> None:
        super().__init__(items)
        self._make = make

    def add_blob(self, *dims: Any, **names: Any) -> None:
        """Appends a blob of zeros. Raises TypeError for what are no whole numbers, RuntimeError for keywords."""
        if names:
            raise RuntimeError("BlobVec.add_blob takes no kwargs")
        shape = sizes(dims)
        if self._make is None:
            check_shape(shape)
            self.append(Blob.zeros(shape))
        else:
            self.append(self._make(shape, len(self)))


class RawBlobVec(BlobVec):
    """The bottoms or tops of a Python layer."""


def settle(blob: Blob, values: Tensor) -> None:
    """Makes `values` a blob's, which arrays handed out before don't follow; the gradient is forgotten."""
    blob.values.replace(values)
    blob.grads = Memory(values.shape)
    blob.grads.dtype = values.dtype
    blob._shaped = True


def cast(memory: Memory, dtype: torch.dtype) -> None:
    """Another type of values from here on."""
    if memory.dtype != dtype:
        if memory.untouched:
            memory.dtype = dtype
        else:
            memory.replace(memory.read().to(dtype))
