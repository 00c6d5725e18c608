"""The nets that train.py times, with their goals, and their solvers and data as files for all contestants."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forcereg.solver.loop import Solver


@dataclass(frozen=True)
class Case:
    """A net: its shipped solver or net, batch, iterations per turn, and the most of each layout's time to take."""

    title: str
    file: str
    batch: int
    turn: int
    goals: dict[str, float]


CASES = {
    "lenet": Case(
        "LeNet, step",
        "examples/mnist/lenet_force_solver.prototxt",
        64,
        50,
        {"contiguous": 0.60, "channels_last": 0.85},
    ),
    "cifar10_full": Case(
        "cifar10_full, step",
        "examples/cifar10/cifar10_full_force_solver.prototxt",
        100,
        4,
        {"contiguous": 0.65, "channels_last": 0.95},
    ),
    "resnet20": Case(
        "ResNet-20, step",
        "examples/cifar10/cifar10_resnet20_force_solver.prototxt",
        128,
        1,
        {"contiguous": 0.65, "channels_last": 0.95},
    ),
    "alexnet": Case(
        "AlexNet, forward",
        "models/alexnet/deploy.prototxt",
        32,
        1,
        {"contiguous": 1.0, "channels_last": 1.0},
    ),
}


def prepare(net: str, root: Path, source: str | None, count: int) -> None:
    """Writes the net's solver, LMDBs and, for the baselines, its training batches as arrays below `root`.

    `source`: MNIST's idx files or CIFAR-10; without it scikit-learn's digits, or `count` random images. Nets that
    learn the same data share it. Raises ForceregError for bad files.
    """
    import numpy as np
    import torch

    case = CASES[net]
    place = root / Path(case.file).parent
    if not place.exists():
        from forcereg.system.shipped import configs_dir

        shutil.copytree(configs_dir() / Path(case.file).parent, place)
        convert(place, source, count)
    lone_solver(root, case)
    solver = make_solver(root, net)
    (feed,) = solver.net.feeds.values()
    count = training_records(place) // case.batch
    batches = [[top.clone() for top in feed.next()] for _ in range(count)]  # the feed may write all to one place
    arrays = root / net
    arrays.mkdir()
    np.save(arrays / "images.npy", torch.cat([batch[0] for batch in batches]).contiguous().numpy())
    np.save(arrays / "labels.npy", torch.cat([batch[1] for batch in batches]).long().numpy())


def lone_solver(root: Path, case: Case) -> None:
    """Has the solver train without tests and snapshots, without end, with a display line in every turn."""
    from google.protobuf import text_format

    from forcereg.schema.text import read_solver

    file = root / case.file
    param = read_solver(file).message
    del param.test_iter[:]
    param.test_interval = param.snapshot = 0
    param.max_iter = 10**9
    param.display = min(param.display, case.turn)
    file.write_text(text_format.MessageToString(param))
    net = root / param.net
    net.write_text(net.read_text().replace("batch_size: 256", f"batch_size: {case.batch}"))  # ResNet-20's


def convert(out: Path, source: str | None, count: int) -> None:
    """The LMDBs, by forcereg's converters."""
    import numpy as np

    from forcereg.data.cifar import convert_cifar10
    from forcereg.data.idx import convert_digits, convert_mnist

    if out.name == "mnist" and source:
        convert_mnist(Path(source), out)
    elif out.name == "mnist":
        convert_digits(out)
    elif source:
        convert_cifar10(Path(source), out)
    else:
        random = np.random.default_rng(0)
        raw = out / "raw"
        raw.mkdir()
        for name in (*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"):
            batch = random.integers(0, 256, (count // 5, 1 + 3 * 32 * 32), np.uint8)
            batch[:, 0] %= 10
            (raw / f"{name}.bin").write_bytes(batch.tobytes())
        convert_cifar10(raw, out)


def training_records(place: Path) -> int:
    """How many the training set has."""
    from forcereg.data.database import open_records

    return open_records(next(place.glob("*train_lmdb"))).count() or 0


def make_solver(root: Path, net: str, force: bool = True) -> Solver:
    """The solver that `prepare` wrote, logging to stderr as the command does."""
    from forcereg.schema.text import read_solver
    from forcereg.solver.log import GlogWriter
    from forcereg.solver.loop import Solver

    file = read_solver(root / CASES[net].file)
    if not force:
        file.message.force_decay = 0
    with contextlib.chdir(root):  # else nets of the same names below the working directory would be taken
        return Solver(file, device="cpu", observers=[GlogWriter()])
