"""Sets made in memory, served to Data layers in a database's place, and shipped solvers that learn from them.

    serve({"mnist_train_lmdb": Made("train", images, labels)})
    solver = make_solver(PLANS["lenet"], folder, "cuda", batch=64)

A layer takes the records as from an LMDB: decoded once in the background, kept on the device, transformed there.
So neither lmdb nor files are needed to measure training as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from baselines import Plan

from forcereg.data import database
from forcereg.data.mean import write_mean
from forcereg.data.records import Records
from forcereg.schema import TRAIN, Datum
from forcereg.schema.text import SolverFile, read_net, read_solver
from forcereg.solver.loop import Solver
from forcereg.system.events import Observer
from forcereg.system.shipped import configs_dir

SHAPES = {
    "mnist_train_lmdb": (1, 28, 28),
    "cifar10_train_lmdb": (3, 32, 32),
    "cifar10_pad4_train_lmdb": (3, 40, 40),
    "ilsvrc12_train_lmdb": (3, 256, 256),
}
"""(channels, height, width) of the sets that the shipped nets train on."""


class Made(Records):
    """`images` (N, C, H, W) uint8 and `labels` (N,) as records; `name` tells equal sets."""

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray) -> None:
        self.path, self.identity = Path(name), ("made", name, images.shape)
        self.images, self.labels = images, labels

    def count(self, most: int | None = None) -> int:
        """See Records."""
        return len(self.labels)

    def read(self, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
        """See Records; messages are made as they are read."""
        _, channels, height, width = self.images.shape
        for index in range(start % len(self.labels), len(self.labels)):
            data, label = self.images[index].tobytes(), int(self.labels[index])
            datum = Datum(channels=channels, height=height, width=width, data=data, label=label)
            yield b"%08d" % index, datum.SerializeToString()


_served: dict[str, Made] = {}
_open_records = database.open_records


def serve(sets: Mapping[str, Made]) -> None:
    """From now on Data layers whose source ends in one of these names get that set, others what their path holds."""

    def opened(path: Path, named: str | None = None) -> Records:
        return _served.get(path.name) or _open_records(path, named)

    _served.clear()
    _served.update(sets)
    database.open_records = opened


def patterns(name: str, count: int, shape: Sequence[int], classes: int, seed: int) -> Made:
    """`count` images that a net can learn: a coarse pattern for each class (the same for every seed), and noise."""
    channels, height, width = shape
    coarse = np.random.default_rng(0).integers(0, 160, (classes, channels, 8, 8), np.uint8)
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    images = random.integers(0, 96, (count, *shape), np.uint8)
    for part in range(0, count, 256):
        images[part : part + 256] += coarse[labels[part : part + 256]][:, :, rows][..., columns]
    return Made(name, images, labels)


def training_layer(net: Any) -> Any:
    """The Data layer that a shipped net trains on."""
    return next(one for one in net.layer if one.type == "Data" and (not one.include or one.include[0].phase == TRAIN))


def furnish(plan: Plan, root: Path, count: int) -> None:
    """Serves a training set of `count` images to the plan's net, and writes the mean image that it asks for."""
    layer = training_layer(read_net(configs_dir() / read_solver(configs_dir() / plan.solver).message.net).message)
    source = Path(layer.data_param.source).name
    made = patterns(source, count, SHAPES[source], plan.classes, 1)
    serve({source: made})
    if layer.transform_param.mean_file:
        path = root / layer.transform_param.mean_file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_mean(path, made.images.mean(0))


def solver_file(plan: Plan, root: Path, batch: int) -> SolverFile:
    """The plan's shipped solver with its net in it, for one batch of `batch` an iteration; paths start at `root`."""
    file = read_solver(configs_dir() / plan.solver)
    param = file.message
    net = read_net(configs_dir() / param.net).message
    training_layer(net).data_param.batch_size = batch
    param.ClearField("net")
    param.net_param.CopyFrom(net)
    param.iter_size = 1
    return replace(file, root=root)


def make_solver(
    plan: Plan,
    root: Path,
    device: str,
    batch: int,
    *,
    force: bool = True,
    amp: str | None = None,
    cuda_graph: bool = True,
    observers: Sequence[Observer] = (),
) -> Solver:
    """The plan's solver, that trains without end, tests and snapshots; `force` False: with force_decay 0."""
    file = solver_file(plan, root, batch)
    param = file.message
    del param.test_iter[:]
    param.max_iter, param.test_interval, param.snapshot = 10**9, 0, 0
    if plan.classes == 1000:
        param.base_lr /= 100  # what is made here is no ImageNet: no speed depends on the rate, but it might diverge
    if not force:
        param.force_decay = 0
    return Solver(file, device=device, amp=amp, cuda_graph=cuda_graph, observers=observers)
