"""Mixed precision: which layers compute in bfloat16 or float16, and the loss scale that float16 needs.

Weights, gradients, history and the update are float32 always, and so are tests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.layers import Layer
from forcereg.net.module import Net
from forcereg.schema.spec import LayerSpec

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

PRODUCTS = frozenset(("Convolution", "Deconvolution", "InnerProduct"))
"""Layer types that compute in the lower precision."""

CARRIERS = frozenset((
    "BatchNorm", "Concat", "Crop", "Dropout", "Flatten", "Pooling", "ReLU", "Reshape", "Silence", "Slice", "Split",
))  # fmt: skip
"""Layer types that take their bottoms as they come: they move values, or sum in float32. All others get float32."""


class LossScale:
    """What the loss is multiplied by, so that small gradients don't vanish in float16; all on the device.

    Halved when a gradient isn't finite, and that step left out; doubled after `INTERVAL` steps without. At scale 1
    there is nothing left to halve: then the run itself has diverged.
    """

    FIRST = 2.0**16
    INTERVAL = 2000

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), self.FIRST, device=device)
        self.good = torch.zeros((), dtype=torch.int32, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)

    def unscale(self, grads: list[Tensor], loss: Tensor) -> tuple[Tensor, Tensor]:
        """Divides `grads` by the scale and moves it; (whether to leave this step out, whether the run has diverged)."""
        found = (~loss.isfinite()).to(torch.float32)
        # the kernels of torch's GradScaler, without the class: that would read the device in each step
        torch._amp_foreach_non_finite_check_and_unscale_(grads, found, self.value.reciprocal())
        skip = found > 0
        # asked before the scale moves: at 1 nothing is left to halve
        diverged = skip & (self.value <= 1)
        torch._amp_update_scale_(self.value, self.good, found, 2.0, 0.5, self.INTERVAL)
        self.skipped += skip
        return skip, diverged

    def state_dict(self) -> dict[str, Any]:
        """What a snapshot keeps of it."""
        return {"scale": float(self.value), "good": int(self.good), "skipped": int(self.skipped)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken; begins anew with an empty one."""
        self.value.fill_(state.get("scale", self.FIRST))
        self.good.fill_(state.get("good", 0))
        self.skipped.fill_(state.get("skipped", 0))


class Precision:
    """Runs a training net's forward pass in the precision `kind` ("bf16", "fp16"; None for float32).

    Warns of a device that has no arithmetic of its own for it. Raises ForceregError for another kind.
    """

    def __init__(self, net: Net, device: torch.device, kind: str | None, warn: Callable[[str], None]) -> None:
        if kind is not None and kind not in DTYPES:
            raise ForceregError(f"unknown precision '{kind}'; expected {' or '.join(DTYPES)}")
        self._net, self.device, self.kind = net, device, kind
        if kind == "fp16" and device.type == "cpu":
            warn("fp16 on a CPU is slow and gains nothing; use --amp bf16, or a GPU")
        if kind == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
            warn("this GPU has no bfloat16 arithmetic and imitates it slowly; use --amp fp16")
        self._dtype = DTYPES[kind] if kind else None
        self.scale = LossScale(device) if kind == "fp16" else None
        # a net in float32 runs its layers directly, and may run them fused
        if kind:
            net.around = self._run

    def forward_loss(
        self, inputs: Mapping[str, Tensor] | None, blobs: Sequence[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The net's loss, float32, and outputs, with `blobs` that layers read."""
        with self._casting():
            return self._net.forward_loss(inputs, blobs)

    def outputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The net's outputs alone."""
        with self._casting():
            return self._net(inputs)

    def _casting(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._dtype is None else torch.autocast(self.device.type, self._dtype)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss`, or of the scaled loss, to the weights'."""
        (loss if self.scale is None else loss * self.scale.value).backward()

    def _run(self, spec: LayerSpec, module: Layer, bottoms: list[Tensor]) -> Any:
        # Pooling's second top counts positions, and what is part of the loss will be summed
        exact = (spec.type == "Pooling" and len(spec.tops) > 1) or any(spec.loss_weights)
        if not exact and (spec.type in PRODUCTS or spec.type in CARRIERS):
            return module(*bottoms)
        with torch.autocast(self.device.type, enabled=False):
            return module(*(bottom.float() if bottom.dtype == self._dtype else bottom for bottom in bottoms))

    def describe(self) -> str:
        """One line for the log: what computes in which precision."""
        names = ", ".join(sorted(PRODUCTS))
        scaled = f"; the loss is scaled, by {self.scale.FIRST:g} at first" if self.scale else ""
        kind = str(self._dtype).removeprefix("torch.")
        return f"Mixed precision: {names} compute in {kind}, weights, losses, updates and tests in float32{scaled}"
