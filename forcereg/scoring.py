"""Scoring a net: the mean of every output element over batches, as Caffe's tests report it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.memory import check_room
from forcereg.net import Net


@dataclass(frozen=True)
class Output:
    """One element of an output blob and, if it is a loss, its weight."""

    name: str
    value: float
    weight: float = 0.0


@dataclass(frozen=True)
class Score:
    """Means over the batches run: the total loss and every output element, in Caffe's order."""

    loss: float
    outputs: list[Output]
    batches: int

    def mean(self, name: str) -> float:
        """The first element of the output called `name`."""
        return next(output.value for output in self.outputs if output.name == name)


@dataclass(frozen=True)
class Sums:
    """Over `batches` of a net: the sum of the total loss, 0-d, and those of each output blob's elements."""

    batches: int
    loss: Tensor
    outputs: Mapping[str, Tensor]

    def cpu(self) -> Sums:
        """The same on the host."""
        return Sums(self.batches, self.loss.cpu(), {name: blob.cpu() for name, blob in self.outputs.items()})


def read_outputs(blobs: Mapping[str, Tensor], weights: Mapping[str, float]) -> list[Output]:
    """Every element of the output blobs in order, fetched from the device in one transfer."""
    if not blobs:
        return []
    values = iter(torch.cat([blob.detach().flatten().float() for blob in blobs.values()]).tolist())
    return [
        Output(name, next(values), weights.get(name, 0.0)) for name, blob in blobs.items() for _ in range(blob.numel())
    ]


def check_blobs(net: Net, device: torch.device) -> None:
    """Raises ForceregError if memory can't hold the largest blob of a net that its own data feeds, before it runs."""
    fed = {top for feed in net.feeds.values() for top in feed.tops}
    if device.type == "cpu" and fed.issuperset(net.inputs):
        sizes = [(spec, 4 * prod(net.shapes[top])) for spec in net.spec.layers for top in spec.tops]
        check_room([max(sizes, key=lambda layer: layer[1])] if sizes else [], "its top")


def score(
    net: Net,
    iterations: int,
    before: Callable[[int], bool] = lambda index: True,
    after: Callable[[int, Mapping[str, Tensor]], None] = lambda index, outputs: None,
    inputs: Callable[[int], Mapping[str, Tensor] | None] = lambda index: None,
) -> Score:
    """Runs `iterations` batches; the means of what `add_up` gives. Raises as it does."""
    return means(net, [add_up(net, iterations, before, after, inputs)])


@torch.no_grad()
def add_up(
    net: Net,
    iterations: int,
    before: Callable[[int], bool] = lambda index: True,
    after: Callable[[int, Mapping[str, Tensor]], None] = lambda index, outputs: None,
    inputs: Callable[[int], Mapping[str, Tensor] | None] = lambda index: None,
) -> Sums:
    """Runs `iterations` batches; sums stay on the device.

    `before(index)` is asked before each batch and ends the run by returning False; `after` sees its outputs;
    `inputs` gives what the net's own data layers don't. Raises ForceregError if an output changes its shape.
    """
    sums: dict[str, Tensor] = {}
    total: Tensor | None = None
    done = 0
    while done < iterations and before(done):
        loss, outputs = net.forward_loss(inputs(done))
        total = loss.clone() if total is None else total.add_(loss)
        for name, blob in outputs.items():
            if name in sums:
                _check_shape(net, name, sums[name], blob, f"batch {done + 1}")
            sums[name] = blob.clone() if name not in sums else sums[name].add_(blob)
        after(done, outputs)
        done += 1
    return Sums(done, torch.zeros(()) if total is None else total, sums)


def means(net: Net, parts: Sequence[Sums]) -> Score:
    """The means over all batches that were added up, in several parts or one. Raises as `add_up`."""
    parts = [part for part in parts if part.batches]
    if not parts:
        return Score(float("nan"), [], 0)
    first, *others = parts
    done, total, sums = first.batches, first.loss, dict(first.outputs)
    for part in others:
        done, total = done + part.batches, total + part.loss
        for name, blob in part.outputs.items():
            _check_shape(net, name, sums[name], blob, "other batches")
            sums[name] = sums[name] + blob
    return Score(float(total) / done, read_outputs({n: b / done for n, b in sums.items()}, net.loss_weights), done)


def _check_shape(net: Net, name: str, sums: Tensor, blob: Tensor, where: str) -> None:
    if sums.shape != blob.shape:  # behind a Filter; an addition might broadcast
        raise ForceregError(
            f"net '{net.spec.name}': output '{name}' has shape {list(sums.shape)}, then {list(blob.shape)} in "
            f"{where}, so its elements have no mean; give it to a Silence layer"
        )
