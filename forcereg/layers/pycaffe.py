"""Layers written for pycaffe: classes derived from caffe.Layer that read and fill numpy arrays."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from forcereg import schema
from forcereg.layers.base import Layer, Shape
from forcereg.layers.module import user_code
from forcereg.schema import TEST, TRAIN
from forcereg.schema.spec import LayerSpec

NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


class Blob:
    """pycaffe's blob: `data` and `diff` are numpy arrays, zeros until somebody fills them.

    `check` raises for a shape that no blob may have; it is asked before anything is allocated.
    """

    def __init__(self, check: Callable[[Shape], None], shape: Shape | None = None) -> None:
        self._check = check
        self._shape = shape
        self._dtype: Any = np.float32
        self._arrays: dict[str, np.ndarray] = {}

    @property
    def is_shaped(self) -> bool:
        """Whether it ever got a shape."""
        return self._shape is not None

    @property
    def shape(self) -> Shape:
        """Its sizes; () for none yet."""
        return self._shape or ()

    @property
    def count(self) -> int:
        """The number of values."""
        return prod(self.shape) if self.is_shaped else 0

    @property
    def data(self) -> np.ndarray:
        """The values."""
        return self._array("data")

    @property
    def diff(self) -> np.ndarray:
        """The gradient."""
        return self._array("diff")

    @property
    def num(self) -> int:
        """Size of axis 0."""
        return self._size(0)

    @property
    def channels(self) -> int:
        """Size of axis 1; 1 if it has fewer axes."""
        return self._size(1)

    @property
    def height(self) -> int:
        """Size of axis 2; 1 if it has fewer axes."""
        return self._size(2)

    @property
    def width(self) -> int:
        """Size of axis 3; 1 if it has fewer axes."""
        return self._size(3)

    def reshape(self, *shape: int) -> None:
        """Sets the sizes; the values stay where their number does."""
        sizes = tuple(int(size) for size in shape)
        if sizes == self._shape:
            return
        self._check(sizes)
        keep = self.is_shaped and prod(sizes) == self.count
        self._arrays = {kind: array.reshape(sizes) for kind, array in self._arrays.items()} if keep else {}
        self._shape = sizes

    def _array(self, kind: str) -> np.ndarray:
        if kind not in self._arrays:
            self._arrays[kind] = np.zeros(self.shape, self._dtype)
        return self._arrays[kind]

    def _size(self, axis: int) -> int:
        if len(self.shape) > 4:
            raise ValueError(f"a blob of {len(self.shape)} axes has no num, channels, height and width; use shape")
        return self.shape[axis] if axis < len(self.shape) else 1

    # -- for PyCaffeLayer

    def bind(self, data: np.ndarray) -> None:
        """Makes `data` its values; the gradient is forgotten."""
        self._arrays = {"data": data}
        self._shape, self._dtype = data.shape, data.dtype

    def bind_diff(self, diff: np.ndarray | None) -> None:
        """Makes `diff` its gradient; None for zeros."""
        self._arrays.pop("diff", None)
        if diff is not None:
            self._arrays["diff"] = diff

    def cast(self, dtype: Any) -> None:
        """The type of its values from here on."""
        if self._dtype != dtype:
            self._dtype = dtype
            self._arrays = {kind: array.astype(dtype) for kind, array in self._arrays.items()}


class Blobs(list[Blob]):
    """A layer's `self.blobs`."""

    def __init__(self, check: Callable[[str, Shape], None]) -> None:
        super().__init__()
        self._check = check
        self.closed = False

    def add_blob(self, *shape: int) -> None:
        """Appends a learnable blob of zeros."""
        if self.closed:
            raise RuntimeError("add_blob is for setup; the layer's blobs are settled by now")
        blob = Blob(functools.partial(self._check, f"self.blobs[{len(self)}]"))
        blob.reshape(*shape)
        self.append(blob)


class CaffeLayer:
    """What `caffe.Layer` is to a user's class; `options` (see LayerSpec) is ours: fields that Caffe would not know."""

    type = "Python"
    blobs: Blobs
    param_str: str
    param_str_: str
    options: dict[str, Any]
    phase: int

    def __init__(self, layer_param: Any = None) -> None:
        pass


