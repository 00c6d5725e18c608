"""Is communication what iterations wait for, and what would each scheme gain? Measured before anyone trains by one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook

from forcereg.errors import UsageError
from forcereg.net.module import Net
from forcereg.registry import gradient_scheme
from forcereg.solver.gradients.base import DENSE, Bucket, Dense, Rehearsal, Scheme, Sent, Settings, Wire, traffic
from forcereg.solver.loop import Solver

SPAN, ROUNDS, FEW, MANY = 1.0, 3, 3, 50
"""Seconds that a lap should take, laps of each kind, and iterations of one."""
WORTH = 0.1
"""A gain below this isn't worth a scheme that loses something."""


class Silent(Scheme):
    """Nothing is sent: each rank goes on with its own gradients."""

    def hook(self, bucket: Bucket) -> Sent:
        sent: Sent = noop_hook(None, bucket)  # type: ignore[arg-type]
        return sent


@dataclass(frozen=True)
class Row:
    """A scheme: bits that a rank sends in an iteration, seconds that it computes beside, and what it comes to.

    `seconds` of an iteration, and its `gain` over dense gradients, as a share. `cosine`: of what it makes of the ranks'
    gradients, to their mean; `zeros`: share of zeros in what it makes of one rank's alone.
    """

    scheme: str
    bits: float
    work: float
    seconds: float
    gain: float
    cosine: float = 1.0
    zeros: float = 0.0


@dataclass(frozen=True)
class Report:
    """Of `ranks` processes: `seconds` of an iteration, `alone` without sending, and `schemes` at `bandwidth` (bit/s).

    `given`: it was, else it is what dense gradients came to here. Passes and sending are taken one after the other.
    """

    ranks: int
    seconds: float
    alone: float
    bandwidth: float
    given: bool
    schemes: list[Row]

    @property
    def share(self) -> float:
        """What communication takes of an iteration at this bandwidth."""
        dense = next(one for one in self.schemes if one.scheme == DENSE)
        return 1 - self.alone / dense.seconds

    @property
    def verdict(self) -> str:
        """What to do."""
        best = max(self.schemes, key=lambda one: one.gain)
        if self.share < WORTH:
            return (
                f"communication takes {self.share:.0%} of an iteration: leave gradients dense, no scheme can gain more"
            )
        if best.gain < WORTH:
            return "no scheme gains a tenth: leave gradients dense"
        good = sorted((one for one in self.schemes if one.gain >= WORTH), key=lambda one: -one.gain)
        told = ", ".join(f"{one.scheme} {1 + one.gain:.2g}" for one in good)
        return f"as many times faster might be: {told}; compare scores before you trust one that loses something"


def seconds_of(row: Row, alone: float, bandwidth: float) -> float:
    """An iteration by a scheme, nothing at the same time as another."""
    return alone + row.work + row.bits / bandwidth


def compared(ranks: int, seconds: float, alone: float, rows: Sequence[Row], bandwidth: float | None) -> Report:
    """The report of what was measured; the rows' seconds and gains are for this to say."""
    dense = next(one for one in rows if one.scheme == DENSE)
    # faster than can be measured here: as if it took a thousandth
    here = dense.bits / max(seconds - alone, seconds / 1000)
    used = here if bandwidth is None else bandwidth
    base = seconds_of(dense, alone, used)
    found = [(row, seconds_of(row, alone, used)) for row in rows]
    schemes = [replace(row, seconds=one, gain=base / one - 1) for row, one in found]
    return Report(ranks, seconds, alone, used, bandwidth is not None, schemes)


