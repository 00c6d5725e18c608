"""What every rank runs in the tests of training by several processes: `python -m tests.solver.ranks FOLDER 2 4`.

Each entry of `RUNS` also runs in the test itself, alone, with a batch `times` as large.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torch._dynamo  # DistributedDataParallel does, in every rank
from torch import Tensor

from forcereg.data.feed import Shard
from forcereg.errors import ForceregError
from forcereg.net.module import Net
from forcereg.schema import SolverParameter
from forcereg.solver import launch
from forcereg.solver.distributed import Group, join
from forcereg.solver.loop import Solver
from forcereg.solver.passes import Passes
from forcereg.solver.precision import Precision
from forcereg.solver.updater import Updater
from tests.solver.nets import IMAGES, Recorder, blobs_of, write_images, write_solver

BATCH = 2  # of one rank
SAVE, STOP = 3, 9  # when `requests` asks, counted in chances to agree

IDLE = """
layer {
  name: "idle" type: "InnerProduct" bottom: "conv" top: "idle"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } }
}
layer { name: "silence" type: "Silence" bottom: "idle" }
"""

TESTED = "transform_param { scale: 0.00390625 crop_size: 6 mirror: true }"  # tests draw random numbers too

CONV = (
    "".join(line for line in IMAGES.splitlines(True) if not line.startswith(('layer { name: "bn"', 'layer { name: "s')))
    .replace(
        'layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" dropout_param { dropout_ratio: 0.3 } }', ""
    )
    .replace("transform_param { scale: 0.00390625 crop_size: 6 }", TESTED)
    .replace("batch_size: 6", "batch_size: BATCH")
    + IDLE
)
"""A net without BatchNorm and Dropout, with weights that no loss reaches."""

SHARED = """
name: "shared"
layer {
  name: "data" type: "HDF5Data" top: "x" top: "y"
  hdf5_data_param { source: "list.txt" batch_size: BATCH shuffle: true }
}
layer {
  name: "one" type: "InnerProduct" bottom: "x" top: "one" param { name: "w" force_mult: 1 } param { name: "b" }
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } }
}
layer {
  name: "two" type: "InnerProduct" bottom: "one" top: "two" param { name: "w" } param { name: "b" lr_mult: 1 }
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } }
}
layer { name: "loss" type: "EuclideanLoss" bottom: "two" bottom: "y" top: "loss" }
"""

LASSO = "kernel_shape_decay_mult: 1 block_group_lasso { xdimen: 9 ydimen: 1 }"
SPARSE = CONV.replace("param { lr_mult: 1 force_mult: 1 }", f"param {{ lr_mult: 1 {LASSO} }}").replace(
    'top: "ip"\n', 'top: "ip" param { regularization_type: "L1" }\n'
)
"""Rows and columns of `conv` under group lasso, `ip` under L1."""

REGULARIZED = 'weight_decay: 0.01 force_decay: 0.01 force_type: "Constant" '
SETTINGS = {
    "plain": (CONV, REGULARIZED + "momentum: 0.9 test_iter: 5 test_interval: 7 display: 4 average_loss: 3"),
    "clipped": (CONV, REGULARIZED + "momentum: 0.9 iter_size: 2 clip_gradients: 0.4 display: 4"),
    "responses": (
        CONV,
        REGULARIZED + 'momentum: 0.9 force_metric: "responses" force_metric_interval: 6 force_ramp: 4 force_until: 1 '
        "force_release: 8 test_iter: 5 test_interval: 7 test_initialization: false",
    ),
    "sparse": (
        SPARSE,
        "weight_decay: 0.05 momentum: 0.9 block_group_decay: 0.5 kernel_shape_decay: 0.2 prune_threshold: 0.02 "
        "display: 4",
    ),
    "adam": (SHARED, REGULARIZED + 'type: "Adam" momentum: 0.9 base_lr: 0.01 iter_size: 2'),
}


def write_data(root: Path) -> Path:
    """Everything that the runs read."""
    write_images(root)
    random = np.random.default_rng(0)
    for number, rows in enumerate((7, 4, 10)):
        with h5py.File(root / f"{number}.h5", "w") as file:
            file["x"], file["y"] = random.standard_normal((2, rows, 3))
    (root / "list.txt").write_text("0.h5 1.h5 2.h5")
    return root


def make(
    root: Path, group: Group, net: str, extra: str, times: int = 1, amp: str | None = None
) -> tuple[Solver, Recorder]:
    """A solver of the group whose net's BATCH is `times` that of a rank, and what rank 0 is told."""
    name = f"{group.size}_{group.rank}"
    (root / f"{name}.prototxt").write_text(net.replace("BATCH", str(times * BATCH)))
    recorder = Recorder()
    solver = write_solver(root, extra, f"solver_{name}.prototxt", f'net: "{name}.prototxt"')
    return Solver(solver, observers=[recorder], group=group, amp=amp), recorder


