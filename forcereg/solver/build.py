"""From a solver file to all that a training consists of, checked: the run, its nets, what runs their iterations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from forcereg.data.feed import FeedContext
from forcereg.net.module import Net
from forcereg.net.sparse import check_learns
from forcereg.schema.rules import named
from forcereg.schema.text import SolverFile
from forcereg.solver.distributed import Group
from forcereg.solver.passes import Passes
from forcereg.solver.precision import Precision
from forcereg.solver.regularizers import force, lasso
from forcereg.solver.run import Nets, Run, Teller
from forcereg.solver.setup import SolverSpecs, complete_prefix, problems, solver_specs
from forcereg.solver.steps import Steps
from forcereg.solver.updater import Updater
from forcereg.solver.window import LossWindow
from forcereg.system.capture import recorder_for
from forcereg.system.device import choose_device, prepare


def begin(
    file: SolverFile, device: str | None, level: int | None, stages: Sequence[str], group: Group, tell: Teller
) -> tuple[Run, SolverSpecs]:
    """The run that a solver describes and the specs of its nets; random numbers start from its seed.

    Raises ForceregError for the first thing that is wrong in its settings.
    """
    param = file.message
    for problem in problems(param, file.name):
        raise problem
    specs = solver_specs(file, level, stages)
    # behind the specs, which know the root that a prefix is relative to
    complete_prefix(file, specs.root)
    where = choose_device(device, param, tell.warn)
    prepare(where)
    # drawn by rank 0 where none is given: data is shuffled alike, or ranks would share out different orders
    own = int(param.random_seed)
    seed = group.share(own if own >= 0 else int.from_bytes(os.urandom(4), "little"))
    torch.manual_seed(seed + group.rank)  # Dropout differs between ranks; weights are drawn by a generator of their own
    return Run(param, file.name, specs.root, where, seed, group, tell), specs


def nets_of(run: Run, specs: SolverSpecs, budget: int, workers: int, allow_python_layers: bool) -> Nets:
    """The nets, on the device, with rank 0's weights, shared. For the arguments see Solver."""

    def build(spec: Any, context: FeedContext) -> Net:
        for text in spec.warnings:
            run.tell.warn(text)
        generator = torch.Generator().manual_seed(run.seed)  # anew for each: a net's weights don't depend on others
        with named(spec.title):
            return Net(spec, context, None, generator, allow_python_layers).place(run.device)

    context = FeedContext(root=run.root, device=run.device, seed=run.seed, budget=budget, workers=workers)
    # each rank trains on its own part; tests are shared out by batches instead (Group.score)
    train = build(specs.train, replace(context, shard=run.group.shard))
    nets = Nets(train, [build(spec, context) for spec in specs.tests])
    nets.share()
    # behind the sharing, so that no blob is sent twice
    run.group.begin(*nets)
    return nets


def steps_of(run: Run, nets: Nets, amp: str | None, cuda_graph: bool) -> Steps:
    """What runs the iterations, in the precision `amp`; as CUDA graphs if asked for and where there are any."""
    force.check_fit(nets.train, run.param)
    lasso.check_fit(nets.train, run.param)
    check_learns(nets.train)
    precision = Precision(nets.train, run.device, amp, run.tell.warn)
    updater = Updater(nets.train, run.param, run.device, run.name, precision.scale)
    passes = Passes(nets.train, run.param.iter_size, precision, run.group)
    losses = LossWindow(run.param.average_loss, run.device)
    return Steps(run, nets, passes, updater, losses, recorder_for(run.device) if cuda_graph else None)
