"""AlexNet's convolutions trained on enlarged CIFAR-10 and pruned by `forcereg prune`: real patterns of zeros for
sparse.py, at 30, 20 and 9 % of the weights.

    python scripts/bench/pruned.py FOLDER [--data cifar10.tar.xz] [--scale 1] [--seed 1]

The net is alexnet_cifar10.prototxt: kernels, groups and channels are AlexNet's, maps are smaller. It is trained for
1,500 iterations of 64 images; from there conv2 to conv5 are pruned, each to the share (--spread uniform), by magnitude
over 600 iterations, and fine-tuned for 200 under the masks; conv1 stays dense, as the published nets' does. FOLDER gets
the base and a folder for each share; called again it goes on from there. --scale: of all iterations, for a try.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import forcereg
from forcereg.snapshot import read_model
from forcereg.system.files import write_text

SHARES = (0.3, 0.2, 0.09)
PRUNED = ("conv2", "conv3", "conv4", "conv5")
NET = Path(__file__).with_name("alexnet_cifar10.prototxt")
TRAINED, OVER, TUNED = 1500, 600, 200
"""Iterations of the base, over which it is pruned, and behind that."""
SOLVER = """net: "{net}"
test_iter: {tests} test_interval: {iterations} test_initialization: false
base_lr: 0.05 momentum: 0.9 weight_decay: 0.0005 lr_policy: "poly" power: 1 max_iter: {iterations}
display: 100 snapshot: 100 snapshot_format: HDF5 snapshot_prefix: "base" random_seed: {seed} solver_mode: CPU
"""


class Pruning:
    """The net's base, and its pruned nets, in a folder; all iterations times `scale`."""

    def __init__(self, folder: Path, data: Path, scale: float, seed: int) -> None:
        self._folder, self._data, self._scale, self._seed = folder, data, scale, seed

    def _count(self, iterations: int) -> int:
        return max(1, round(iterations * self._scale))

    def base(self) -> Path:
        """The trained net."""
        count = self._count(TRAINED)
        done = self._folder / f"base_iter_{count}.caffemodel.h5"
        if not done.exists():
            if not (self._folder / "cifar10_test_lmdb").exists():
                forcereg.convert_cifar10(self._data, self._folder, force=True)
            write_text(self._folder / NET.name, NET.read_text())
            fields = {"net": NET.name, "iterations": count, "seed": self._seed, "tests": self._count(10)}
            write_text(self.solver, SOLVER.format(**fields))
            forcereg.train(self.solver, resume=True, keep=1)
        return done

    @property
    def solver(self) -> Path:
        """The file that all trainings go by."""
        return self._folder / "solver.prototxt"

    def prune(self, share: float) -> forcereg.Pruned:
        """To that share of weights other than 0, from the base on."""
        return forcereg.prune(
            self.solver, weights=self.base(), target=1 - share, spread="uniform", layers=PRUNED, rate=0.01,
            over=self._count(OVER), every=self._count(20), finetune=self._count(TUNED), seed=self._seed,
            out=pruned_in(self._folder, share), device="cpu",
        )  # fmt: skip


def pruned_in(folder: Path, share: float) -> Path:
    """Where the net of a share is."""
    return folder / f"left_{share * 100:.0f}"


def load_filters(folder: Path, share: float) -> dict[str, Tensor]:
    """Name -> weight. Raises SystemExit, one line, where they aren't trained."""
    path = pruned_in(folder, share) / "net_pruned.caffemodel.h5"
    if not path.exists():
        raise SystemExit(f"{path}: not there; train it by python scripts/bench/pruned.py {folder}")
    layers = read_model(path).layers
    return {name: torch.from_numpy(layers[name][0]) for name in ("conv1", *PRUNED)}


def main() -> None:
    """Trains what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10/cifar10_jpeg.tar.xz"))
    parser.add_argument("--scale", type=float, default=1)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    pruning = Pruning(args.folder, args.data, args.scale, args.seed)
    for share in SHARES:
        if (pruned_in(args.folder, share) / "net_pruned.caffemodel.h5").exists():
            continue
        found = pruning.prune(share)
        told = f"accuracy {found.whole:.1%} before, {found.pruned:.1%} pruned, {found.tuned or 0:.1%} fine-tuned"
        print(f"{share:.0%} of the weights left: {told}", flush=True)


if __name__ == "__main__":
    main()
