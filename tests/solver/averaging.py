"""What every rank runs in the tests of gradients' schemes: `python -m tests.solver.averaging FOLDER 2 4`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.registry import gradient_scheme
from forcereg.snapshot import read_model, read_state
from forcereg.solver.distributed import Group
from forcereg.solver.gradients import Settings, report, ternarized
from forcereg.solver.gradients.base import Bucket, Wire
from forcereg.solver.gradients.choose import average_by
from forcereg.solver.loop import Solver
from tests.conftest import TOP
from tests.solver import ranks
from tests.solver.nets import Recorder, blobs_of

SCHEMES = ("dense", "bf16", "fp16", "powersgd", "ternary")
WHOLE = Settings(dense_layers=("last",), min_size=5, powersgd_start=3)
EXTRA = ranks.SETTINGS["clipped"][1] + ' test_iter: 2 test_interval: 4 snapshot_prefix: "NAME"'
"""Two batches an iteration, a limit on the gradients, force, decay, tests."""


def solver_of(root: Path, group: Group, scheme: str, settings: Settings = WHOLE, extra: str = "") -> Solver:
    solver, _ = ranks.make(root, group, ranks.CONV, EXTRA.replace("NAME", f"{scheme}_{group.size}") + extra)
    average_by(solver, scheme, settings)
    return solver


def trained(scheme: str) -> Any:
    """12 iterations: whether all ranks have the same bits, the blobs, and those of a run that went on from 6 of them.

    That one is of another seed, which its data and draws mustn't take.
    """

    def run(root: Path, group: Group) -> tuple[bool, Mapping[str, Tensor], Mapping[str, Tensor]]:
        solver = solver_of(root, group, scheme)
        solver.step(6)
        saved = solver.snapshot()
        solver.step(6)
        blobs = blobs_of(solver)
        again = solver_of(root, group, scheme, extra=" random_seed: 11")
        again.restore(saved.with_name(saved.name.replace("caffemodel", "solverstate")))
        again.step(6)
        same = all(torch.equal(other[name], blob) for other in group.gather(blobs) for name, blob in blobs.items())
        return same, blobs, blobs_of(again)

    return run


def carriers(root: Path, group: Group) -> list[Mapping[str, Tensor]]:
    """Blobs behind 6 iterations of ternary gradients, packed and summed as each type of number."""
    found, gathered, known = [], ternarized.GATHERED, ternarized.CARRIERS
    try:
        for dtype in (None, torch.int8, torch.float16, torch.float32):
            ternarized.GATHERED, ternarized.CARRIERS = gathered if dtype is None else 1, ((99, dtype or torch.int8),)
            solver = solver_of(root, group, "ternary")
            solver.step(6)
            found.append(blobs_of(solver))
    finally:
        ternarized.GATHERED, ternarized.CARRIERS = gathered, known
    return found


class Seen(Wire):
    """Counts what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = {"reduced": 0, "gathered": 0}

    def most(self, values: Tensor) -> None:
        self.bytes["reduced"] += values.nbytes
        super().most(values)

    def sum(self, values: Tensor) -> Any:
        self.bytes["reduced"] += values.nbytes
        return super().sum(values)

    def gather(self, values: Tensor, into: list[Tensor]) -> Any:
        self.bytes["gathered"] += values.nbytes
        return super().gather(values, into)


def hooked(root: Path, group: Group) -> list[dict[str, Any]]:
    """By bucket of one backward: each rank's gradients before, their means, what was sent and what should have been."""
    solver, _ = ranks.make(root, group, ranks.CONV, "")
    scheme, found = gradient_scheme.get("ternary")("ternary", WHOLE, Seen(), 3), list[dict[str, Any]]()
    names = {
        id(blob): f"{name}/{index}" for name, blobs in solver.net.params.items() for index, blob in enumerate(blobs)
    }
    hook = scheme.hook

    def seen(bucket: Bucket) -> Any:
        before = [one.clone() for one in bucket.gradients()]
        counted = dict(scheme.wire.bytes)
        sent = hook(bucket)
        sent.wait()
        bytes_sent = {kind: now - counted[kind] for kind, now in scheme.wire.bytes.items()}
        planned = [(message.kind, message.size) for message in scheme.messages(bucket.weights, group.size)]
        told = {"names": [names[id(one)] for one in bucket.weights], "sent": bytes_sent, "planned": planned}
        found.append({**told, "before": before, "after": [one.clone() for one in bucket.gradients()]})
        return sent

    scheme.hook = seen
    solver.passes.average_by(scheme)
    solver.step(1)
    every = group.gather([one["before"] for one in found])
    return [{**one, "before": [rank[index] for rank in every]} for index, one in enumerate(found)]


