"""What a sparse form of a convolution is, and the one that a layer keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.layers.convolve import Geometry
from forcereg.layers.sparse.layout import Layout
from forcereg.registry import sparse_form

DENSE = "dense"
"""No form: torch's own convolution."""
MODES = {0: DENSE, 1: "csr", 2: "ccnmm", 3: "direct", 4: DENSE}
"""Of each ConvolutionParameter.conv_mode the form; the SSL branch runs DIRECT_DCONV as it runs LOWERED_GEMM."""
NO_BACKWARD = "a sparse conv_mode has no backward pass, it is for nets that don't learn; leave conv_mode out to train"
DTYPES = (torch.float32, torch.float64)


class Form(ABC):
    """A convolution's weight (out, C/group, kh, kw), made ready to be run without its zeros.

    What is exactly 0 is left out, however small the rest is. Made of the values that the weight has now.
    """

    @classmethod
    def refusal(cls, weight: Tensor, geometry: Geometry) -> str:
        """Why this form can't run such a convolution; empty where it can."""
        if len(geometry.kernel) != 2:
            return f"it takes 2 spatial axes, here are {len(geometry.kernel)}"
        return "" if weight.dtype in DTYPES else f"it takes float32 and float64, here is {weight.dtype}"

    def __init__(self, weight: Tensor, geometry: Geometry, group: int) -> None:
        self._geometry, self._group = geometry, group
        self._filters, self._channels = weight.shape[:2]
        self._layout: Layout | None = None

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (N, C, H, W) convolved, (N, out, H', W'), as `convolve.convolve` up to rounding; without a gradient."""
        size = (x.shape[2], x.shape[3])
        if self._layout is None or self._layout.size != size:
            self._layout = Layout(self._geometry, size)
            self._place(self._layout)
        return self._run(x.detach(), None if bias is None else bias.detach(), self._layout)

    @abstractmethod
    def _place(self, layout: Layout) -> None:
        """Learns where in inputs of another size the weights find what they meet."""

    @abstractmethod
    def _run(self, x: Tensor, bias: Tensor | None, layout: Layout) -> Tensor: ...


def available(name: str) -> str:
    """What is missing for the form called `name`, with how to install it; empty if nothing is. Raises ForceregError."""
    sparse_form.get(name)
    about = sparse_form.about(name)
    missing = [module for module in about.params if find_spec(module) is None]
    return f"needs {' and '.join(missing)}; install with {about.limits}" if missing else ""


def make(name: str, weight: Tensor, geometry: Geometry, group: int) -> Form:
    """The form of a weight. Raises ForceregError for an unknown name, a missing package, what the form can't run."""
    if missing := available(name):
        raise ForceregError(f"{name} {missing}")
    kind = sparse_form.get(name)
    if why := kind.refusal(weight, geometry):
        raise ForceregError(f"{name} can't run it: {why}")
    form: Form = kind(weight.detach(), geometry, group)
    return form


class Sparse:
    """How one layer runs: in the form called `name`, made when it is first needed, and anew when weights have changed.

    Copies and pickles hold the name alone.
    """

    def __init__(self, name: str) -> None:
        # raises for an unknown one
        sparse_form.get(name)
        self.name = name
        self._form: Form | None = None
        self._made_of: tuple[Any, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return Sparse, (self.name,)

    def run(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        group: int,
        fail: Callable[[str], ForceregError],
    ) -> Tensor:
        """x (N, C, ...) convolved. A backward pass through it ends in `fail` of why. Raises ForceregError as `make`."""
        version = 0 if weight.is_inference() else weight._version
        made_of = (weight.data_ptr(), version, weight.dtype, weight.device, weight.shape)
        if self._form is None or made_of != self._made_of:
            try:
                self._form, self._made_of = make(self.name, weight, geometry, group), made_of
            except ForceregError as error:
                raise fail(str(error)) from None
        x = x.to(weight.dtype)
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            ran: Tensor = _NoBackward.apply(self._form, fail, x, weight, bias)
            return ran
        return self._form(x, bias)


class _NoBackward(torch.autograd.Function):
    """A form where a gradient might be asked for: the weights that it holds aren't those that learn."""

    @staticmethod
    def forward(ctx: Any, form: Form, fail: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.fail = fail
        return form(x, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise ctx.fail(NO_BACKWARD)
