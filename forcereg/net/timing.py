"""How long a net's layers take, forwards and backwards: `forcereg time`, with Caffe's averages."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from forcereg.layers import Layer
from forcereg.net.module import Net
from forcereg.net.sparse import Execution
from forcereg.schema.spec import LayerSpec


@dataclass(frozen=True)
class LayerTime:
    """Mean milliseconds of one layer; `backward` is 0 where there is nothing to compute."""

    name: str
    type: str
    forward: float
    backward: float


@dataclass(frozen=True)
class Timing:
    """Mean milliseconds by layer, in net order, and of whole iterations: `wall` holds each one's, `total` their sum.

    By another `runtime` than torch layers are measured alone and forwards only, and an iteration is the whole net's.
    `sparse`: how each convolution ran, of a net in which any leaves out weights that are 0: forwards only, too.

    >>> found = forcereg.time("deploy.prototxt", iterations=2, device="cpu")
    >>> len(found.wall), found.total == sum(found.wall), found.runtime
    (2, True, 'torch')
    """

    layers: list[LayerTime]
    wall: list[float]
    runtime: str = "torch"
    sparse: Sequence[Execution] = ()

    @property
    def forward(self) -> float:
        """All layers' forward passes."""
        return sum(layer.forward for layer in self.layers)

    @property
    def backward(self) -> float:
        """All layers' backward passes."""
        return sum(layer.backward for layer in self.layers)

    @property
    def total(self) -> float:
        """All iterations."""
        return sum(self.wall)

    @property
    def both(self) -> float:
        """A whole iteration, with what lies between the layers."""
        return self.total / len(self.wall)


class Stopwatch:
    """Moments on a device: of the host's clock, or events in a GPU's stream, for which nothing waits until the end."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._device = device

    def mark(self) -> Any:
        """This moment."""
        if not self._on_gpu:
            return time.perf_counter()
        # waiting for the device at every layer would be measured too
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        """Waits until the device has done all that it was given."""
        if self._on_gpu:
            torch.cuda.synchronize(self._device)

    def between(self, start: Any, end: Any) -> float:
        """Milliseconds from one mark to another; call `wait` before."""
        return start.elapsed_time(end) if self._on_gpu else 1000 * (end - start)


@dataclass
class _Run:
    """One layer's forward: what it read, as leaves of a graph of its own, and what it gave."""

    spec: LayerSpec
    module: Layer
    bottoms: list[Tensor]
    leaves: list[Tensor]
    tops: tuple[Tensor, ...]


class _Iteration:
    """One forward and backward pass of `net`, each layer by itself; `marks` are (layer, forward?, start, end)."""

    def __init__(self, net: Net, watch: Stopwatch) -> None:
        self._net, self._watch = net, watch
        self._runs: list[_Run] = []
        self.marks: list[tuple[str, bool, Any, Any]] = []

    def run(self, inputs: dict[str, Tensor], backward: bool) -> None:
        with torch.set_grad_enabled(backward):
            self._forward(inputs)
        if backward:
            self._backward()

    def _time(self, layer: str, forward: bool, work: Callable[[], Any]) -> Any:
        start = self._watch.mark()
        result = work()
        self.marks.append((layer, forward, start, self._watch.mark()))
        return result

    def _forward(self, inputs: dict[str, Tensor]) -> None:
        blobs = dict(inputs)
        for name, feed in self._net.feeds.items():
            blobs.update(zip(feed.tops, self._time(name, True, feed.next), strict=True))
        before, self._net.around = self._net.around, self._layer
        try:
            self._net(blobs)
        finally:
            self._net.around = before

    def _layer(self, spec: LayerSpec, module: Layer, bottoms: list[Tensor]) -> Any:
        # cut off, so that a layer's backward ends at its bottoms and can be timed alone
        leaves = [bottom.detach().requires_grad_(bottom.requires_grad) for bottom in bottoms]
        # a leaf that learns can't be overwritten, its copy can
        given = [leaf.clone() for leaf in leaves] if getattr(module, "overwrite", False) else leaves
        tops = self._time(spec.name, True, lambda: module(*given))
        several = (tops,) if isinstance(tops, Tensor) else tuple(tops)
        self._runs.append(_Run(spec, module, bottoms, leaves, several))
        return tops

    def _backward(self) -> None:
        """Every layer that has one, also where its gradient would go nowhere, as in Caffe."""
        diffs: dict[int, Tensor] = {}
        for run in reversed(self._runs):
            # a Split's tops are one tensor
            tops = list({id(top): (i, top) for i, top in enumerate(run.tops) if top.requires_grad}.values())
            read = [leaf for leaf in run.leaves if leaf.requires_grad]
            wanted = read + [blob for blob in run.module.blobs if blob.requires_grad]
            if not tops or not wanted:
                continue
            given = [diffs.pop(id(top), None) for _, top in tops]
            diff = [
                # nobody has given it a diff: a loss's weight, or some number for a top that leads nowhere
                torch.full_like(top, run.spec.loss_weights[i] or 1.0) if known is None else known
                for known, (i, top) in zip(given, tops, strict=True)
            ]
            outputs = [top for _, top in tops]
            found = self._time(
                run.spec.name, False, partial(torch.autograd.grad, outputs, wanted, diff, allow_unused=True)
            )
            readers = [bottom for bottom in run.bottoms if bottom.requires_grad]
            # the blobs' gradients, further on in `found`, go nowhere
            for bottom, value in zip(readers, found, strict=False):
                if value is not None:
                    diffs[id(bottom)] = diffs[id(bottom)] + value if id(bottom) in diffs else value


def measure(
    net: Net,
    iterations: int,
    device: torch.device,
    told: Callable[[int, float], None] = lambda index, wall: None,
    backward: bool = True,
) -> Timing:
    """Runs `net` once to warm up and `iterations` times (>= 1) to measure; `told` hears each one's milliseconds.

    `backward`: also the gradients.

    What nobody feeds (Input layers, data whose shape was given) is zeros. Statistics and carried state of the net move.
    """
    watch = Stopwatch(device)
    fed = {top for feed in net.feeds.values() for top in feed.tops}
    inputs = {name: torch.zeros(net.shapes[name], device=device) for name in net.inputs if name not in fed}
    sums: dict[tuple[str, bool], float] = {}
    wall: list[float] = []
    # the first pass decodes, allocates and chooses kernels
    _Iteration(net, watch).run(inputs, backward)
    watch.wait()
    for index in range(iterations):
        iteration, start = _Iteration(net, watch), time.perf_counter()
        iteration.run(inputs, backward)
        watch.wait()
        wall.append(1000 * (time.perf_counter() - start))
        for layer, forward, begin, end in iteration.marks:
            sums[layer, forward] = sums.get((layer, forward), 0.0) + watch.between(begin, end)
        told(index, wall[-1])
    means = {key: value / iterations for key, value in sums.items()}
    layers = [(spec.name, spec.type) for spec in net.spec.layers]
    rows = [LayerTime(*one, means.get((one[0], True), 0.0), means.get((one[0], False), 0.0)) for one in layers]
    return Timing(rows, wall)
