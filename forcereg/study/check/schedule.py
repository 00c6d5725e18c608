"""When a run trains, tests, shows and saves, at which rate and over how much data; what of it is likely a mistake."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from math import prod
from typing import Any

from forcereg.net.module import Net
from forcereg.net.scoring import coverage
from forcereg.schema.scan import shown
from forcereg.schema.text import SolverFile
from forcereg.solver import policy
from forcereg.study.check.nets import batch_size
from forcereg.study.check.report import Report

MANY = 100
"""Values of an output from which on showing them all is hardly meant."""


def check_schedule(file: SolverFile, train: Net, tests: Mapping[int, Net], report: Report) -> None:
    """`tests`: the test nets that could be built, by their numbers."""
    p = file.message
    counts = {"display": -(-p.max_iter // p.display) if p.display > 0 else 0}
    if tests and p.test_interval > 0:
        # where there is nothing to train the test at the end is the only one
        counts["test"] = p.max_iter // p.test_interval + (p.test_initialization or p.max_iter == 0)
    counts["snapshot"] = snapshots(p)
    counted = "".join(f", {count:,} {what}{'s' * (count > 1)}" for what, count in counts.items() if count > 0)
    report.facts["schedule"] = f"{p.max_iter:,} iterations{counted}"
    for text in likely_mistakes(p):
        report.warn(f"{file.name}: {text}")
    _check_data(p, train, tests, report)
    if p.ema_decay:
        report.facts["averaged weights"] = f"decay {p.ema_decay:g}; tested and saved beside the plain ones"
    if p.base_lr and p.max_iter and not any(policy.problems(p, file.name)):
        first, last = (policy.rate(p, at, policy.reached(p, at)) for at in (0, p.max_iter - 1))
        at, highest = policy.highest(p)
        between = f", {highest:g} at iteration {at:,}" if at else ""
        report.facts["learning rate"] = f"{p.lr_policy}: {first:g} at first{between}, {last:g} at last"
        if first and not last:
            report.warn(f"{file.name}: the learning rate falls to 0 before the end (gamma {p.gamma:g})")


def snapshots(p: Any) -> int:
    """How many snapshots a run writes, the one at its end included."""
    scheduled = p.max_iter // p.snapshot if p.snapshot > 0 else 0
    return scheduled + bool(p.snapshot_after_train and (p.snapshot <= 0 or p.max_iter % p.snapshot))


def likely_mistakes(p: Any) -> Iterator[str]:
    """What of a solver's schedule runs, but is hardly meant."""
    if not p.HasField("max_iter"):
        yield "max_iter is missing, so it is 0: nothing is trained; set for example max_iter: 10000"
    if p.test_interval > 0 and not (p.test_iter or p.test_net or p.test_net_param):
        yield f"test_interval is {p.test_interval}, but test_iter is missing: nothing is tested; set both or none"
    if p.max_iter and not snapshots(p):
        yield "no snapshot is written, so what is learned is lost; set snapshot or snapshot_after_train: true"
    yield from policy.runaways(p)
    yield from policy.idle(p)
    steps = list(p.stepvalue)
    if p.lr_policy != "multistep":
        if steps:
            yield f'lr_policy "{p.lr_policy}" doesn\'t look at stepvalue; "multistep" does'
        return
    if not steps:
        yield 'lr_policy "multistep" has no stepvalue, so the learning rate never changes'
    for before, after in pairwise(steps):
        if after <= before:
            yield (
                f"stepvalue {after} stands behind {before}; steps are taken in the order written, one an iteration at "
                "most, so write them in ascending order"
            )
    if late := [step for step in steps if 0 < p.max_iter <= step]:
        yield f"stepvalue {late[0]} is never reached: max_iter is {p.max_iter}"


def check_outputs(net: Net, title: str, report: Report) -> None:
    """Warns of an output that is so large that it is rather a blob that a layer was to read."""
    for name in net.spec.outputs:
        shape = net.shapes[name]
        if prod(shape) > MANY and name not in net.loss_weights:
            layer = next(layer for layer in reversed(net.spec.layers) if name in layer.tops)
            blob = f"blob '{shown(name)}' ({'x'.join(map(str, shape))})"
            report.warn(
                f"{layer.where}: no layer of the {title} net reads {blob}, all its {prod(shape):,} values are shown; "
                "connect it, or give it to a Silence layer"
            )


def _check_data(p: Any, train: Net, tests: Mapping[int, Net], report: Report) -> None:
    for name, feed in train.feeds.items():
        batch, records = batch_size(feed) * p.iter_size, feed.size()
        if records:
            epochs = p.max_iter * batch / records
            fact = f"training data '{shown(name)}'" if len(train.feeds) > 1 else "training data"
            report.facts[fact] = f"{records:,} records, {epochs:,.1f} times over in steps of {batch}"
    for index, test in tests.items():
        count = p.test_iter[index]
        for one in coverage(test, count):
            times = f"{one.seen:,} of {one.records:,} records"
            if one.seen > one.records:
                times = f"its {one.records:,} records {one.seen / one.records:.3g} times"
            report.warn(f"test net #{index} sees {times} a test (test_iter {count})")
