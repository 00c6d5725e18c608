"""LeNet training speed on this machine against plain PyTorch, all contestants interleaved in one run.

    python scripts/bench/lenet.py [--mnist IDX_DIR | --lmdb DIR] [--rounds 15] [--device cpu]

Contestants, per iteration at batch 64:
- plain: nn.Sequential, contiguous float32, data decoded beforehand as one tensor and sliced,
  SGD(foreach=True), a vectorised force on conv1 and conv2, no logging;
- channels_last: the same, model and images in torch.channels_last;
- forcereg: the README solver from an LMDB, its data reading, display and log lines included.
Prints medians over the rounds and the ratios of the medians; writes them as JSON with --json FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forcereg.schema.text import read_solver
from forcereg.shipped import configs_dir
from forcereg.solver.force import ForceField
from forcereg.solver.log import GlogWriter
from forcereg.solver.loop import Solver

BATCH, BLOCK = 64, 20


def plain_net() -> nn.Sequential:
    """The README's LeNet."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2, 2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def plain_force(weight: Tensor) -> Tensor:
    """The Constant force by two matrix products in float32."""
    rows = weight.flatten(1)
    norm = rows.norm(dim=1, keepdim=True)
    unit = rows / norm
    cosine = unit @ unit.T
    distance = (2 - 2 * cosine).clamp(min=0).sqrt()
    kernel = torch.where(distance > 1e-4, 1 / distance, 0)
    return (norm * ((kernel * cosine).sum(1, keepdim=True) * unit - kernel @ unit)).view_as(weight)


def plain(images: Tensor, labels: Tensor, device: torch.device, layout: torch.memory_format) -> Callable[[int], None]:
    """A training loop that a PyTorch user would write; runs n iterations per call."""
    net = plain_net().to(device).to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, foreach=True)
    forced = [m.weight for m in net if isinstance(m, nn.Conv2d)]
    images = images.to(memory_format=layout)
    position = 0

    def run(n: int) -> None:
        nonlocal position
        for _ in range(n):
            if position + BATCH > len(images):
                position = 0
            x, y = images[position : position + BATCH], labels[position : position + BATCH]
            position += BATCH
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            with torch.no_grad():
                for weight in forced:
                    assert weight.grad is not None
                    weight.grad.add_(plain_force(weight), alpha=1e-3)
            optimizer.step()

    return run


def make_solver(root: Path, device: str, force: bool, sink: object) -> Solver:
    """The README's solver on the LMDBs under `root`, without tests and snapshots."""
    file = read_solver(configs_dir() / "examples/mnist/lenet_force_solver.prototxt")
    param = file.message
    param.max_iter = 1_000_000
    del param.test_iter[:]
    del param.stepvalue[:]
    param.test_interval = param.snapshot = 0
    param.force_decay = 0.001 if force else 0
    os.chdir(root)
    return Solver(file, device=device, observers=[GlogWriter(sink)])  # type: ignore[arg-type]


def data_root(args: argparse.Namespace, folder: Path) -> Path:
    """A folder in which the README net finds itself and its LMDBs."""
    nets = folder / "examples/mnist"
    nets.mkdir(parents=True)
    shipped = configs_dir() / "examples/mnist"
    (nets / "lenet_train_test_force.prototxt").write_text((shipped / "lenet_train_test_force.prototxt").read_text())
    if args.lmdb:
        for name in ("mnist_train_lmdb", "mnist_test_lmdb"):
            (nets / name).symlink_to((Path(args.lmdb) / name).resolve())
    elif args.mnist:
        from forcereg.data.idx import convert_mnist

        convert_mnist(Path(args.mnist), nets)
    else:
        from forcereg.data.idx import convert_digits

        convert_digits(nets)
    return folder


def decoded(solver: Solver) -> tuple[Tensor, Tensor]:
    """The whole training set as one scaled float tensor and its labels, for the plain loops."""
    (feed,) = solver.net.feeds.values()
    batches = [feed.next() for _ in range(20)]
    return torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches]).long()


def force_time(solver: Solver, rounds: int) -> float:
    """Median seconds of one iteration's force, by itself."""
    up = solver.updater
    grads = [torch.zeros_like(weight) for weight in up.weights]
    field = ForceField(up.weights, [1e-3 * (weight.dim() == 4) for weight in up.weights], "Constant")
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(BLOCK):
            field.add_to(grads)
        if solver.device.type == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - started) / BLOCK)
    return statistics.median(times)


def main() -> None:
    """Runs the comparison and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", help="folder of MNIST idx files (default: scikit-learn's digits)")
    parser.add_argument("--lmdb", help="folder with mnist_train_lmdb and mnist_test_lmdb")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    here = Path.cwd()
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as sink:
        root = data_root(args, Path(folder).resolve())
        ours, without = (make_solver(root, args.device, force, sink) for force in (True, False))
        images, labels = decoded(make_solver(root, args.device, False, sink))
        runs: dict[str, Callable[[int], object]] = {
            "plain": plain(images, labels, device, torch.contiguous_format),
            "channels_last": plain(images, labels, device, torch.channels_last),
            "forcereg": ours.step,
            "forcereg, no force": without.step,
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for index in range(args.rounds + 1):
            for name, run in runs.items():
                started = time.perf_counter()
                run(BLOCK)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if index:  # the first round warms up
                    times[name].append((time.perf_counter() - started) / BLOCK)
        force = force_time(ours, args.rounds)
        os.chdir(here)
    report(times, force, args)


def report(times: dict[str, list[float]], force: float, args: argparse.Namespace) -> None:
    """The table and, if asked for, the JSON file."""
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.device}")
    print(f"{'':22}{'ms/iteration':>13}{'min':>8}{'/ plain':>10}{'/ channels_last':>17}")
    for name, value in median.items():
        ratios = (value / median["plain"], value / median["channels_last"])
        low = float(np.min(times[name]))
        print(f"{name:22}{value * 1e3:13.2f}{low * 1e3:8.2f}{ratios[0]:10.2f}{ratios[1]:17.2f}")
    share = force / median["forcereg"]
    print(f"the force alone: {force * 1e3:.3f} ms, {share:.1%} of a forcereg step")
    if args.json:
        from forcereg.files import write_text

        figures = {"median_s": median, "force_s": force, "threads": torch.get_num_threads(), "torch": torch.__version__}
        write_text(args.json, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
