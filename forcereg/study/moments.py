"""Second moments of layers' inputs over training batches: the metric of data-aware decompositions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from forcereg.data.feed import DEFAULT_BUDGET, FeedContext
from forcereg.errors import ForceregError, UsageError
from forcereg.layers import Layer
from forcereg.layers.convolve import taps
from forcereg.layers.weighted import Convolution, InnerProduct
from forcereg.lowrank.decompose import Prepared, Selection
from forcereg.lowrank.decompose import prepare as prepare_plain
from forcereg.lowrank.ladder import aware
from forcereg.lowrank.merge import merge
from forcereg.lowrank.rewrite import Weights
from forcereg.net.load import net_root
from forcereg.net.module import Net
from forcereg.schema import TRAIN
from forcereg.schema.rules import Title, net_state
from forcereg.schema.spec import LayerSpec, NetSpec, build_spec
from forcereg.schema.text import NetFile, SolverFile, net_from_message
from forcereg.solver.setup import solver_root, trained_net
from forcereg.study.evaluate import load
from forcereg.system.device import choose_device, prepare
from forcereg.system.memory import check_room

CHUNK = 1 << 23
"""Values that are unfolded at a time: 64 MiB in float64."""


@dataclass(frozen=True)
class TrainingData:
    """Where training batches come from: the net's own train phase.

    `solver`: its train_state and root hold, and its net for one without training data (a deploy net). `device`,
    `budget`, `workers` and `allow_python_layers` as `Solver`'s. `seed`: of random crops and the like; None: the
    solver's random_seed.
    """

    batches: int
    solver: SolverFile | None = None
    device: str | None = None
    budget: int = DEFAULT_BUDGET
    workers: int = 0
    allow_python_layers: bool = False
    warn: Callable[[str], None] = warnings.warn
    seed: int | None = None

    def source(self, file: NetFile) -> NetFile:
        """The net whose train phase reads data: `file`, or the solver's. Raises ForceregError if neither does."""
        if reads_data(self._spec(file)):
            return file
        if self.solver is not None:
            file = trained_net(self.solver, self._root(file)).file
            if reads_data(self._spec(file)):
                return file
        raise ForceregError(
            f"{file.name}: its train phase reads no data (a deploy net?); "
            "give the solver that it was trained with (--solver), or its net (--model)"
        )

    def net(self, file: NetFile, weights: Weights) -> Net:
        """The train phase of a net with these weights. Raises ForceregError for weights that don't fit."""
        device = choose_device(self.device, self.solver and self.solver.message, self.warn)
        prepare(device)
        # repeatable, also where the solver has no seed (-1)
        own = 1 if self.solver is None else max(1, self.solver.message.random_seed)
        seed = own if self.seed is None else self.seed
        spec = self._spec(file)
        context = FeedContext(spec.root, device, seed, self.budget, self.workers)
        net = Net(spec, context, None, torch.Generator().manual_seed(seed), self.allow_python_layers).place(device)
        load(net, weights)
        return net

    def _root(self, file: NetFile) -> Path:
        # data is found from where training found it
        return net_root(file) if self.solver is None else solver_root(self.solver)

    def _spec(self, file: NetFile) -> NetSpec:
        own = [] if self.solver is None else [self.solver.message.train_state]
        title = Title(solver=self.solver is not None)
        return build_spec(file, net_state(TRAIN, file.message.state, *own), self._root(file), title)


def reads_data(spec: NetSpec) -> bool:
    """Whether a net takes nothing from its caller."""
    return all(layer.type != "Input" for layer in spec.layers)


def prepare_aware(file: NetFile, weights: Weights, shapes: Any, selection: Selection, data: TrainingData) -> Prepared:
    """As `lowrank.decompose.prepare`, but methods that can minimise the error of the layers' responses on the data.

    Raises ForceregError as that and as `TrainingData.net`; UsageError if no method of a layer to decompose can.
    """
    # twice: which layers are decomposed is known first, whose inputs are looked at then
    first = prepare_plain(data.source(file), weights, None, selection)
    names = [one.name for one in first.candidates if one.method in aware()]
    if not names:
        methods = ", ".join(sorted({one.method for one in first.candidates})) or "no layer"
        raise UsageError(f"--data-aware needs a layer to decompose by {' or '.join(aware())}; there is {methods}")
    # a chain as the one layer whose input counts
    merged = merge(first.file.message, first.weights, [first.chains[name] for name in names if name in first.chains])
    net = data.net(net_from_message(merged[0], first.file.name), merged[1])
    moments = input_moments(net, names, data.batches)
    net.close()
    return prepare_plain(file, weights, shapes, replace(selection, moments=moments))


