"""Layers written for pycaffe: classes derived from caffe.Layer that read and fill numpy arrays."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from forcereg.layers.base import Layer, Shape
from forcereg.layers.module import user_code
from forcereg.layers.pycaffe.blob import Blob, BlobVec, RawBlobVec, cast, settle
from forcereg.layers.pycaffe.memory import Memory
from forcereg.layers.pycaffe.vectors import BoolVec
from forcereg.schema import TEST, TRAIN
from forcereg.schema.spec import LayerSpec


class CaffeLayer:
    """What `caffe.Layer` is to a user's class; `options` (see LayerSpec) is ours: fields that Caffe would not know."""

    type = "Python"
    blobs: BlobVec
    param_str: str
    param_str_: str
    options: dict[str, Any]
    phase: int

    def __init__(self, layer_param: Any = None) -> None:
        pass


@contextmanager
def served() -> Iterator[None]:
    """While it lasts, `import caffe` gives forcereg.pycaffe, or an installed Caffe with our Layer in place of its own.

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
    # by its name: the room stands on this one
    modules: dict[str, ModuleType] = importlib.import_module("forcereg.pycaffe.launch").modules()
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
        self._settled = False
        self._bottom = RawBlobVec(
            Blob.zeros(tuple(shape), self._checked("bottom", i)) for i, shape in enumerate(shapes)
        )
        in_place = [pair[0] == pair[1] for pair in zip(spec.tops, spec.bottoms, strict=False)]
        self._top = RawBlobVec(
            self._bottom[i]
            if i < len(in_place) and in_place[i]
            else Blob.zeros(check=self._checked("top", i), shaped=False)
            for i in range(len(spec.tops))
        )
        self.user = self._set_up(user_class)
        # a script's net gives the user's layer blobs of its own, which are no business of passes here
        self._learned = self.user.blobs
        self.out_shapes = tuple(blob.sizes for blob in self._top)
        self._adopt_blobs()

    @property
    def top_blobs(self) -> RawBlobVec:
        """What the user's layer has as its tops."""
        return self._top

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
            user.blobs = BlobVec(make=self._new_blob)
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

    def _new_blob(self, shape: Shape, index: int) -> Blob:
        if self._settled:
            raise RuntimeError("add_blob is for setup; the layer's blobs are settled by now")
        check = functools.partial(self.spec.check_size, f"self.blobs[{index}]")
        check(shape)
        return Blob.zeros(shape, check)

    @torch.no_grad()
    def _adopt_blobs(self) -> None:
        self._settled = True
        for index, blob in enumerate(self._learned):
            self.add_blob(f"blob{index}", blob.sizes)
            if not self.blobs[index].is_meta:
                self.blobs[index].copy_(blob.values.read())
        self.fillers = [None] * len(self.blobs)

    def _call(self, user: CaffeLayer, method: str, *arguments: Any) -> None:
        if self._settled:
            user.blobs = self._learned
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
            settle(blob, self._values(tensor, copy=blob in self._top))
        for blob, tensor in zip(self._learned, blobs, strict=True):
            settle(blob, self._values(tensor))
        for blob in self._top:
            cast(blob.values, self._dtype)
        for method in ("reshape", "forward"):
            self._call(self.user, method, self._bottom, self._top)
        for blob, tensor in zip(self._learned, blobs, strict=True):
            values = blob.values.read()
            if values.data_ptr() != tensor.data_ptr():  # a copy, which forward may have changed
                tensor.data.copy_(values)
        # copied: pycaffe's arrays live on, and a layer may count on finding what it left in them
        return tuple(blob.values.read().to(self.place, copy=True) for blob in self._top)

    def gradients(self, turn: int, tops: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
        """The gradients of bottoms and blobs, from the user's backward; None where none is wanted."""
        if turn != self.turn:
            raise self.spec.fail(
                f"{self.title} ran forward again before backward, and it keeps the state of one forward only; "
                "call backward after each forward"
            )
        blobs = (*self._bottom, *self._learned)
        for blob in blobs:
            blob.grads = Memory(blob.sizes)
            cast(blob.grads, self._dtype)
        for blob, gradient in zip(self._top, tops, strict=True):
            # users' code may write into it, and autograd hands the same one to others
            blob.grads.replace(self._values(gradient, copy=True))
        self._call(self.user, "backward", self._top, BoolVec(wanted[: len(self._bottom)]), self._bottom)
        return [blob.grads.read().to(self.place) if want else None for blob, want in zip(blobs, wanted, strict=True)]

    @property
    def _dtype(self) -> torch.dtype:
        # numpy has no bfloat16: layers of other types compute in float32
        return torch.float64 if self.place.dtype == torch.float64 else torch.float32

    def _values(self, tensor: Tensor, copy: bool = False) -> Tensor:
        values = tensor.detach().to("cpu", self._dtype).contiguous()
        return values.clone() if copy and values.data_ptr() == tensor.data_ptr() else values


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