def stand_in() -> dict[str, ModuleType]:
    """A module `caffe` that has what layers are made of, for machines without Caffe, and its submodules."""
    caffe = ModuleType("caffe", "forcereg's stand-in for pycaffe: what Python layers are made of.")
    proto, messages = ModuleType("caffe.proto"), ModuleType("caffe.proto.caffe_pb2")

    def lacking(name: str) -> Any:
        raise AttributeError(f"forcereg's stand-in for caffe has no '{name}'; Layer, TRAIN, TEST and proto are there")

    vars(messages).update({name: getattr(schema, name) for name in schema.__all__})
    vars(proto).update(caffe_pb2=messages)
    vars(caffe).update(Layer=CaffeLayer, TRAIN=TRAIN, TEST=TEST, proto=proto, __getattr__=lacking)
    for name in ("set_mode_cpu", "set_mode_gpu", "set_device"):  # the command line's --gpu decides
        vars(caffe)[name] = lambda *device: None
    return {module.__name__: module for module in (caffe, proto, messages)}


@contextmanager
def served() -> Iterator[None]:
    """While it lasts, `import caffe` gives our Layer: in a stand-in, or in an installed Caffe in place of its own.

    That one is of C++ and can be made by Caffe's nets only.
    """
    try:
        installed: Any = importlib.import_module("caffe")
    except Exception:
        installed = None
    if hasattr(installed, "Layer"):  # a folder called caffe can be imported too
        # the rest of an installed Caffe stays: a module may use its io or proto
        kept, installed.Layer = installed.Layer, CaffeLayer
        try:
            yield
        finally:
            installed.Layer = kept
        return
    modules = stand_in()
    # a folder called caffe may have been imported: it comes back
    before = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)
        sys.modules.update(before)


