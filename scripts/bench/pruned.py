"""AlexNet's convolutions trained on enlarged CIFAR-10 and pruned by magnitude, a little at each step: real patterns of
zeros for sparse.py, at 30, 20 and 9 % of the weights.

    python scripts/bench/pruned.py FOLDER [--data cifar10.tar.xz] [--minutes 12] [--seed 0]

conv2 to conv5 are pruned, each to the share, by the cubic schedule of Zhu and Gupta (2017); conv1 stays dense, as the
published nets' does. Kernels, groups and channels are AlexNet's, maps are smaller, since images are 67x67, BatchNorm
takes LRN's place and pooling the fully connected layers'. FOLDER gets filters_30.pt, filters_20.pt and filters_9.pt as
training passes them, and a checkpoint; called again it goes on from there. --minutes: of the CPU, in all.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forcereg.data.cifar import read_cifar10
from forcereg.system.files import write_bytes

SHARES = (0.3, 0.2, 0.09)
PRUNED = ("conv2", "conv3", "conv4", "conv5")
SIDE = 67
"""Of the images."""
BATCH = 64
DENSE, SETTLING = 0.4, 0.4
"""The part of the time in which all weights learn, and of each later part the one in which no more are pruned."""


def alexnet() -> nn.Sequential:
    """Five convolutions with AlexNet's weights, and a classifier of 10."""

    def conv(inputs: int, outputs: int, kernel: int, **more: Any) -> nn.Module:
        parts = nn.Conv2d(inputs, outputs, kernel, bias=False, **more), nn.BatchNorm2d(outputs), nn.ReLU()
        return nn.Sequential(*parts)

    layers = {
        "conv1": conv(3, 96, 11, stride=4),
        "pool1": nn.MaxPool2d(3, 2),
        "conv2": conv(96, 256, 5, padding=2, groups=2),
        "pool2": nn.MaxPool2d(3, 2),
        "conv3": conv(256, 384, 3, padding=1),
        "conv4": conv(384, 384, 3, padding=1, groups=2),
        "conv5": conv(384, 256, 3, padding=1, groups=2),
        "pool5": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "ip": nn.Linear(256, 10),
    }
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    return net


def filters(net: nn.Module) -> dict[str, Tensor]:
    """The convolutions' weights."""
    return {f"conv{i}": net.get_parameter(f"conv{i}.0.weight") for i in range(1, 6)}


EACH = (1 - DENSE) / len(SHARES)


def passed(at: float) -> int:
    """How many of SHARES are reached at a time from 0 to 1, with what is trained after it."""
    return max(0, int((at - DENSE) / EACH + 1e-9))


def kept(at: float) -> float:
    """The share of weights that may be other than 0 then: all, and after DENSE step by step down to each of SHARES."""
    done = passed(at)
    if at < DENSE or done == len(SHARES):
        return SHARES[-1] if done else 1.0
    before, after = (1.0, *SHARES)[done : done + 2]
    place = ((at - DENSE) / EACH - done) / (1 - SETTLING)
    return after + (before - after) * (1 - min(1.0, place)) ** 3


def prune(weight: Tensor, share: float) -> None:
    """Zeros the smallest weights, so that this share is left."""
    count = weight.numel() - round(share * weight.numel())
    if count:
        threshold = weight.abs().flatten().kthvalue(count).values
        weight *= weight.abs() > threshold


class Training:
    """The net, what trains it, and how much of its CPU time is spent."""

    def __init__(self, folder: Path, data: Path, minutes: float, seed: int) -> None:
        torch.manual_seed(seed)
        self._folder, self._seconds, self._spent = folder, 60 * minutes, 0.0
        (images, labels), (test, answers) = read_cifar10(data)
        self._train, self._test = (
            (torch.from_numpy(x), torch.from_numpy(y).long())
            for x, y in ((images, labels), (test[:1000], answers[:1000]))
        )
        self._net = alexnet().to(memory_format=torch.channels_last)
        self._optimizer = torch.optim.SGD(self._net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
        self._draw, self._saved = torch.Generator().manual_seed(seed), 0

    @property
    def _checkpoint(self) -> Path:
        return self._folder / "training.pt"

    def run(self) -> None:
        """To the end, from where an earlier call came to."""
        if self._checkpoint.exists():
            self._resume()
        steps = 0
        while self._saved < len(SHARES):
            begun, at = time.process_time(), min(1.0, self._spent / self._seconds)
            loss = self._step(0.1 * (1 - at) + 1e-3, kept(at))
            self._spent += time.process_time() - begun
            steps += 1
            if passed(self._spent / self._seconds) > self._saved:
                self._save_filters(loss)
            if steps % 100 == 0:
                self._save()
                print(f"{self._spent:.0f} of {self._seconds:.0f} s, loss {loss:.3f}, {kept(at):.1%} kept", flush=True)

    def _batch(self) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(self._train[0]), (BATCH,), generator=self._draw)
        images, labels = (part[chosen] for part in self._train)
        return enlarged(images.flip(3) if torch.rand((), generator=self._draw) < 0.5 else images), labels

    def _step(self, rate: float, share: float) -> float:
        images, labels = self._batch()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss = F.cross_entropy(self._net(images), labels)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        with torch.no_grad():
            for name, weight in filters(self._net).items():
                if name in PRUNED:
                    prune(weight, share)
        return loss.item()

    def _save_filters(self, loss: float) -> None:
        share, found = SHARES[self._saved], {name: w.detach().contiguous() for name, w in filters(self._net).items()}
        self._net.eval()
        with torch.no_grad():
            hits = [
                self._net(enlarged(x)).argmax(1) == y for x, y in zip(*(t.split(100) for t in self._test), strict=True)
            ]
        self._net.train()
        accuracy = float(torch.cat(hits).float().mean())
        save(self._folder / f"filters_{share * 100:.0f}.pt", {"filters": found, "accuracy": accuracy})
        self._saved += 1
        print(
            f"{share:.0%} of the weights left: accuracy {accuracy:.1%} of 1,000 test images, loss {loss:.3f}",
            flush=True,
        )

    def _save(self) -> None:
        parts = {
            "net": self._net.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "draw": self._draw.get_state(),
        }
        save(self._checkpoint, {**parts, "spent": self._spent, "saved": self._saved})

    def _resume(self) -> None:
        known = torch.load(self._checkpoint, weights_only=True)
        self._net.load_state_dict(known["net"])
        self._optimizer.load_state_dict(known["optimizer"])
        self._draw.set_state(known["draw"])
        self._spent, self._saved = known["spent"], known["saved"]


def enlarged(images: Tensor) -> Tensor:
    """uint8 (N, 3, 32, 32) as the net's input."""
    pixels = images.to(torch.float32).contiguous(memory_format=torch.channels_last) / 64 - 2
    return F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)


def save(path: Path, held: Mapping[str, Any]) -> None:
    """A file of tensors, whole or not at all."""
    stream = io.BytesIO()
    torch.save(dict(held), stream)
    write_bytes(path, stream.getvalue())


def load_filters(folder: Path, share: float) -> dict[str, Tensor]:
    """Name -> weight. Raises SystemExit, one line, where they aren't trained."""
    path = folder / f"filters_{share * 100:.0f}.pt"
    if not path.exists():
        raise SystemExit(f"{path}: not there; train them by python scripts/bench/pruned.py {folder}")
    found: dict[str, Tensor] = torch.load(path, weights_only=True)["filters"]
    return found


def main() -> None:
    """Trains what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10/cifar10_jpeg.tar.xz"))
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    Training(args.folder, args.data, args.minutes, args.seed).run()


if __name__ == "__main__":
    main()
