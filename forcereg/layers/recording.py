"""What layers do while torch records them as a graph of its own operations, to be run elsewhere."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor


def recording() -> bool:
    """Whether torch.jit.trace, torch.export or an ONNX exporter records: a layer is then its plain operations.

    What is fast or rounds as Caffe does by other means, and gradients that differ from autograd's, step aside.
    """
    # older versions of torch only know is_compiling
    is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return bool(torch.jit.is_tracing() or is_exporting() or torch.onnx.is_in_onnx_export())


def apply(function: Any, *args: Any) -> Any:
    """function.apply(*args) of an autograd Function; while torch records, its forward with autograd's own gradient."""
    return function.forward(_Context(), *args) if recording() else function.apply(*args)


def sizes(x: Tensor) -> tuple[int, ...]:
    """x's shape as numbers: torch.jit.trace has tensors there, and would warn of whatever depends on them."""
    if not torch.jit.is_tracing():
        return tuple(x.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return tuple(int(size) for size in x.shape)


class _Context:
    """Stands in for what an autograd Function keeps for its backward pass, which there won't be."""

    # more than any Function here has inputs
    needs_input_grad = (False,) * 16

    def save_for_backward(self, *tensors: Any) -> None:
        pass