def draws(root: Path, group: Group) -> tuple[Tensor, list[Tensor]]:
    """The mean of 10,000 draws of each value, and what the ranks' own gradients are there."""
    own = torch.linspace(-1, 1, 9).roll(group.rank) * (1 + group.rank)
    weight = torch.nn.Parameter(torch.empty(9 * 10_000))
    scheme = gradient_scheme.get("ternary")("ternary", Settings(clip_sigma=0), Wire(), 5)
    scheme._dense, scheme._generator = set(), torch.Generator().manual_seed(group.rank)
    found = scheme.hook(Bucket(0, own.repeat(10_000), [weight])).wait()
    return found.view(-1, 9).mean(0), group.gather(own)


def different(root: Path, group: Group) -> tuple[int, int]:
    """How many values ranks drew alike of the same gradients, and of how many."""
    scheme = gradient_scheme.get("ternary")("ternary", Settings(), Wire(), 5)
    solver, _ = ranks.make(root, group, ranks.CONV, "")
    scheme.attach(solver.net)
    drawn = group.gather(scheme._chances(torch.zeros(1000)))
    return int((drawn[0] == drawn[1]).sum()), 1000


def bad(root: Path, group: Group) -> list[bool]:
    """Whether a gradient is finite on each rank where the last one's isn't, of both tensors of a bucket."""
    weights = [torch.nn.Parameter(torch.empty(8)) for _ in range(2)]
    flat = torch.linspace(-1, 1, 16)
    if group.rank == group.size - 1:
        flat[3] = float("nan")
    scheme = gradient_scheme.get("ternary")("ternary", Settings(), Wire(), 5)
    scheme._dense, scheme._generator = set(), torch.Generator()
    found = scheme.hook(Bucket(0, flat, weights)).wait()
    return group.gather([bool(part.isfinite().all()) for part in found.split(8)])


def refused(root: Path, group: Group) -> list[str]:
    """What is said of settings that don't fit."""
    said = []
    for scheme, settings, amp in (
        ("ternary", Settings(dense_layers=("conv", "ipp")), None),
        ("sparse", Settings(), None),
        ("powersgd", Settings(), "fp16"),
    ):
        solver, _ = ranks.make(root, group, ranks.CONV, "", amp=amp)
        try:
            average_by(solver, scheme, settings)
            said.append("")
        except ForceregError as error:
            said.append(str(error))
    return said


def other_scheme(root: Path, group: Group) -> list[str]:
    """What rank 0 is warned of where a run goes on by another scheme."""
    path = root / f"ternary_{group.size}_iter_6.solverstate.h5"
    said = []
    for scheme in ("ternary", "bf16", "dense"):
        solver, recorder = ranks.make(root, group, ranks.CONV, EXTRA)
        average_by(solver, scheme, WHOLE)
        solver.restore(path)
        said += [text for text in recorder.texts() if "gradients" in text]
    return said


def joined(root: Path, group: Group) -> tuple[list[int], bool]:
    """A run by PowerSGD goes on with a rank more than its state knows: where each is, and whether all stay the same."""
    state = read_state(root / f"powersgd_{group.size}_iter_6.solverstate.h5")
    assert state.extra is not None
    del state.extra["gradients"]["ranks"][str(group.size - 1)]
    solver = solver_of(root, group, "powersgd")
    solver.go_on_from(state, read_model(root / f"powersgd_{group.size}_iter_6.caffemodel.h5"))
    at = group.gather(solver.passes.scheme.state_dict()["iteration"])
    solver.step(2)
    blobs = blobs_of(solver)
    return at, all(torch.equal(other[name], blob) for other in group.gather(blobs) for name, blob in blobs.items())


