"""Layers and nets, dense and decomposed, on this machine beside the paper's figures: AlexNet's conv3 to conv5 by
themselves, and whole AlexNet, GoogLeNet, ResNet-20 and VGG-16, forwards, by torch, ONNX Runtime or OpenVINO.

    python scripts/bench/alexnet_lowrank.py OUT.csv [--runtime torch|onnxruntime|openvino] [--threads N]
        [--only conv3,alexnet,...] [--ranks 112,96,128 ...] [--batch 1,32] [--device cpu] [--seconds 10]
    python scripts/bench/alexnet_lowrank.py OUT.csv --table

Rows go into OUT.csv as soon as they are measured; what it has of this machine, runtime and number of threads isn't
measured again. --table prints it as Markdown.

Layers are nets of one layer or of its chain, both parts grouped, at the paper's ranks, --ranks, and multiples of 16 a
group, which CPU kernels' blocks hold. Nets are those for use, of random weights, AlexNet at the paper's mixed ranks,
the others at half the MACs by pca. Dense and decomposed take turns; the factor is of their medians. In torch a layer
runs in both memory layouts, and the faster of each counts; the other runtimes choose one themselves.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch
from contest import processor
from google.protobuf import text_format
from lowrank_rows import Key, Row, read_rows, tables, write_rows

import forcereg
from forcereg.cost import lowrank_speedup
from forcereg.lowrank.ladder import Ladder
from forcereg.lowrank.rewrite import split
from forcereg.report.latency import device_text
from forcereg.schema import LayerParameter
from forcereg.schema.text import NetFile, net_from_message, read_net
from forcereg.study.bench import Bench, bench_of
from forcereg.study.latency import Run, fed_shapes, interleaved, layer_net, net_run
from forcereg.system.shipped import configs_dir

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SIDE = 13


@dataclass(frozen=True)
class Place:
    """Where, for how long, and what of it is known: keys of rows."""

    bench: Bench
    seconds: float
    known: Collection[Key] = ()

    @cached_property
    def key(self) -> tuple[str, str, str]:
        """Machine, threads and runtime, as rows have them."""
        device = self.bench.device
        machine = processor() if device.type == "cpu" else device_text(device)
        return machine, str(self.bench.count), f"{self.bench.runtime} {self.bench.version}"

    @property
    def layouts(self) -> Mapping[str, torch.memory_format]:
        """Those in which a layer is tried; a runtime that is given a file has its own."""
        return {"": torch.contiguous_format} if self.bench.exports else LAYOUTS

    def knows(self, what: str, ranks: str, batch: int) -> bool:
        """Whether there is a row of it."""
        return (*self.key, what, ranks, str(batch)) in self.known

    def medians(self, runs: Sequence[Run]) -> list[float]:
        """Milliseconds of each."""
        with self.bench.at_work():
            return [median(rounds) for rounds in interleaved(runs, self.bench.device, self.seconds)]


def best(
    what: str, ranks: str, batch: int, macs: float, times: Sequence[Mapping[str, float]], place: Place, paper: str = ""
) -> Row:
    """The row of milliseconds by layout, of dense and decomposed."""
    layouts = [min(one, key=one.__getitem__) for one in times]
    dense, ms = (one[layout] for one, layout in zip(times, layouts, strict=True))
    machine, threads, runtime = place.key
    return Row(
        date=datetime.date.today().isoformat(), machine=machine, threads=threads, runtime=runtime,
        what=what, ranks=ranks, batch=str(batch), macs=macs, paper=paper,
        dense_ms=dense, ms=ms, factor=dense / ms, layout=" / ".join(dict.fromkeys(layouts)),
    )  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A convolution of AlexNet and the factors that the paper (Wen et al., ICCV 2017) measured at `paper_rank`."""

    name: str
    channels: int
    outputs: int
    groups: int
    paper_rank: int
    cpu: float
    gpu: float
    ranks: tuple[int, ...]

    @property
    def message(self) -> Any:
        """The LayerParameter."""
        window = f"kernel_size: 3 pad: 1 group: {self.groups} num_output: {self.outputs}"
        text = f'name: "{self.name}" type: "Convolution" bottom: "x" top: "y" convolution_param {{ {window} }}'
        return text_format.Parse(text, LayerParameter())

    def theory(self, rank: int) -> float:
        """MACs of the layer over those of its pair, whose groups have the same ranks."""
        even = rank // self.groups * self.groups
        return lowrank_speedup(self.outputs, self.channels // self.groups, 3, 3, self.groups, rank=even)

    def paper(self, rank: int, device: torch.device) -> str:
        """The paper's factor, for ranks that aren't lower than its."""
        return f"{self.cpu if device.type == 'cpu' else self.gpu}" if rank >= self.paper_rank else ""

    def runs(self, ranks: Sequence[int], batch: int, place: Place) -> Iterator[Run]:
        """Calls of the dense layer and of its pair at each rank, each in all layouts."""
        device = place.bench.device
        ladder = Ladder(torch.randn(self.outputs, self.channels // self.groups, 3, 3), "pca", self.groups)
        shape = (batch, self.channels, SIDE, SIDE)
        for parts in [[self.message], *(split(self.message, ladder.outline(rank)) for rank in ranks)]:
            for layout in place.layouts.values():
                net = layer_net(parts, {"x": shape}, device)
                for blob in net.parameters():
                    # not .contiguous(): a 1x1 kernel is both at once, and its strides decide the output's layout
                    blob.data = torch.empty_like(blob, memory_format=layout if blob.dim() == 4 else None).copy_(
                        blob.data
                    )
                x = torch.rand(shape, device=device)
                yield place.bench.run(net, {"x": torch.empty_like(x, memory_format=layout).copy_(x)})

    def rows(self, batches: Sequence[int], place: Place, own: Sequence[int] = ()) -> Iterator[list[Row]]:
        """What isn't known, a batch size after the other; `own`: ranks beside the usual."""
        for batch in batches:
            asked = dict.fromkeys((*self.ranks, *own))
            ranks = [rank for rank in asked if not place.knows(self.name, str(rank), batch)]
            if not ranks:
                continue
            times = iter(place.medians(list(self.runs(ranks, batch, place))))
            dense, *each = [{layout: next(times) for layout in place.layouts} for _ in range(len(ranks) + 1)]
            yield [
                best(self.name, str(rank), batch, self.theory(rank), [dense, ms], place,
                     self.paper(rank, place.bench.device))
                for rank, ms in zip(ranks, each, strict=True)
            ]  # fmt: skip


LAYERS = (
    Layer("conv3", 256, 384, 1, 124, 2.45, 2.16, (184, 150, 128, 124)),
    Layer("conv4", 384, 384, 2, 106, 2.76, 2.03, (201, 160, 128, 106)),
    Layer("conv5", 384, 256, 2, 129, 1.64, 1.33, (160, 146, 129, 120)),
)
"""The paper's second, lower ranks are those with measured factors; 150, 160 and 120 are its mixed net's."""


@dataclass(frozen=True)
class WholeNet:
    """A shipped net for use, and by what it is cut, for people too."""

    name: str
    file: str
    ranks: str
    rule: Any
    method: str = "pca"

    def rows(self, batches: Sequence[int], place: Place, own: Sequence[int] = ()) -> Iterator[list[Row]]:
        """What isn't known; the net is cut only if something isn't. `own`: of layers alone."""
        missing = [batch for batch in batches if not place.knows(self.name, self.ranks, batch)]
        if not missing:
            return
        whole = read_net(configs_dir() / self.file)
        made = forcereg.decompose(forcereg.load_net(whole, seed=0), rule=self.rule, method=self.method)
        cut = net_from_message(made.net, self.name)
        for batch in missing:
            runs = [
                net_run(net, weights, self.fed(net, batch), place.bench)
                for net, weights in ((whole, None), (cut, made.weights))
            ]
            times = [{"": ms} for ms in place.medians(runs)]
            yield [best(self.name, self.ranks, batch, made.report["net"]["speedup"], times, place)]

    def fed(self, net: NetFile, batch: int) -> dict[str, tuple[int, ...]]:
        """Shapes of what the net is fed."""
        return fed_shapes(net, forcereg.load_net(net).shapes, batch)


NETS = (
    WholeNet("AlexNet", "models/alexnet/deploy.prototxt", "8, 40, 150, 160, 120",
             forcereg.RankConfig(configs_dir() / "models/alexnet/ranks_mixed.json"), "mixed"),
    WholeNet("GoogLeNet", "models/googlenet/deploy.prototxt", "half the MACs", forcereg.MaxMacs(0.5)),
    WholeNet("ResNet-20", "examples/cifar10/cifar10_resnet20.prototxt", "half the MACs", forcereg.MaxMacs(0.5)),
    WholeNet("VGG-16", "models/vgg16/deploy.prototxt", "half the MACs", forcereg.MaxMacs(0.5)),
)  # fmt: skip


def main() -> None:
    """Measures what is missing, or prints the table."""
    subjects = {one.name.lower(): one for one in (*LAYERS, *NETS)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, metavar="OUT.csv")
    parser.add_argument("--runtime", default="torch")
    parser.add_argument("--threads", type=int, help="of the CPU (default: as many as torch takes)")
    parser.add_argument("--only", default=",".join(subjects), help="default: %(default)s")
    parser.add_argument("--ranks", action="append", default=[], help="for conv3,conv4,conv5; repeatable")
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=10, help="for what takes turns")
    parser.add_argument("--table", action="store_true", help="print OUT.csv as Markdown")
    args = parser.parse_args()
    rows = read_rows(args.csv)
    if args.table:
        print(tables(rows), end="")
        return
    names, batches = args.only.lower().split(","), [int(batch) for batch in args.batch.split(",")]
    if strange := [name for name in names if name not in subjects]:
        parser.error(f"unknown '{strange[0]}'; known are {', '.join(subjects)}")
    own = list(zip(*(map(int, ranks.split(",")) for ranks in args.ranks), strict=True)) or [()] * len(LAYERS)
    extra = {layer.name.lower(): ranks for layer, ranks in zip(LAYERS, own, strict=True)}
    try:
        place = Place(bench_of(args.device, args.runtime, args.threads), args.seconds, {row.key for row in rows})
    except forcereg.ForceregError as error:
        parser.error(str(error))
    for name in names:
        for found in subjects[name].rows(batches, place, extra.get(name, ())):
            rows += found
            write_rows(args.csv, rows)
            for row in found:
                print(f"{row.what}, {row.ranks}, batch {row.batch}, {row.runtime}: {row.text}", flush=True)


if __name__ == "__main__":
    main()