class PyCaffeLayer(Layer):
    """Runs a user's caffe.Layer: setup once, reshape and forward for each batch, backward for each gradient.

    A top written in place is the bottom's blob, as in Caffe. Bottoms and blobs are handed out without copying
    where they lie on the CPU.
    """

    capturable = False
    place: Tensor

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape], user_class: type[CaffeLayer]) -> None:
        super().__init__(spec, shapes)
        self.register_buffer("place", torch.empty(0), persistent=False)  # follows the net's device and type
        self.title = f"{user_class.__module__}.{user_class.__name__}"
        self._file = getattr(sys.modules.get(user_class.__module__), "__file__", None)
        self.turn = 0
        self._bottom = [Blob(self._checked("bottom", i), tuple(shape)) for i, shape in enumerate(shapes)]
        in_place = [pair[0] == pair[1] for pair in zip(spec.tops, spec.bottoms, strict=False)]
        self._top = [
            self._bottom[i] if i < len(in_place) and in_place[i] else Blob(self._checked("top", i))
            for i in range(len(spec.tops))
        ]
        self.user = self._set_up(user_class)
        self.out_shapes = tuple(blob.shape for blob in self._top)
        self._adopt_blobs()

    def _checked(self, which: str, index: int) -> Callable[[Shape], None]:
        return functools.partial(self.spec.check_size, f"{which}[{index}] of {self.title}")

    def _set_up(self, user_class: type[CaffeLayer]) -> CaffeLayer:
        for method in ("setup", "reshape", "forward"):
            if not callable(getattr(user_class, method, None)):
                raise self.spec.fail(
                    f"{self.title} has no method {method}; a Python layer has setup, reshape, forward and backward"
                )
        with served(), torch.device("cpu"):  # user code has values even in a net without memory
            with user_code(self.spec, self.title, self._file):
                user = user_class(self.spec.message)
            user.blobs = Blobs(self.spec.check_size)
            # with the underscore in early versions of pycaffe
            user.param_str = user.param_str_ = self.spec.message.python_param.param_str
            user.options = self.spec.options
            user.phase = self.spec.phase
            for method in ("setup", "reshape"):
                self._call(user, method, self._bottom, self._top)
        for index, blob in enumerate(self._top):
            if not blob.is_shaped:
                raise self.spec.fail(
                    f"{self.title}.reshape gave top[{index}] no shape; call top[{index}].reshape(...) there"
                )
        return user

    @torch.no_grad()
    def _adopt_blobs(self) -> None:
        self.user.blobs.closed = True
        for index, blob in enumerate(self.user.blobs):
            self.add_blob(f"blob{index}", blob.shape)
            if not self.blobs[index].is_meta:
                self.blobs[index].copy_(torch.from_numpy(blob.data))
        self.fillers = [None] * len(self.blobs)

    def _call(self, user: CaffeLayer, method: str, *arguments: Any) -> None:
        with user_code(self.spec, f"{self.title}.{method}", self._file):
            getattr(user, method)(*arguments)

    def train(self, mode: bool = True) -> PyCaffeLayer:
        """As torch's; the user's `self.phase` follows."""
        super().train(mode)
        self.user.phase = TRAIN if mode else TEST
        return self

    def forward(self, *bottoms: Tensor) -> Any:
        blobs = [self.weight_blob(name) for name in self.blob_names]
        # without a backward it is no part of the graph, as metrics are none
        if self._top and callable(getattr(self.user, "backward", None)):
            tops = _Run.apply(self, *bottoms, *blobs)
        else:
            tops = self.compute(bottoms, blobs)
        return tops[0] if len(tops) == 1 else tops

    @torch.no_grad()
    def compute(self, bottoms: Sequence[Tensor], blobs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The tops, from the user's reshape and forward."""
        self.turn += 1
        for blob, tensor in zip(self._bottom, bottoms, strict=True):
            # a top in place: the layer writes into what autograd may keep
            blob.bind(self._array(tensor, copy=blob in self._top))
        for blob, tensor in zip(self.user.blobs, blobs, strict=True):
            blob.bind(self._array(tensor))
        for blob in self._top:
            blob.cast(NUMPY[self._dtype])
        for method in ("reshape", "forward"):
            self._call(self.user, method, self._bottom, self._top)
        for blob, tensor in zip(self.user.blobs, blobs, strict=True):
            if blob.data.ctypes.data != tensor.data_ptr():  # a copy, which forward may have changed
                tensor.data.copy_(torch.from_numpy(blob.data))
        # copied: pycaffe's arrays live on, and a layer may count on finding what it left in them
        return tuple(torch.from_numpy(blob.data).to(self.place, copy=True) for blob in self._top)

    def gradients(self, turn: int, tops: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
        """The gradients of bottoms and blobs, from the user's backward; None where none is wanted."""
        if turn != self.turn:
            raise self.spec.fail(
                f"{self.title} ran forward again before backward, and it keeps the state of one forward only; "
                "call backward after each forward"
            )
        for blob in (*self._bottom, *self.user.blobs):
            blob.bind_diff(None)
        for blob, gradient in zip(self._top, tops, strict=True):
            # users' code may write into it, and autograd hands the same one to others
            blob.bind_diff(self._array(gradient, copy=True))
        self._call(self.user, "backward", self._top, list(wanted[: len(self._bottom)]), self._bottom)
        blobs = (*self._bottom, *self.user.blobs)
        return [
            torch.from_numpy(blob.diff).to(self.place) if want else None
            for blob, want in zip(blobs, wanted, strict=True)
        ]

    @property
    def _dtype(self) -> torch.dtype:
        # numpy has no bfloat16: layers of other types compute in float32
        return torch.float64 if self.place.dtype == torch.float64 else torch.float32

    def _array(self, tensor: Tensor, copy: bool = False) -> np.ndarray:
        array = tensor.detach().to("cpu", self._dtype).contiguous().numpy()
        return array.copy() if copy else array


class _Run(torch.autograd.Function):
    """A PyCaffeLayer's forward and backward."""

    @staticmethod
    def forward(ctx: Any, layer: PyCaffeLayer, *tensors: Tensor) -> tuple[Tensor, ...]:
        bottoms = len(layer.spec.bottoms)
        tops = layer.compute(tensors[:bottoms], tensors[bottoms:])
        ctx.layer, ctx.turn = layer, layer.turn
        return tops

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *tops: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.layer.gradients(ctx.turn, tops, ctx.needs_input_grad[1:])
