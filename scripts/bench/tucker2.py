"""tucker2's search for pairs of ranks on the kernels of ResNet-18's 20 convolutions, by error bounds.

    python scripts/bench/tucker2.py [--error 0.05,0.2] [--seed 0] [--noise 0.02]

Kernels: seeded, of low rank in outputs and inputs, plus noise. For each layer and bound: the pair (outputs-inputs), its
error, its multiply-accumulates (MACs) for a 224x224 image beside those of the tied choice (one share for both ranks),
and of the layer; then the seconds of each search, alone and in all.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from forcereg.cost import chain_cost
from forcereg.lowrank import Ladder
from forcereg.lowrank.factor import Rank, rank_text
from forcereg.lowrank.ranks import Candidate
from forcereg.report.table import Table, numeric

SHARE = 0.4
"""Of the channels, the kernels' ranks without the noise."""
FALL = -0.7
"""Power by which the energies of the ranks fall."""


@dataclass(frozen=True)
class Layer:
    """A convolution: outputs, channels, side of the kernel, stride, and side of the output."""

    name: str
    outputs: int
    channels: int
    kernel: int
    stride: int
    side: int

    def weight(self, seed: int, noise: float) -> Tensor:
        """(N, C, k, k): a core between random bases, and `noise`, a share of the squared norm, in all directions."""
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        ranks = [max(1, round(SHARE * size)) for size in (self.outputs, self.channels)]
        falls = [torch.arange(1, rank + 1, dtype=torch.float64) ** FALL for rank in ranks]
        core = random(*ranks, self.kernel, self.kernel) * falls[0][:, None, None, None] * falls[1][:, None, None]
        out, into = (
            torch.linalg.qr(random(size, rank))[0]
            for size, rank in zip((self.outputs, self.channels), ranks, strict=True)
        )
        clean = torch.einsum("rsyx,nr,cs->ncyx", core, out, into)
        rest = random(*clean.shape)
        weight = clean / clean.norm() * (1 - noise) ** 0.5 + rest / rest.norm() * noise**0.5
        return weight.float()

    def candidate(self, weight: Tensor) -> Candidate:
        """The layer as `forcereg decompose` sees it; the 1x1 layer in works at the input's size."""
        ladder = Ladder(weight, "tucker2")
        before, after = (self.side * self.stride) ** 2, self.side**2
        dense = chain_cost([weight.numel()], [after])
        return Candidate(self.name, "Convolution", self.name, "tucker2", ladder, dense, (before, after, after))


def resnet18() -> Iterator[Layer]:
    """Its convolutions, in order."""
    yield Layer("conv1", 64, 3, 7, 2, 112)
    channels = 64
    for stage, (outputs, side) in enumerate(((64, 56), (128, 28), (256, 14), (512, 7)), 2):
        for block in "ab":
            stride = 2 if block == "a" and stage > 2 else 1
            yield Layer(f"res{stage}{block}_1", outputs, channels, 3, stride, side)
            yield Layer(f"res{stage}{block}_2", outputs, outputs, 3, 1, side)
            if stride == 2:
                yield Layer(f"res{stage}{block}_0", outputs, channels, 1, stride, side)
            channels = outputs


def tied(one: Candidate, error: float) -> Rank:
    """The smallest of the ranks at equal shares whose error is within the bound, by bisection."""
    ranks = one.ranks
    low, high = -1, len(ranks) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if one.error(ranks[middle]) <= error else (middle, high)
    return ranks[high]


def main() -> None:
    """Searches at every bound, prints the tables and the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--error", default="0.05,0.2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=0.02, help="share of the squared norm (default 0.02)")
    args = parser.parse_args()
    weights = [(layer, layer.weight(args.seed + at, args.noise)) for at, layer in enumerate(resnet18())]
    candidates = [layer.candidate(weight) for layer, weight in weights]  # keep what one bound teaches, as commands do
    wall, cpu = 0.0, 0.0
    for error in map(float, args.error.split(",")):
        table = Table("layer", "kernel", *numeric("pair", "error", "MACs", "tied", "MACs tied", "layer", "seconds"))
        begun = wall, cpu
        totals = [0, 0, 0]
        for one, (_, weight) in zip(candidates, weights, strict=True):
            start, started = time.perf_counter(), time.process_time()
            rank = one.smallest_rank(error)
            found = one.error(rank)
            took = time.perf_counter() - start
            wall, cpu = wall + took, cpu + time.process_time() - started
            other = tied(one, error)
            macs = [one.cost(rank).macs or 0, one.cost(other).macs or 0, one.dense.macs or 0]
            totals = [total + own for total, own in zip(totals, macs, strict=True)]
            shape = "x".join(map(str, weight.shape))
            cells = (rank_text(rank), f"{found:.4f}", f"{macs[0]:,}", rank_text(other), f"{macs[1]:,}", f"{macs[2]:,}")
            table.row(one.name, shape, *cells, f"{took:.2f}")
        table.section()
        table.row(
            "total", "", "", "", f"{totals[0]:,}", "", f"{totals[1]:,}", f"{totals[2]:,}", f"{wall - begun[0]:.2f}"
        )
        print(f"\nerror {error:g}")
        table.show()
        print(f"search: {wall - begun[0]:.1f} s, {cpu - begun[1]:.1f} s of processor time")
    count = sum(prod(weight.shape) for _, weight in weights)
    print(f"\nboth, {len(weights)} layers, {count:,} values: {wall:.1f} s, {cpu:.1f} s of processor time")


if __name__ == "__main__":
    main()
