"""Scoring a net: the mean of every output element over batches, as Caffe's tests report it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from forcereg.errors import ForceregError, did_you_mean
from forcereg.net.batching import Outputs, batches_at_once, forward_batches, gathered, joinable, same_size
from forcereg.net.module import Net
from forcereg.net.sparse import Execution
from forcereg.system.memory import check_room


@dataclass(frozen=True)
class Output:
    """One element of an output blob and, if it is a loss, its weight."""

    name: str
    value: float
    weight: float = 0.0


@dataclass(frozen=True)
class Score:
    """Means over the batches run: the total loss and every output element, in Caffe's order.

    `sparse`: how each convolution ran, of a net in which any leaves out weights that are 0.

    >>> found = forcereg.score("net.prototxt", "net_iter_20.caffemodel.h5", iterations=3)
    >>> found.batches, [output.name for output in found.outputs], found.loss == found.mean("loss")
    (3, ['accuracy', 'loss'], True)
    """

    loss: float
    outputs: list[Output]
    batches: int
    sparse: Sequence[Execution] = ()

    def mean(self, name: str) -> float:
        """The first element of the output called `name`. Raises ForceregError if there is none."""
        for output in self.outputs:
            if output.name == name:
                return output.value
        names = list(dict.fromkeys(output.name for output in self.outputs))
        hint = did_you_mean(name, names) or f"; outputs are {', '.join(names) or 'none'}"
        raise ForceregError(f"the net has no output '{name}'{hint}")


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
    # each .item() would wait for the device by itself
    values = iter(torch.cat([blob.detach().flatten().float() for blob in blobs.values()]).tolist())
    return [
        Output(name, next(values), weights.get(name, 0.0)) for name, blob in blobs.items() for _ in range(blob.numel())
    ]


def unfed(net: Net) -> list[str]:
    """The inputs that no data layer of the net gives."""
    fed = {top for feed in net.feeds.values() for top in feed.tops}
    return [name for name in net.inputs if name not in fed]


def check_blobs(net: Net, device: torch.device) -> None:
    """Raises ForceregError if memory can't hold the largest blob of a net that its own data feeds, before it runs."""
    # a GPU's allocator refuses at once; the CPU's hands out what isn't there and the process is killed
    if device.type == "cpu" and not unfed(net):
        sizes = [(spec, 4 * prod(net.shapes[top])) for spec in net.spec.layers for top in spec.tops]
        check_room([max(sizes, key=lambda layer: layer[1])] if sizes else [], "its top")


@dataclass(frozen=True)
class Coverage:
    """How many records of a data layer's source, of `records`, some batches of `batch` take."""

    seen: int
    records: int
    batch: int


def coverage(net: Net, batches: int, quick: bool = False) -> list[Coverage]:
    """Of each data layer of which so many batches are not every record once (and the last batch's rest once more).

    `quick`: only of sources that needn't be read for it.
    """
    found = []
    for feed in net.feeds.values():
        batch = feed.shapes[0][0] if feed.shapes and feed.shapes[0] else 0
        records = feed.size(batch * batches if quick else None) if batch else None
        if records and -(-records // batch) != batches:
            found.append(Coverage(batch * batches, records, batch))
    return list(dict.fromkeys(found))


class Tally:
    """Sums over batches of a net's total loss and of every output element, on the device.

    `add` changes them where they are, and from its second time on makes no others, so that a CUDA graph may hold it.
    """

    def __init__(self, net: Net) -> None:
        self.net = net
        self._loss = torch.zeros(())
        self._outputs: Outputs | None = None
        self._done = 0

    @torch.no_grad()
    def add(self, batches: Sequence[Mapping[str, Tensor]]) -> list[Outputs]:
        """Runs batches that may run as one (see `batching`); their output blobs. ForceregError if a shape changes."""
        loss, outputs = forward_batches(self.net, batches)
        if self._outputs is None:
            self._loss = torch.zeros_like(loss)
            self._outputs = {name: torch.zeros_like(blob) for name, blob in outputs[0].items()}
        # the loss of all batches comes once, so it goes with the first of them
        sums, terms = [self._loss], [loss]
        for one in outputs:  # in turn, as they are added where they run one by one
            self._done += 1
            for name, total in self._outputs.items():
                _check_shape(self.net, name, total, one[name], f"batch {self._done}")
                sums.append(total)
                terms.append(one[name])
            if sums:
                # one launch, however many outputs there are
                torch._foreach_add_(sums, terms)
            sums, terms = [], []
        return outputs

    def clear(self) -> None:
        """Begins anew with the same tensors."""
        self._done = 0
        self._loss.zero_()
        for total in (self._outputs or {}).values():
            total.zero_()

    def sums(self, batches: int) -> Sums:
        """What was added up, over that many batches; later changes don't show in it."""
        outputs = (self._outputs or {}).items()
        return Sums(batches, self._loss.clone(), {name: total.clone() for name, total in outputs})


def score(
    net: Net,
    iterations: int,
    before: Callable[[int], bool] = lambda index: True,
    after: Callable[[int, Mapping[str, Tensor]], None] = lambda index, outputs: None,
    inputs: Callable[[int], Mapping[str, Tensor] | None] = lambda index: None,
    at_once: int | None = None,
) -> Score:
    """Runs `iterations` batches; the means of what `add_up` gives. Raises as it does."""
    return means(net, [add_up(net, iterations, before, after, inputs, at_once)])


@torch.no_grad()
def add_up(
    net: Net,
    iterations: int,
    before: Callable[[int], bool] = lambda index: True,
    after: Callable[[int, Mapping[str, Tensor]], None] = lambda index, outputs: None,
    inputs: Callable[[int], Mapping[str, Tensor] | None] = lambda index: None,
    at_once: int | None = None,
    tally: Tally | None = None,
) -> Sums:
    """Runs `iterations` batches, `at_once` of them as one (None: as many as is fast); sums stay on the device.

    `before(index)` is asked before each pass and ends the run by returning False; `after` sees the outputs of every
    batch; `inputs` gives what the net's own data layers don't. `tally`: one to use, cleared, in place of a new one.
    Raises ForceregError if an output changes its shape.
    """
    tally, done = tally or Tally(net), 0
    # one that has been used by a graph keeps its memory, and with it what the graph writes to
    tally.clear()
    most = batches_at_once(net) if at_once is None else at_once if joinable(net) else 1
    while done < iterations and before(done):
        batches = [gathered(net, inputs(index)) for index in range(done, min(done + most, iterations))]
        # images that each have their own size can't be put together
        if not same_size(net, batches):
            most = 1  # from here on: the next ones will be of other sizes too
        for part in [[batch] for batch in batches] if most == 1 else [batches]:
            for outputs in tally.add(part):
                after(done, outputs)
                done += 1
    return tally.sums(done)


def means(net: Net, parts: Sequence[Sums]) -> Score:
    """The means over all batches that were added up, in several parts or one. Raises as `add_up`."""
    # of few batches a rank may have had none, and so no outputs
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
    if sums.shape != blob.shape:  # behind a Filter, or of images of several sizes; an addition might broadcast
        raise ForceregError(
            f"net '{net.spec.name}': output '{name}' has shape {list(sums.shape)}, then {list(blob.shape)} in "
            f"{where}, so its elements have no mean; give it to a Silence layer"
        )