def reported(root: Path, group: Group) -> list[tuple[Any, list[str], bool]]:
    """By scheme of the run a report on gradients, what is told of it, and whether the run is as without it."""
    report.SPAN, report.ROUNDS = 0.0, 1
    return [_reported(root, group, scheme) for scheme in ("ternary", "powersgd")]


def _reported(root: Path, group: Group, scheme: str) -> tuple[Any, list[str], bool]:
    plain, asked = (solver_of(root, group, scheme, replace(WHOLE, powersgd_start=0)) for _ in range(2))
    plain.step(2)
    asked.step(2)
    recorder = Recorder()
    asked.observers = [recorder]
    found = report.report(asked, WHOLE, 1e6)
    for solver in (plain, asked):
        solver.step(4)
    expected = blobs_of(plain)
    same = all(torch.equal(blob, expected[name]) for name, blob in blobs_of(asked).items())
    return found, [event.kind for event in recorder.events if event.kind == "gradients"], same


def own(root: Path, group: Group) -> float:
    """How far weights are from those of dense gradients, by the scheme of the solver's page."""
    page = (TOP / "forcereg" / "solver" / "README.md").read_text()
    exec(page[(start := page.index("from forcereg.registry import gradient_scheme")) : page.index("```", start)], {})
    found = []
    for scheme in ("dense", "float64"):
        solver = solver_of(root, group, scheme)
        solver.step(4)
        found.append(blobs_of(solver))
    return max(float((found[1][name] - blob).abs().max()) for name, blob in found[0].items())


def remarked(root: Path, group: Group) -> list[str]:
    """What is told of ternary gradients."""
    net = ranks.CONV + 'layer { name: "drop" type: "Dropout" bottom: "ip" top: "dropped" }'
    solver, _ = ranks.make(root, group, net, EXTRA)
    recorder = Recorder()
    solver.observers = [recorder]
    average_by(solver, "ternary", WHOLE)
    return [event.text for event in recorder.of("note")]


def powersgd(root: Path, group: Group) -> tuple[list[tuple[int, ...]], int, float]:
    """Sizes of what PowerSGD sends behind its start, what was planned, and how far its sum is from the dense mean."""
    generator = torch.Generator().manual_seed(group.rank)
    weights = [torch.nn.Parameter(torch.empty(shape)) for shape in ((40, 3, 5, 5), (40,), ())]
    scheme = gradient_scheme.get("powersgd")("powersgd", Settings(powersgd_start=0, powersgd_rank=2), Wire())
    scheme.attach(torch.nn.ParameterList(weights))
    sizes, reduce = [], dist.all_reduce

    def counted(values: Tensor, *args: Any, **named: Any) -> Any:
        if values.is_floating_point():  # not what a thread of the group's own agrees on
            sizes.append(values.nbytes)
        return reduce(values, *args, **named)

    flat, total = torch.randn(3041, generator=generator), torch.zeros(3041)
    dist.all_reduce = counted
    try:
        for _ in range(60):
            total += scheme.hook(Bucket(0, flat.clone(), weights)).wait()
    finally:
        dist.all_reduce = reduce
    mean = torch.stack(group.gather(flat)).mean(0)
    off = float((total / 60 - mean).norm() / mean.norm())
    return sizes[-3:], [int(one.size) for one in scheme.messages(weights, group.size)], off


RUNS = {
    **{f"trained-{scheme}": trained(scheme) for scheme in SCHEMES},
    **{
        run.__name__: run
        for run in (
            carriers,
            hooked,
            draws,
            different,
            bad,
            refused,
            other_scheme,
            remarked,
            powersgd,
            joined,
            reported,
            own,
        )
    },
}

if __name__ == "__main__":
    for size in sys.argv[2:]:
        ranks.fork(Path(sys.argv[1]), int(size), RUNS)