def in_double(solver: Solver) -> Solver:
    """The same solver in float64."""
    for net in (solver.net, *solver.test_nets):
        net.double()
        for feed in net.feeds.values():
            feed.next = lambda old=feed.next: tuple(top.double() for top in old())  # type: ignore[method-assign]
    solver.steps.updater = Updater(solver.net, solver.param, solver.device, solver.file.name)
    precision = Precision(solver.net, solver.device, None, solver.warn)
    solver.steps.passes = Passes(solver.net, solver.param.iter_size, precision, solver.group)
    return solver


def told(recorder: Recorder) -> list[tuple[Any, ...]]:
    """Losses and test results."""
    return [
        (e.kind, e.iteration, e.fields["loss"] or 0, *(output.value for output in e.fields.get("outputs", ())))
        for e in recorder.events
        if e.kind in ("train", "test", "final")
    ]


def equality(setting: str, double: bool) -> Callable[..., Any]:
    """20 iterations: the blobs, and what was told."""

    def run(root: Path, group: Group, times: int = 1) -> tuple[Mapping[str, Tensor], list[tuple[Any, ...]]]:
        net, extra = SETTINGS[setting]
        solver, recorder = make(root, group, net, extra, times)
        if double:
            in_double(solver)
        if setting == "sparse":
            solver.set_masks({"conv/0": torch.arange(36).reshape(4, 1, 3, 3) % 5 > 0})
        solver.step(20)
        blobs = blobs_of(solver)
        for others in group.gather(blobs):
            assert all(torch.equal(others[name], blob) for name, blob in blobs.items())
        return blobs, told(recorder)

    return run


def divided(root: Path, group: Group, times: int = 4) -> tuple[Mapping[str, Tensor], list[tuple[Any, ...]]]:
    """--global-batch: the written batch is that of all ranks."""
    group.shard = Shard(group.rank, group.size, divide=True)
    try:
        solver, recorder = make(root, group, *SETTINGS["plain"], times)
        solver.step(20)
    finally:
        group.shard = Shard(group.rank, group.size)
    return blobs_of(solver), told(recorder)


def part(root: Path, group: Group, times: int = 4) -> Mapping[str, Tensor]:
    """The next 6 iterations of a run whose number of ranks changes, from its newest snapshot on."""
    group.shard = Shard(group.rank, group.size, divide=True)
    try:
        extra = SETTINGS["clipped"][1] + ' snapshot_prefix: "part"'
        solver, _ = make(root, group, CONV, extra, times)
    finally:
        group.shard = Shard(group.rank, group.size)
    states = sorted(root.glob("part_iter_*.solverstate.h5"), key=lambda path: int(path.name.split(".")[0][10:]))
    if states:
        solver.restore(states[-1])
    solver.step(6)
    solver.snapshot()
    return blobs_of(solver)


def requests(root: Path, group: Group) -> dict[str, Any]:
    """The last rank asks for a snapshot, the one before it to stop, in the middle of training and of a test."""
    results: dict[str, Any] = {}
    for where in ("training", "test"):
        name = f"asked_{where}_{group.size}"
        extra = f'{SETTINGS["plain"][1]} max_iter: 30 snapshot_prefix: "{name}"'.replace("test_iter: 5", "test_iter: 9")
        solver, recorder = make(root, group, CONV, extra)
        calls = [0]

        def agree(solver: Solver = solver, where: str = where, calls: list[int] = calls) -> None:
            if (solver._before_tests is not None) == (where == "test"):
                calls[0] += 1
                if calls[0] == SAVE and group.rank == group.size - 1:
                    solver.snapshot_requested = True
                if calls[0] == STOP and group.rank == group.size - 2:
                    solver.stop_requested = True
            type(group).agree(group)

        group.agree = agree  # type: ignore[method-assign]
        try:
            solver.solve()
        finally:
            del group.agree  # type: ignore[method-assign]
        results[where] = (solver.iter, [e.iteration for e in recorder.of("snapshot")], bool(recorder.of("stopped")))
    return results


def statistics(root: Path, group: Group) -> tuple[bool, list[list[list[float]]]]:
    """Whether ranks' statistics differed before a test, and what each has behind it."""
    solver, _ = make(
        root, group, IMAGES.replace("batch_size: 6", "batch_size: BATCH"), "test_iter: 1 test_interval: 50"
    )
    solver.step(2)

    def found() -> list[list[list[float]]]:
        return group.gather([blob.tolist() for blob in solver.net.params["bn"]])

    before = found()
    solver.test_all()
    return before[0] != before[1], found()


def dropout(root: Path, group: Group) -> dict[str, Any]:
    """Weights at the end of a run with Dropout, and of one that was interrupted; each rank's random numbers."""
    extra = f'momentum: 0.9 snapshot_prefix: "drop_{group.size}"'
    net = IMAGES.replace("batch_size: 6", "batch_size: BATCH")
    whole, _ = make(root, group, net, extra)
    whole.step(4)
    whole.snapshot()
    whole.step(4)
    drawn = group.gather(torch.rand(3).tolist())
    again, _ = make(root, group, net, extra + " random_seed: 5")
    again.restore(root / f"drop_{group.size}_iter_4.solverstate.h5")
    again.step(4)
    return {"whole": blobs_of(whole), "again": blobs_of(again), "drawn": drawn}


