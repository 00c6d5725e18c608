"""Averages of the weights over iterations, beside them: tested and saved as a net of their own.

average = d * average + (1 - d) * weight behind each update, with d = min(decay, (1 + t) / (10 + t)) behind the t-th
one, as in TensorFlow's ExponentialMovingAverage with num_updates: the first weights are soon forgotten.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forcereg.errors import ForceregError
from forcereg.layers.output import HDF5Output
from forcereg.net.module import Net
from forcereg.snapshot import Copies, StateFile
from forcereg.solver.ondevice import fused_sgd
from forcereg.solver.saved import AVERAGE
from forcereg.solver.state import to_array

ENDING = "_ema"
"""Of the names of its scores."""


def leaves_traces(net: Net) -> bool:
    """Whether a pass does more than give outputs: then it isn't run a second time."""
    return any(layer is not None and (layer.runs_code or isinstance(layer, HDF5Output)) for _, layer in net.built)


class Average:
    """The averages of all that iterations change in `net`: weights that learn, and BatchNorm's statistics.

    Those are sums with the factor that divides them, so that the averages of both have the mean of what was seen.
    `since`: the iteration with which it began, -1 before.
    """

    def __init__(self, net: Net, decay: float, device: torch.device) -> None:
        self._net, self._decay = net, decay
        self._share, self._told = torch.zeros((), device=device), 0.0
        self._collect({})
        self.since = -1

    def _collect(self, kept: Mapping[int, Tensor]) -> None:
        """Takes the net's blobs as they are now; `kept`: id of a blob -> the average that it has."""
        learnable = self._net.learnable
        moving = [one for one in learnable if one.blob.requires_grad or not isinstance(one.blob, nn.Parameter)]
        self._names = [f"{one.layer}/{one.index}" for one in moving]
        self._blobs = [one.blob for one in moving]
        self.values = [kept[id(blob)] if id(blob) in kept else blob.detach().clone() for blob in self._blobs]

    def renew(self) -> None:
        """Takes its net as that is now: averages of blobs that it didn't have are yet to be filled."""
        self._collect({id(blob): value for blob, value in zip(self._blobs, self.values, strict=True)})

    def of(self, layer: str, index: int) -> Tensor:
        """The average of a blob of the net's own."""
        return self.values[self._names.index(f"{layer}/{index}")]

    @torch.no_grad()
    def restart(self) -> None:
        """Begins anew, with the weights as they are."""
        self.since = -1
        for value, blob in zip(self.values, self._blobs, strict=True):
            value.copy_(blob)

    def prepare(self, iteration: int) -> None:
        """Which iteration comes next: before `step`, and before a graph that holds it."""
        self.since = iteration if self.since < 0 else self.since
        count = iteration - self.since
        share = 1 - min(self._decay, (1 + count) / (10 + count))
        if share != self._told:  # filling launches a kernel
            self._share.fill_(share)
        self._told = share

    @torch.no_grad()
    def step(self, stopped: Tensor | None) -> None:
        """Takes in the weights as they are; on a device not where `stopped` is 1, in two launches for a graph."""
        if not self.values:
            return
        if stopped is None:
            torch._foreach_lerp_(self.values, self._blobs, self._told)
        else:
            fused_sgd(self.values, list(torch._foreach_sub(self.values, self._blobs)), [], stopped, lr=self._share)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """In the block the net has the averages for weights, and zeros where its own are: it stays as sparse."""
        with torch.no_grad():
            kept = [blob.detach().clone() for blob in self._blobs]
            for blob, own, value in zip(self._blobs, kept, self.values, strict=True):
                torch.where(own == 0, own, value, out=blob.detach())
        try:
            yield
        finally:
            with torch.no_grad():
                for blob, own in zip(self._blobs, kept, strict=True):
                    blob.copy_(own)

    def state_dict(self) -> dict[str, Any]:
        """What a state's `extra` has of it."""
        return {"since": self.since, "blobs": {name: to_array(one) for name, one in self._named().items()}}

    def _named(self) -> dict[str, Tensor]:
        return dict(zip(self._names, self.values, strict=True))

    def matched(self, state: StateFile) -> Copies:
        """The state's averages for these; none if it has none. Raises ForceregError for those of another net."""
        saved = (state.extra or {}).get(AVERAGE, {}).get("blobs")
        if saved is None:
            return []
        for name, value in self._named().items():
            found = list(np.shape(saved[name])) if name in saved else None
            if found != list(value.shape):
                has = "lacks one" if found is None else f"has one of shape {found}"
                raise ForceregError(
                    f"{state.path}: of {name}, of shape {list(value.shape)}, it {has} among its averaged weights; use "
                    "the net it was saved with, or start anew from its model by --weights"
                )
        return [(value, saved[name]) for name, value in self._named().items()]

    def go_on(self, state: StateFile) -> str:
        """Behind taking over what `matched` gave: what to warn of, '' for nothing."""
        saved = (state.extra or {}).get(AVERAGE)
        if saved is None:
            self.restart()
            return f"{state.path}: holds no averaged weights; they begin anew with its model"
        self.since = saved["since"]
        return ""
