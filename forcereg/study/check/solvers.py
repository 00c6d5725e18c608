"""A solver's settings, its nets, and whether there is room for what it will write."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import forcereg.registry as registry
from forcereg import snapshot
from forcereg.net.module import Net
from forcereg.net.sparse import check_learns
from forcereg.net.summary import FLOAT, size, summarize
from forcereg.schema import SolverParameter
from forcereg.schema.rules import Title
from forcereg.schema.text import SolverFile
from forcereg.solver.chains import force_on_chains
from forcereg.solver.prefix import probe_prefix
from forcereg.solver.ready import check_outputs as check_written
from forcereg.solver.regularizers import lasso
from forcereg.solver.regularizers.force import check_fit, described, without_force
from forcereg.solver.saving import check_room, check_saving, saves, sizes_of
from forcereg.solver.setup import complete_prefix, problems, solver_root, tested_nets, trained_net
from forcereg.solver.sparsity import asked, individual
from forcereg.solver.sparsity.advice import too_strong
from forcereg.study.check.nets import check_data, check_fed, check_net, net_facts
from forcereg.study.check.report import Options, Report
from forcereg.study.check.schedule import check_outputs, check_schedule, snapshots
from forcereg.system.device import choose_device
from forcereg.system.memory import free_memory
from forcereg.system.paths import resolve


def check_solver(file: SolverFile, options: Options, report: Report) -> None:
    for problem in problems(file.message, file.name):
        report.error(problem)
    root = solver_root(file)
    report.attempt(lambda: complete_prefix(file, root))
    report.attempt(lambda: choose_device(None, file.message, report.warn))
    chosen = report.attempt(lambda: trained_net(file, root, options.level, options.stages, report.error))
    train, tests = None, dict[int, Net]()
    if chosen is not None:
        others = report.attempt(lambda: tested_nets(file, root, chosen.file, report.error)) or ()
        train = check_net(replace(chosen, title=Title(solver=True, several=bool(others))), root, options, report)
        built = [check_net(other, root, options, report) for other in others]
        tests = {index: net for index, net in enumerate(built) if net is not None}
    for net in (train, *tests.values()):
        if net is not None:
            with report.about(net.spec.title):
                check_data(net, options, report)
            check_fed(net, report)
            report.attempt(lambda: check_written(net))  # noqa: B023
            check_outputs(net, "training" if net is train else "test", report)
    if train is not None:
        report.facts["train net"] = net_facts(train)
        _check_force(file, train, report)
        _check_sparsity(file, train, report)
        _check_learning(file, train, report)
        _check_weights(file, root, train, tests.values(), report)
        _check_shared(train, tests.values(), report)
        check_schedule(file, train, tests, report)
        _check_memory(train, file.message, report)
    _check_prefix(file, root, train, tests.values(), report)


def _check_force(file: SolverFile, train: Net, report: Report) -> None:
    p = file.message
    if p.force_decay:
        report.facts["force"] = described(train, p)
        report.attempt(lambda: check_fit(train, p))
        if text := without_force(train, p):
            report.warn(f"{file.name}: {text}")
        if text := force_on_chains(train, p):
            report.warn(f"{file.name}: {text}")


def _check_sparsity(file: SolverFile, train: Net, report: Report) -> None:
    p = file.message
    report.attempt(lambda: lasso.check_fit(train, p))
    report.attempt(lambda: individual.multipliers(train))
    if text := asked.described(train, p):
        report.facts["sparsity"] = text
    if text := too_strong(train, p):
        report.warn(f"{file.name}: {text}")


def _check_weights(file: SolverFile, root: Path, train: Net, tests: Iterable[Net], report: Report) -> None:
    """All files together: what one leaves fresh another may bring."""
    found = []
    nets = [train, *tests]
    # each of several may be a list with commas, as Caffe reads it
    for path in ",".join(file.message.weights).split(","):
        if path.strip():
            model = report.attempt(lambda: snapshot.read_model(resolve(root, path.strip())))  # noqa: B023
            loaded = model and report.attempt(lambda: _loaded(model, nets))  # noqa: B023
            if loaded is not None:
                found.append((model, loaded))
    if text := report.attempt(lambda: snapshot.remark(found)):
        report.warn(text)


def _loaded(model: snapshot.ModelFile, nets: Iterable[Net]) -> snapshot.LoadReport:
    matches = (snapshot.matched(net.params, snapshot.suited(model, net), net.shared) for net in nets)
    return snapshot.joined(report for _, report in matches)


def _check_shared(train: Net, tests: Iterable[Net], report: Report) -> None:
    for test in tests:
        report.attempt(lambda: test.share_params(train))  # noqa: B023


def _check_learning(file: SolverFile, train: Net, report: Report) -> None:
    report.attempt(lambda: check_learns(train))
    if not train.loss_weights:
        report.warn(f"{file.name}: the training net has no loss: nothing is learned")
    elif not any(one.lr_mult and one.blob.requires_grad for one in train.learnable):
        report.warn(f"{file.name}: the training net has no weights that learn")


def _slots(p: Any) -> int:
    """History values that the solver type keeps for each weight; 1 if there is no such type (told elsewhere)."""
    return registry.solver_type.get(p.type)().slots if p.type in registry.solver_type else 1


def _check_memory(train: Net, p: Any, report: Report) -> None:
    """An estimate: weights, gradients and history, every blob kept for backward, and the two largest gradients."""
    summary = summarize(train)
    slots = _slots(p)
    weights = FLOAT * summary.params * (2 + slots + (p.ema_decay > 0))
    largest = max((row.memory for row in summary.rows), default=0)
    needed = weights + summary.memory + 2 * largest
    report.facts["memory"] = (
        f"about {size(needed)}: {size(weights)} for weights and the solver, {size(needed - weights)} for blobs"
    )
    free = free_memory()
    # of the host: what a GPU of the machine that trains has isn't known here
    if p.solver_mode == SolverParameter.SolverMode.Value("CPU") and needed > free:
        report.warn(f"training needs about {size(needed)} of memory, {size(free)} are free; use a smaller batch_size")


def _check_prefix(file: SolverFile, root: Path, train: Net | None, tests: Iterable[Net], report: Report) -> None:
    """Whether snapshots can be written, and whether all of them fit on the disk."""
    p, slots = file.message, _slots(file.message)
    if not saves(p):
        return
    if train is not None:
        report.attempt(lambda: check_saving(p, [train, *tests], slots, file.name))
    if not p.snapshot_prefix:
        report.error(f'{file.name}: snapshot_prefix is missing; set for example snapshot_prefix: "net"')
        return
    prefix = report.attempt(lambda: resolve(root, p.snapshot_prefix))
    if prefix is None:
        return
    known = report.troubles
    report.attempt(lambda: probe_prefix(prefix, p, file.name))
    if report.troubles > known or train is None:
        return
    count = snapshots(p)
    needed = count * sum(sizes_of(p, train, slots))
    free = shutil.disk_usage(prefix.parent).free
    report.facts["snapshots"] = f"{count:,} under {prefix}, {size(needed) or '0 B'} of {size(free)} free"
    if needed > free:
        report.error(
            f"{file.name}: {count:,} snapshots need {size(needed)}, {prefix.parent} has {size(free)} free; "
            "make room, raise snapshot, or train with --keep N"
        )
    else:
        report.attempt(lambda: check_room(p, train, slots, prefix, file.name))