@dataclass
class Moments:
    """E[x x^T] of the inputs x of one layer, summed up batch by batch."""

    total: Tensor
    count: int = field(default=0)

    def add(self, rows: Tensor) -> None:
        """rows: (n, groups, K)."""
        # float64 before they are multiplied: sums over many batches would lose digits in float32
        each = rows.double().movedim(1, 0)
        self.total += each.mT @ each
        self.count += rows.shape[0]


@torch.no_grad()
def input_moments(net: Net, layers: Collection[str], batches: int) -> dict[str, Tensor]:
    """E[x x^T] of what the weights of each layer named are multiplied with, over batches of the net's own data.

    (groups, K, K) float64 on the CPU, K = C * prod(kernel) with C channels a group, in the weights' order. Zeros that
    pad the input count. The net runs as in its test phase: no dropout, BatchNorm by its statistics. Raises
    ForceregError for inputs that aren't finite, for a name that is no Convolution or InnerProduct of the net.
    """
    found: dict[str, Moments] = {}

    def watch(spec: LayerSpec, module: Layer, bottoms: list[Tensor]) -> Any:
        if spec.name in layers:
            for x in bottoms:
                for rows in inputs_of(module, x):
                    if spec.name not in found:
                        found[spec.name] = started(spec, rows)
                    found[spec.name].add(rows)
        return module(*bottoms)

    net.eval()
    net.around = watch
    try:
        for _ in range(batches):
            net()
    finally:
        net.around = None
    for name in layers:
        if name not in found:
            raise ForceregError(f"{net.spec.filename}: layer '{name}' doesn't run in its train phase")
        # at the end: a sum keeps what isn't finite, and looking waits for the device
        if not found[name].total.isfinite().all():
            raise ForceregError(f"{net.spec.filename}: layer '{name}' has inputs that aren't finite numbers")
    return {name: (one.total / one.count).cpu() for name, one in found.items()}


def started(spec: LayerSpec, rows: Tensor) -> Moments:
    """Zeros for rows (n, groups, K). Raises ForceregError if memory can't hold them."""
    shape = (*rows.shape[1:], rows.shape[-1])
    check_room([(spec, 8 * prod(shape))], "the second moments of its input")
    return Moments(torch.zeros(shape, dtype=torch.float64, device=rows.device))


def inputs_of(module: Layer, x: Tensor) -> Iterator[Tensor]:
    """What the weights of a Convolution or InnerProduct are multiplied with for a bottom x: (n, groups, K) in chunks.

    Raises ForceregError for another layer.
    """
    if isinstance(module, InnerProduct):
        rows = x.flatten(module.axis)
        yield from rows.reshape(-1, 1, rows.shape[-1]).split(max(1, CHUNK // rows.shape[-1]))
        return
    if not isinstance(module, Convolution):
        raise module.spec.fail("second moments are known for Convolution and InnerProduct layers only")
    x = x[None] if module.axis == 0 else x.flatten(0, module.axis - 1)
    g = module.geometry
    x = F.pad(x, [pad for pads in reversed(g.pad) for pad in (pads, pads)])
    for axis, (extent, stride, dilation) in enumerate(zip(g.extent, g.stride, g.dilation, strict=True), 2):
        x = taps(x, axis, extent, stride, dilation)
    dims = len(g.kernel)
    x = x.movedim(1, 1 + dims)  # a view: (N, *output, C, *kernel)
    width = prod(x.shape[1 + dims :])
    places = prod(x.shape[1 : 1 + dims])
    for items in x.split(max(1, CHUNK // (width * places))):
        # by places too: a single large image may be more than a chunk
        rows_at = items.split(max(1, CHUNK * items.shape[1] // (width * places)), 1) if dims else (items,)
        for part in rows_at:
            yield part.reshape(-1, module.group, width // module.group)