def averaged(root: Path, group: Group) -> dict[str, Any]:
    """What each rank averages and is told in tests at the end of a run, and of one that was interrupted."""
    extra = f'momentum: 0.9 ema_decay: 0.8 test_iter: 4 test_interval: 4 snapshot_prefix: "mean_{group.size}"'
    net = IMAGES.replace("batch_size: 6", "batch_size: BATCH")
    ends = []
    for restored in (False, True):
        solver, recorder = make(root, group, net, extra)
        if restored:
            solver.restore(root / f"mean_{group.size}_iter_4.solverstate.h5")
        else:
            solver.step(4)
            solver.snapshot()
        solver.step(4)
        solver.test_all()
        assert solver.steps.average is not None
        mine = solver.steps.average._named()
        learned = {name: value.clone() for name, value in mine.items() if not name.startswith("bn")}
        with solver.averaged():
            tested = group.gather([blob.tolist() for blob in solver.net.params["bn"]])
        names = [[output.name for output in event.outputs] for event in recorder.of("test")]
        ends.append((group.gather(learned), tested, told(recorder)[-1:], names[-1:]))
    return dict(zip(("whole", "again"), ends, strict=True))


def trouble(root: Path, group: Group) -> dict[str, list[str]]:
    """What every rank says when the last one's loss is not a number, and when its weights have gone astray."""

    def said(solver: Solver, work: Callable[[], Any]) -> list[str]:
        try:
            work()
        except ForceregError as error:
            return group.gather(f"{solver.iter}: {error}".replace(solver.file.name, "FILE"))
        return group.gather("nothing")

    odd = group.rank == group.size - 1
    loss, _ = make(root, group, CONV, "")
    forward = loss.passes._replica.forward_loss

    def broken(inputs: Any, last: bool) -> Any:
        result, outputs = forward(inputs, last)
        return (result * float("nan") if odd and loss.iter == 2 else result), outputs

    loss.passes._replica.forward_loss = broken  # type: ignore[method-assign]
    astray, _ = make(root, group, CONV, 'snapshot_prefix: "astray"')
    if odd:
        Net.params.fget(astray.net)["ip"][0].data.mul_(1.1)  # type: ignore[attr-defined]
    return {"loss": said(loss, lambda: loss.step(5)), "astray": said(astray, astray.snapshot)}


def overflow(root: Path, group: Group) -> list[tuple[dict[str, Any], float]]:
    """The loss scale, and how far weights moved, of every rank behind a step whose gradients overflow on the last."""
    solver, _ = make(root, group, CONV, "", amp="fp16")
    forward, before = solver.passes._replica.forward_loss, blobs_of(solver)

    def large(inputs: Any, last: bool) -> Any:
        loss, outputs = forward(inputs, last)
        return (loss * 1e36 if group.rank == group.size - 1 else loss), outputs

    solver.passes._replica.forward_loss = large  # type: ignore[method-assign]
    solver.step(1)
    moved = max(float((blob - before[name]).abs().max()) for name, blob in blobs_of(solver).items())
    assert solver.scale is not None
    return group.gather((solver.scale.state_dict(), moved))


RUNS: dict[str, Callable[..., Any]] = {
    **{
        f"{setting}-{kind}": equality(setting, kind == "float64")
        for setting in SETTINGS
        for kind in ("float32", "float64")
    },
    "divided": divided,
    "part": part,
    "requests": requests,
    "statistics": statistics,
    "dropout": dropout,
    "averaged": averaged,
    "trouble": trouble,
    "overflow": overflow,
}


def run_all(root: Path, runs: Mapping[str, Callable[..., Any]]) -> None:
    """One rank: runs all of them; rank 0 writes what they return to results_SIZE.pickle."""
    group = join(["cpu"], SolverParameter())
    results = {}
    with group.together():
        for name, run in runs.items():
            results[name] = run(root, group)
    if group.rank == 0:
        with open(root / f"results_{group.size}.pickle", "wb") as file:
            pickle.dump(results, file)


def fork(root: Path, size: int, runs: Mapping[str, Callable[..., Any]] = RUNS) -> None:
    """`size` processes, forked from this one because importing torch takes longer than all they do."""
    ranks = []
    with launch.free_port() as port:
        os.environ.update(launch.environment(size, port))
        for rank in range(size):
            ranks.append(os.fork())
            if ranks[-1] == 0:
                os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
                run_all(root, runs)
                os._exit(0)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
    assert codes == [0] * size


if __name__ == "__main__":
    for size in sys.argv[2:]:
        fork(Path(sys.argv[1]), int(size))
