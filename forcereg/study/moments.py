"""Training batches for what looks at data, and decompositions that minimise the error of responses on them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forcereg.data.feed import DEFAULT_BUDGET, FeedContext
from forcereg.errors import ForceregError, UsageError
from forcereg.lowrank.decompose import Prepared, Selection
from forcereg.lowrank.decompose import prepare as prepare_plain
from forcereg.lowrank.ladder import aware
from forcereg.lowrank.merge import merge
from forcereg.lowrank.rewrite import Weights
from forcereg.net.load import net_root
from forcereg.net.module import Net
from forcereg.net.moments import input_moments
from forcereg.schema import TRAIN
from forcereg.schema.rules import Title, net_state
from forcereg.schema.spec import NetSpec, build_spec
from forcereg.schema.text import NetFile, SolverFile, net_from_message
from forcereg.solver.setup import solver_root, trained_net
from forcereg.study.evaluate import load
from forcereg.system.device import choose_device, prepare

BATCHES = 10
"""Looked at if nobody says how many: enough for a metric to choose ranks by."""


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
    moments = moments_of(first, names, data)
    return prepare_plain(file, weights, shapes, replace(selection, moments=moments))


def moments_of(prepared: Prepared, layers: Collection[str], data: TrainingData) -> dict[str, Tensor]:
    """`input_moments` of candidates of a net that reads data. Raises ForceregError as `TrainingData.net`."""
    # a chain as the one layer whose input counts
    chains = [prepared.chains[name] for name in layers if name in prepared.chains]
    merged = merge(prepared.file.message, prepared.weights, chains)
    net = data.net(net_from_message(merged[0], prepared.file.name), merged[1])
    try:
        return input_moments(net, layers, data.batches)
    finally:
        net.close()
