"""AlexNet's conv3, conv4 and conv5, dense and as low-rank pairs, on this machine beside the paper's figures.

    python scripts/bench/alexnet_lowrank.py [--ranks 112,96,128 ...] [--batch 1,32] [--device cpu] [--seconds 10]

Layers: 256->384, 384->384 in two groups, 384->256 in two groups, all 3x3 with pad 1 on 13x13 inputs, run by forcereg's
own modules as nets of one layer or of its pair, both parts grouped. Ranks: the paper's two sets, and --ranks.
Each layer's variants take turns, in both memory layouts; figures are medians of forward passes in milliseconds.
The factor is the best dense time over the best of the pair, each in whichever layout is faster for it.
Writes the figures as JSON with --json FILE.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from google.protobuf import text_format

from forcereg.cost import lowrank_speedup
from forcereg.lowrank.ladder import Ladder
from forcereg.lowrank.rewrite import split
from forcereg.report.latency import device_text
from forcereg.schema import LayerParameter
from forcereg.study.bench import measuring_device
from forcereg.study.latency import Run, interleaved, layer_net

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SIDE = 13
RANKS = "112,96,128", "96,64,96"
"""Multiples of 16 for each group, as oneDNN's blocks hold, below the paper's 124/106/129; batch 1 needs the second."""


@dataclass(frozen=True)
class Layer:
    """A convolution of AlexNet, its two ranks in the paper (Wen et al., ICCV 2017), and the factors measured there."""

    name: str
    channels: int
    outputs: int
    groups: int
    paper_ranks: tuple[int, int]
    cpu: float
    gpu: float

    @property
    def message(self) -> Any:
        """The LayerParameter."""
        window = f"kernel_size: 3 pad: 1 group: {self.groups} num_output: {self.outputs}"
        text = f'name: "{self.name}" type: "Convolution" bottom: "x" top: "y" convolution_param {{ {window} }}'
        return text_format.Parse(text, LayerParameter())

    def theory(self, rank: int) -> float:
        """MACs of the layer over those of its pair."""
        return lowrank_speedup(self.outputs, self.channels // self.groups, 3, 3, self.groups, rank=rank)


LAYERS = (
    Layer("conv3", 256, 384, 1, (184, 124), 2.45, 2.16),
    Layer("conv4", 384, 384, 2, (201, 106), 2.76, 2.03),
    Layer("conv5", 384, 256, 2, (146, 129), 1.64, 1.33),
)
"""The measured factors are those at the second, lower ranks."""


@dataclass(frozen=True)
class Row:
    """One layer at one rank (None: dense): median milliseconds by layout, and factors over the dense layer."""

    layer: str
    batch: int
    rank: int | None
    theory: float | None
    ms: dict[str, float]
    factor: float | None
    same_layout: dict[str, float] | None


def runs(layer: Layer, ranks: list[int], batch: int, device: torch.device) -> Iterator[Run]:
    """Calls of the dense layer and of its pair at each rank, each in both layouts."""
    ladder = Ladder(torch.randn(layer.outputs, layer.channels // layer.groups, 3, 3), "pca", layer.groups)
    shape = (batch, layer.channels, SIDE, SIDE)
    for parts in [[layer.message], *(split(layer.message, ladder.outline(rank)) for rank in ranks)]:
        for layout in LAYOUTS.values():
            net = layer_net(parts, {"x": shape}, device)
            for blob in net.parameters():
                # not .contiguous(): a 1x1 kernel is both at once, and its strides decide the output's layout
                blob.data = torch.empty_like(blob, memory_format=layout if blob.dim() == 4 else None).copy_(blob.data)
            x = torch.rand(shape, device=device)
            yield partial(net, {"x": torch.empty_like(x, memory_format=layout).copy_(x)})


def measure(layer: Layer, ranks: list[int], batch: int, device: torch.device, seconds: float) -> list[Row]:
    """The rows of one layer."""
    times = [median(rounds) for rounds in interleaved(list(runs(layer, ranks, batch, device)), device, seconds)]
    each = [dict(zip(LAYOUTS, times[at : at + 2], strict=True)) for at in range(0, len(times), 2)]
    dense = each[0]
    rows = [Row(layer.name, batch, None, None, dense, None, None)]
    for rank, ms in zip(ranks, each[1:], strict=True):
        factor = min(dense.values()) / min(ms.values())
        same = {layout: dense[layout] / ms[layout] for layout in LAYOUTS}
        rows.append(Row(layer.name, batch, rank, layer.theory(rank), ms, factor, same))
    return rows


def report(layer: Layer, rows: list[Row], device: torch.device) -> None:
    """A layer's rows beside the paper's figure."""
    paper = layer.cpu if device.type == "cpu" else layer.gpu
    for row in rows:
        line = f"{row.layer:6}{row.rank or 'dense':>6}"
        line += f"{row.theory:7.2f}x" if row.theory else " " * 8
        line += "".join(f"{ms:14.3f}" for ms in row.ms.values())
        if row.factor and row.same_layout:
            line += f"{row.factor:9.2f}x" + "".join(f"{factor:14.2f}x" for factor in row.same_layout.values())
            below = row.rank is not None and row.rank <= layer.paper_ranks[1]
            line += f"{paper:8.2f}x {'reached' if round(row.factor, 2) >= paper else 'missed'}" if below else ""
        print(line)


def main() -> None:
    """Measures every layer and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--ranks", action="append", help=f"for conv3,conv4,conv5; repeatable (default {' and '.join(RANKS)})"
    )
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--device", action="append", help="repeatable (default: cpu, and cuda where there is one)")
    parser.add_argument("--seconds", type=float, default=10, help="for each layer and batch")
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    own = [[int(rank) for rank in ranks.split(",")] for ranks in args.ranks or RANKS]
    devices = args.device or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    figures = []
    for device in map(measuring_device, devices):
        print(f"\n{device_text(device)}, {platform.machine()}, torch {torch.__version__}; ms, medians")
        for batch in map(int, args.batch.split(",")):
            print(f"\nbatch {batch}\n{'':8}rank    MACs    contiguous channels_last   factor"
                  f"     contiguous  channels_last   paper")  # fmt: skip
            for index, layer in enumerate(LAYERS):
                ranks = list(dict.fromkeys([*layer.paper_ranks, *(ranks[index] for ranks in own)]))
                rows = measure(layer, ranks, batch, device, args.seconds)
                report(layer, rows, device)
                figures += [{"device": str(device), **asdict(row)} for row in rows]
    if args.json:
        from forcereg.system.files import write_text

        write_text(args.json, json.dumps({"torch": torch.__version__, "rows": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
