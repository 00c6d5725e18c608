"""What happens in a run, as records: the solver emits them, logs and plots are views of them.

An observer is a callable that takes an `Event`. Values are plain numbers and strings, read from the
device once per event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Output:
    """One element of an output blob and, if it is a loss, its weight."""

    name: str
    value: float
    weight: float = 0.0


@dataclass(frozen=True)
class Event:
    """One record: `kind` says which of `fields` there are.

    start(net) · test_start(net, iteration) · test(net, iteration, outputs, loss) ·
    train(iteration, loss, outputs, rate, speed, seconds, interval) · final(iteration, loss, outputs) ·
    step(iteration, current_step) · force(iteration, layers) · snapshot(model, state, iteration) ·
    restore(state, iteration) · weights(file, report) · progress(iteration, max_iter) · note(text) ·
    warning(text) · stopped() · done()
    """

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["fields"][name]
        except KeyError:
            raise AttributeError(name) from None


Observer = Callable[[Event], None]


def read_outputs(blobs: Mapping[str, Tensor], weights: Mapping[str, float]) -> list[Output]:
    """Every element of the output blobs in order, fetched from the device in one transfer."""
    if not blobs:
        return []
    flat = torch.cat([blob.detach().flatten().float() for blob in blobs.values()]).tolist()
    values = iter(flat)
    return [
        Output(name, next(values), weights.get(name, 0.0))
        for name, blob in blobs.items()
        for _ in range(blob.numel())
    ]


def sum_outputs(batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Elementwise sum of output blobs over batches, on their device."""
    total: dict[str, Tensor] = {}
    for blobs in batches:
        for name, blob in blobs.items():
            total[name] = blob.detach().clone() if name not in total else total[name].add_(blob.detach())
    return total
