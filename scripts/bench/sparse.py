"""Sparse convolutions beside the best dense one on this CPU, on AlexNet's layers with really pruned filters.

    python scripts/bench/sparse.py OUT.csv FOLDER [--only conv2,conv3,...] [--shares 0.3,0.2,0.09] [--batch 1,32]
        [--threads N] [--seconds 4]
    python scripts/bench/sparse.py OUT.csv --table

FOLDER has the filters that pruned.py trained. Rows go into OUT.csv as soon as they are measured; what it has of this
machine and number of threads isn't measured again. --table prints it as Markdown.

Maps are AlexNet's, inputs random. Dense runs contiguous, channels_last, and by oneDNN with filters and input
packed beforehand; the fastest counts. A sparse form takes the channels_last input, as nets hand it on, and all that it
does with it counts. All take turns; what is compared are medians.
"""

from __future__ import annotations

import argparse
import datetime
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import kept
import torch
from contest import processor
from pruned import SHARES, load_filters
from torch import Tensor, nn
from torch.utils import mkldnn

import forcereg
from forcereg.layers.convolve import Geometry
from forcereg.layers.sparse import available, make
from forcereg.registry import sparse_form
from forcereg.study.bench import Bench, bench_of
from forcereg.study.latency import Run, interleaved

FORMS = ("ccnmm", "csr", "direct")


@dataclass(frozen=True)
class Layer:
    """A convolution of AlexNet: its input's side, and its geometry."""

    side: int
    pad: int
    group: int

    def input(self, weight: Tensor, batch: int) -> Tensor:
        """A random one."""
        return torch.rand(batch, weight.shape[1] * self.group, self.side, self.side)

    def dense(self, weight: Tensor, x: Tensor) -> dict[str, Run]:
        """Layout -> call of torch's convolution."""
        pad, kernel = self.pad, (weight.shape[2], weight.shape[3])
        conv = nn.Conv2d(x.shape[1], weight.shape[0], kernel, padding=pad, groups=self.group)
        conv.weight.data.copy_(weight)
        last = nn.Conv2d(x.shape[1], weight.shape[0], kernel, padding=pad, groups=self.group)
        last.load_state_dict(conv.state_dict())
        last.to(memory_format=torch.channels_last)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch, for what it does itself
            packed = mkldnn.to_mkldnn(conv.eval())
        return {
            "contiguous": partial(conv, x),
            "channels_last": partial(last, x.contiguous(memory_format=torch.channels_last)),
            "packed": partial(packed, x.to_mkldnn()),
        }

    def sparse(self, weight: Tensor, x: Tensor) -> dict[str, Run]:
        """Form -> call."""
        kernel = (weight.shape[2], weight.shape[3])
        geometry = Geometry(kernel, (1, 1), (self.pad, self.pad), (1, 1))
        x, bias = x.contiguous(memory_format=torch.channels_last), torch.zeros(len(weight))
        return {form: partial(make(form, weight, geometry, self.group), x, bias) for form in FORMS}


LAYERS = {"conv2": Layer(27, 2, 2), "conv3": Layer(13, 1, 1), "conv4": Layer(13, 1, 2), "conv5": Layer(13, 1, 2)}


@dataclass(frozen=True)
class Row:
    """A layer at a share of weights that aren't 0 and a batch size: median milliseconds.

    `layout`: the one in which dense was fastest.
    """

    date: str
    machine: str
    threads: str
    layer: str
    share: str
    batch: str
    layout: str
    dense: float
    ccnmm: float
    csr: float
    direct: float

    @property
    def key(self) -> tuple[str, ...]:
        """What isn't measured twice."""
        return self.machine, self.threads, self.layer, self.share, self.batch

    @property
    def text(self) -> str:
        """The table's line."""
        forms = (self.ccnmm, self.csr, self.direct)
        told = [f"{ms:.3g}, {self.dense / ms:.2f}x" for ms in forms]
        cells = [f"**{one}**" if ms == min(forms) < self.dense else one for ms, one in zip(forms, told, strict=True)]
        return f"| {self.layer} | {self.share} | {self.batch} | {self.dense:.3g} {self.layout} | {' | '.join(cells)} |"


def measured(name: str, weight: Tensor, share: float, batch: int, bench: Bench, seconds: float) -> Row:
    """One row."""
    layer = LAYERS[name]
    x = layer.input(weight, batch)
    runs = {**layer.dense(weight, x), **layer.sparse(weight, x)}
    with bench.at_work():
        times = [median(rounds) for rounds in interleaved(list(runs.values()), bench.device, seconds)]
    ms = dict(zip(runs, times, strict=True))
    layout = min((one for one in ms if one not in FORMS), key=ms.__getitem__)
    place = (datetime.date.today().isoformat(), processor(), str(bench.count))
    return Row(*place, name, f"{share:g}", str(batch), layout, ms[layout], ms["ccnmm"], ms["csr"], ms["direct"])


def read_rows(path: Path) -> list[Row]:
    """See kept.read."""
    return kept.read(path, Row)


def table(rows: Collection[Row]) -> str:
    """Markdown, by machine and number of threads."""
    lines = []
    for machine, threads in dict.fromkeys((row.machine, row.threads) for row in rows):
        own = [row for row in rows if (row.machine, row.threads) == (machine, threads)]
        lines += ["| | not 0 | batch | dense ms | ccnmm | csr | direct |", "|---" * 7 + "|", *(row.text for row in own)]
        when = " to ".join(dict.fromkeys((min(row.date for row in own), max(row.date for row in own))))
        lines += [
            "",
            f"({machine}, threads: {threads}, {when}; medians of milliseconds, and of how many times dense's speed.)",
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    """Measures what is missing, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, metavar="OUT.csv")
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER")
    parser.add_argument("--only", default=",".join(LAYERS), help="default: %(default)s")
    parser.add_argument("--shares", default=",".join(map(str, SHARES)), help="default: %(default)s")
    parser.add_argument("--batch", default="1,32", help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="default: as many as torch takes")
    parser.add_argument("--seconds", type=float, default=4, help="for what takes turns")
    parser.add_argument("--table", action="store_true", help="print OUT.csv as Markdown")
    args = parser.parse_args()
    rows = read_rows(args.csv)
    if args.table:
        print(table(rows), end="")
        return
    names = args.only.split(",")
    if strange := [name for name in names if name not in LAYERS]:
        parser.error(f"unknown '{strange[0]}'; known are {', '.join(LAYERS)}")
    if missing := [f"{form} {available(form)}" for form in sparse_form if available(form)]:
        parser.error(missing[0])
    if args.folder is None:
        parser.error("FOLDER is missing, with the filters that pruned.py trained")
    try:
        bench = bench_of("cpu", threads=args.threads)
    except forcereg.ForceregError as error:
        parser.error(str(error))
    known = {row.key for row in rows}
    for share in map(float, args.shares.split(",")):
        filters = load_filters(args.folder, share)
        for name in names:
            for batch in args.batch.split(","):
                if (processor(), str(bench.count), name, f"{share:g}", batch) in known:
                    continue
                rows.append(measured(name, filters[name], share, int(batch), bench, args.seconds))
                kept.write(args.csv, rows, Row)
                print(rows[-1].text, flush=True)


if __name__ == "__main__":
    main()
