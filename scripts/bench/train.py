"""Training steps and AlexNet's forward pass on the CPU against plain PyTorch: time and peak memory.

    python scripts/bench/train.py [lenet cifar10_full resnet20 alexnet] [--mnist IDX_DIR] [--cifar DIR_OR_TAR]
        [--rounds N] [--seconds S] [--json FILE] [--profile NET] [--quick]

Contestants, each in a process of its own, in turn (contest.py):
- contiguous, channels_last: the net by hand in torch.nn, data decoded beforehand as one tensor and sliced,
  SGD(foreach=True), no force, no log (baselines.py);
- forcereg: the shipped solver with force from an LMDB, its data reading, display and log lines included;
- forcereg, no force: the same with force_decay 0.
LeNet's batch is 64, cifar10_full's 100, ResNet-20's 128; AlexNet's is 32, its deploy net without gradients.
Without --mnist LeNet learns scikit-learn's digits, without --cifar the others random images.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cases import CASES, make_solver, prepare
from contest import Entrant, Result, contest, machine, print_ratios, print_times, ratio, results_json
from table import Figure, rows, write_figures

Run = Callable[[int], object]
LAYOUTS = "contiguous", "channels_last"
MEMORY_GOAL = 1.1


# -- the contestants, made in their own processes by contest.py; what one doesn't need is not imported


def baseline(net: str, root: str, layout: str) -> Run:
    """The loop of baselines.py over the images that forcereg's solver gets."""
    import baselines
    import numpy as np
    import torch

    images, labels = (torch.from_numpy(np.load(Path(root, net, f"{name}.npy"))) for name in ("images", "labels"))
    return baselines.plan_loop(baselines.PLANS[net], images, labels, baselines.LAYOUTS[layout], CASES[net].batch)


def ours(net: str, root: str, force: bool) -> Run:
    """The solver, its data set decoded: that happens in the background and would disturb the others."""
    import numpy as np

    solver = make_solver(Path(root), net, force)
    (feed,) = solver.net.feeds.values()
    for _ in range(len(np.load(Path(root, net, "labels.npy"), mmap_mode="r")) // CASES[net].batch + 1):
        feed.next()
    return solver.step


def forward_baseline(layout: str, batch: int) -> Run:
    """AlexNet by hand, forward."""
    import baselines
    import torch

    form = baselines.LAYOUTS[layout]
    model = baselines.alexnet().eval().to(memory_format=form)  # type: ignore[call-overload,unused-ignore]  # torch < 2.14
    images = torch.randn(batch, *baselines.PLANS["alexnet"].shape).contiguous(memory_format=form)
    return forward(lambda: model(images))


def forward_ours(batch: int) -> Run:
    """AlexNet's deploy net, forward, given a contiguous batch."""
    import torch

    from forcereg import load_net
    from forcereg.system.shipped import configs_dir

    shape = (batch, 3, 227, 227)
    net = load_net(configs_dir() / CASES["alexnet"].file, input_shapes={"data": shape}, seed=1).eval()
    images = torch.randn(shape)
    return forward(lambda: net(data=images))


def forward(step: Callable[[], object]) -> Run:
    """Runs `step` without gradients."""
    import torch

    def run(n: int) -> None:
        with torch.no_grad():
            for _ in range(n):
                step()

    return run


# -- the contest


def entrants(net: str, root: Path, quick: bool) -> list[Entrant]:
    """The contestants of one net; the baselines first, by the names of their layouts."""
    turn = 1 if quick else CASES[net].turn
    if net == "alexnet":
        batch = 1 if quick else CASES[net].batch
        by_hand = [Entrant(name, "train:forward_baseline", {"layout": name, "batch": batch}, turn) for name in LAYOUTS]
        return [*by_hand, Entrant("forcereg", "train:forward_ours", {"batch": batch}, turn)]
    common = {"net": net, "root": str(root)}
    by_hand = [Entrant(name, "train:baseline", {**common, "layout": name}, turn) for name in LAYOUTS]
    solvers = {"forcereg": True, "forcereg, no force": False}
    return [*by_hand, *(Entrant(name, "train:ours", {**common, "force": on}, turn) for name, on in solvers.items())]


def figures(net: str, results: Sequence[Result]) -> list[Figure]:
    """What is compared: forcereg's time with each layout's, its memory with the better one's."""
    case, named = CASES[net], {result.name: result for result in results}
    own, by_hand = named["forcereg"], [named[layout] for layout in LAYOUTS]
    found = [Figure(case.title, f"time / {other.name}", ratio(own, other), case.goals[other.name]) for other in by_hand]
    if own.memory:
        peak = min(other.memory.peak for other in by_hand if other.memory)
        private = min(other.memory.private for other in by_hand if other.memory)
        found.append(Figure(case.title, "peak memory / plain", own.memory.peak / peak, MEMORY_GOAL))
        found.append(Figure(case.title, "the same above import torch", own.memory.private / private))
    return found


def compete(net: str, root: Path, args: argparse.Namespace) -> tuple[list[Result], list[Figure]]:
    """Runs and prints one net's contest."""
    if net != "alexnet":
        prepare(net, root, args.mnist if net == "lenet" else args.cifar, 1_000 if args.quick else 10_000)
    rounds, warmup = (1, 0) if args.quick else (args.rounds, 2)
    results = contest(entrants(net, root, args.quick), rounds, warmup, args.seconds)
    print(f"\n{CASES[net].title}, medians of {len(results[0].seconds)} rounds")
    print_times(results, LAYOUTS)
    named = {result.name: result for result in results}
    print_ratios(named["forcereg"], [named[layout] for layout in LAYOUTS])
    return results, figures(net, results)


def main() -> None:
    """Runs the contests and prints their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", metavar="net", help=f"{', '.join(CASES)} (default: all)")
    parser.add_argument("--mnist", help="folder of MNIST's idx files")
    parser.add_argument("--cifar", help="folder or tar of CIFAR-10")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=30, help="no further round of a net begins later")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--profile", choices=[net for net in CASES if net != "alexnet"], help="one step, by operations")
    parser.add_argument("--quick", action="store_true", help="each contestant once, to see that it works")
    args = parser.parse_args()
    unknown = [net for net in args.nets if net not in CASES]
    if unknown:
        parser.error(f"unknown net '{unknown[0]}'; choose from {', '.join(CASES)}")
    from forcereg.errors import ForceregError

    try:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder).resolve()
            if args.profile:
                from allocations import profile_step

                prepare(args.profile, root, args.mnist if args.profile == "lenet" else args.cifar, 2_000)
                profile_step(make_solver(root, args.profile))
                return
            told = machine()
            print(told)
            found = {net: compete(net, root, args) for net in args.nets or CASES}
    except ForceregError as error:
        raise SystemExit(str(error)) from None
    every = [figure for _, some in found.values() for figure in some]
    print("", *rows(every), sep="\n")
    if args.json:
        write_figures(args.json, every, {net: results_json(results) for net, (results, _) in found.items()}, told)


if __name__ == "__main__":
    main()