def report(solver: Solver, settings: Settings, bandwidth: float | None = None) -> Report:
    """Measures on the solver's own batches, by all ranks of its group together, and tells of it as `gradients`.

    `bandwidth`: of the link in question, bits a second. The solver is left as it was.
    Raises UsageError for one process, and ForceregError for settings that don't fit its net.
    """
    ranks, net = solver.group.size, solver.net
    if ranks == 1:
        raise UsageError("a report on gradients needs several processes; add --nproc 2, or start them by torchrun")
    with solver.trying():
        seconds, alone = _laps(solver, Silent("silent", settings, Wire()))
        weights = [weight for weight in net.parameters() if weight.requires_grad]
        own = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        bucket = Bucket(0, torch.cat([one.reshape(-1) for one in own]), weights)
    wire = Rehearsal(own_group(solver.group.rank), ranks)
    late = replace(settings, powersgd_start=0)  # what it is asked about comes behind its start
    names = sorted(gradient_scheme, key=lambda name: name != DENSE)
    kinds = {name: gradient_scheme.get(name) for name in names}
    rows = [rehearsed(kind(name, late, wire), net, bucket) for name, kind in kinds.items()]
    rows = [replace(row, cosine=cosine(kinds[row.scheme](row.scheme, late, Wire()), net, bucket)) for row in rows]
    # alike but for noise: all return that of rank 0
    found: Report = solver.group.share(compared(ranks, seconds, alone, rows, bandwidth))
    solver.emit("gradients", **asdict(found), share=found.share, text=found.verdict)
    return found


def own_group(rank: int) -> dist.ProcessGroup:
    """A group of this rank alone."""
    group = dist.new_group([rank], use_local_synchronization=True)
    assert isinstance(group, dist.ProcessGroup), "it is in its own group"
    return group


def rehearsed(scheme: Scheme, net: Net, bucket: Bucket, times: int = 5) -> Row:
    """The bits that a scheme would send for a bucket of gradients of `net`, the seconds that it computes, and zeros."""
    scheme.attach(net)
    bits, _ = traffic(scheme.messages(bucket.weights, scheme.wire.size), scheme.wire.size)

    def work() -> tuple[float, float]:
        given = replace(bucket, flat=bucket.flat.clone())
        began = _now(given.flat.device)
        found = scheme.hook(given).wait()
        return _now(given.flat.device) - began, 1 - float(found.count_nonzero()) / max(1, len(found))

    tried = [work() for _ in range(times)]
    # what else a machine does only adds; DDP's own way is no hook
    least = 0.0 if scheme.name == DENSE else min(seconds for seconds, _ in tried)
    return Row(scheme.name, bits, least, 0.0, 0.0, zeros=statistics.fmean(zeros for _, zeros in tried))


def cosine(scheme: Scheme, net: Net, bucket: Bucket) -> float:
    """How near what a scheme makes of a bucket of gradients of `net` is to their mean; of all ranks, at once."""
    if scheme.name == DENSE:
        return 1.0
    scheme.attach(net)
    dense = Dense(DENSE, scheme.settings, scheme.wire)
    found, mean = (one.hook(replace(bucket, flat=bucket.flat.clone())).wait() for one in (scheme, dense))
    return float(torch.cosine_similarity(found, mean, dim=0))


def _laps(solver: Solver, silent: Scheme) -> tuple[float, float]:
    """Seconds of an iteration with dense gradients, and of one that sends none: medians of laps in turns."""
    group, before, count = solver.group, solver.passes.scheme, FEW

    def lap(scheme: Scheme | None) -> float:
        solver.passes.average_by(scheme)
        _iterate(solver, 2)  # the wrapper is new
        group.gather(None)
        began = _now(solver.device)
        _iterate(solver, count)
        group.gather(None)
        return (_now(solver.device) - began) / count

    try:
        count = group.share(int(min(MANY, max(FEW, SPAN / lap(None)))))
        found = [(lap(None), lap(silent)) for _ in range(ROUNDS)]
    finally:
        solver.passes.average_by(before)
    dense, alone = map(statistics.median, zip(*found, strict=True))
    return dense, alone


def _iterate(solver: Solver, count: int) -> None:
    for _ in range(count):
        solver.steps.run(solver.iter, solver.lr, lambda sub: None, lambda outputs: None)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
