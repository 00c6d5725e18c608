"""A solver's settings, its nets, and whether there is room for what it will write."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import forcereg.registry as registry
from forcereg import snapshot
from forcereg.check.nets import batch_size, check_data, check_fed, check_net, net_facts
from forcereg.check.report import Options, Report
from forcereg.device import choose_device
from forcereg.memory import free_memory
from forcereg.net import Net
from forcereg.paths import resolve
from forcereg.schema import SolverParameter
from forcereg.schema.scan import shown
from forcereg.schema.text import SolverFile
from forcereg.solver import policy
from forcereg.solver.saving import check_format
from forcereg.solver.setup import complete_prefix, probe_prefix, problems, solver_root, tested_nets, trained_net
from forcereg.summary import FLOAT, size, summarize


def check_solver(file: SolverFile, options: Options, report: Report) -> None:
    for problem in problems(file.message, file.name):
        report.error(problem)
    root = solver_root(file)
    report.attempt(lambda: complete_prefix(file, root))
    report.attempt(lambda: choose_device(None, file.message, report.warn))
    chosen = report.attempt(lambda: trained_net(file, root, options.level, options.stages))
    train, tests = None, []
    if chosen is not None:
        train = check_net(chosen, root, options, report)
        others = report.attempt(lambda: tested_nets(file, root, chosen.file)) or ()
        tests = [net for other in others if (net := check_net(other, root, options, report)) is not None]
    for net in (train, *tests):
        if net is not None:
            check_data(net, options, report)
            check_fed(net, report)
    if train is not None:
        report.facts["train net"] = net_facts(train)
        _check_force(file, train, report)
        _check_learning(file, train, report)
        _check_weights(file, root, train, report)
        _check_shared(train, tests, report)
        _schedule(file, train, tests, report)
        _check_memory(train, file.message, report)
    _check_prefix(file, root, train, report)


def _check_force(file: SolverFile, train: Net, report: Report) -> None:
    forced = [p for p in train.learnable if p.force_mult and p.blob.dim() >= 2]
    if file.message.force_decay:
        names = ", ".join(dict.fromkeys(p.layer for p in forced))
        report.facts["force"] = f"{file.message.force_type} {file.message.force_decay:g} on {names or 'nothing'}"
        if not forced:
            report.warn(f"{file.name}: force_decay is set but no weight has force_mult: nothing is regularized")


def _check_weights(file: SolverFile, root: Path, train: Net, report: Report) -> None:
    for path in ",".join(file.message.weights).split(","):
        if path.strip():
            model = report.attempt(lambda: snapshot.read_model(resolve(root, path.strip())))  # noqa: B023
            if model is not None:
                report.attempt(lambda: snapshot.load_into(train.params, model, train.shared))  # noqa: B023


def _check_shared(train: Net, tests: Sequence[Net], report: Report) -> None:
    for test in tests:
        report.attempt(lambda: test.share_params(train))  # noqa: B023


def _check_learning(file: SolverFile, train: Net, report: Report) -> None:
    if not train.loss_weights:
        report.warn(f"{file.name}: the training net has no loss: nothing is learned")
    elif not any(one.lr_mult and one.blob.requires_grad for one in train.learnable):
        report.warn(f"{file.name}: the training net has no weights that learn")


def _schedule(file: SolverFile, train: Net, tests: Sequence[Net], report: Report) -> None:
    p = file.message
    counts = {"display": -(-p.max_iter // p.display) if p.display > 0 else 0}
    if tests and p.test_interval > 0:
        counts["test"] = p.max_iter // p.test_interval + (p.test_initialization or p.max_iter == 0)
    counts["snapshot"] = snapshots(p)
    counted = "".join(f", {count:,} {what}{'s' * (count > 1)}" for what, count in counts.items() if count > 0)
    report.facts["schedule"] = f"{p.max_iter:,} iterations{counted}"
    for name, feed in train.feeds.items():
        batch, records = batch_size(feed) * p.iter_size, feed.size()
        if records:
            epochs = p.max_iter * batch / records
            fact = f"training data '{shown(name)}'" if len(train.feeds) > 1 else "training data"
            report.facts[fact] = f"{records:,} records, {epochs:,.1f} times over in steps of {batch}"
    for index, (test, count) in enumerate(zip(tests, p.test_iter, strict=False)):
        for feed in test.feeds.values():
            seen, records = batch_size(feed) * count, feed.size()
            if records and seen != records:
                report.warn(f"test net #{index} sees {seen:,} of {records:,} records a test (test_iter {count})")
    if p.base_lr and p.lr_policy in registry.lr_policy and p.max_iter:
        rates = [policy.rate(p, at, policy.catch_up(p, at, 0)) for at in (0, p.max_iter - 1)]
        report.facts["learning rate"] = f"{p.lr_policy}: {rates[0]:g} at first, {rates[1]:g} at last"
        if rates[0] and not rates[1]:
            report.warn(f"{file.name}: the learning rate falls to 0 before the end (gamma {p.gamma:g})")


def snapshots(p: Any) -> int:
    """How many snapshots a run writes, the one at its end included."""
    scheduled = p.max_iter // p.snapshot if p.snapshot > 0 else 0
    return scheduled + bool(p.snapshot_after_train and (p.snapshot <= 0 or p.max_iter % p.snapshot))


def _slots(p: Any) -> int:
    """History values that the solver type keeps for each weight; 1 if there is no such type (told elsewhere)."""
    return registry.solver_type.get(p.type)().slots if p.type in registry.solver_type else 1


def _check_memory(train: Net, p: Any, report: Report) -> None:
    """An estimate: weights, gradients and history, every blob kept for backward, and the two largest gradients."""
    summary = summarize(train)
    slots = _slots(p)
    weights = FLOAT * summary.params * (2 + slots)
    largest = max((row.memory for row in summary.rows), default=0)
    needed = weights + summary.memory + 2 * largest
    report.facts["memory"] = (
        f"about {size(needed)}: {size(weights)} for weights and the solver, {size(needed - weights)} for blobs"
    )
    free = free_memory()
    if p.solver_mode == SolverParameter.SolverMode.Value("CPU") and needed > free:
        report.warn(f"training needs about {size(needed)} of memory, {size(free)} are free; use a smaller batch_size")


def _check_prefix(file: SolverFile, root: Path, train: Net | None, report: Report) -> None:
    """Whether snapshots can be written, and whether all of them fit on the disk."""
    p = file.message
    if not (p.snapshot > 0 or p.snapshot_after_train):
        return
    if not p.snapshot_prefix:
        report.error(f'{file.name}: snapshot_prefix is missing; set for example snapshot_prefix: "net"')
        return
    prefix = report.attempt(lambda: resolve(root, p.snapshot_prefix))
    if prefix is None:
        return
    known = report.troubles
    report.attempt(partial(probe_prefix, prefix, file.name))
    if report.troubles > known or train is None:
        return
    count = snapshots(p)
    slots = _slots(p)
    report.attempt(partial(check_format, p, train, slots, file.name))
    values = sum(one.blob.numel() for one in train.learnable)
    needed = count * FLOAT * values * (1 + slots + p.snapshot_diff)
    free = shutil.disk_usage(prefix.parent).free
    report.facts["snapshots"] = f"{count:,} under {prefix}, {size(needed) or '0 B'} of {size(free)} free"
    if needed > free:
        report.error(
            f"{file.name}: {count:,} snapshots need {size(needed)}, {prefix.parent} has {size(free)} free; "
            "make room, raise snapshot, or train with --keep N"
        )
