"""What Caffe's Python interface costs: a net's forward through it and without it, and looking up a blob.

    python scripts/bench/pycaffe.py [--nets LeNet,AlexNet] [--rounds 15] [--json FIGURES.json]

LeNet (batch 64) and AlexNet (batch 10) as shipped, a forward each in turn; ratios are of medians.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from contest import in_turns
from table import Figure, rows, write_figures

import forcereg
import forcereg.pycaffe as caffe
from forcereg.system.shipped import configs_dir

GOAL, LOOK_UP = 1.1, 20.0
"""The most that a forward through it may take of one without; microseconds for a look-up."""
NETS = {"LeNet": "examples/mnist/lenet.prototxt", "AlexNet": "models/alexnet/deploy.prototxt"}


def measured(name: str, rounds: int) -> list[Figure]:
    """A net's figures."""
    file = str(configs_dir() / NETS[name])
    mine, own = caffe.Net(file, caffe.TEST), forcereg.load_net(file)
    (data,) = own.inputs
    values = torch.rand(own.shapes[data])
    mine.blobs[data].data[...] = values

    def plain() -> None:
        with torch.no_grad():
            own(values)

    calls = [plain, lambda: mine.forward()]
    for call in calls:
        call()
    without, through = in_turns(calls, rounds)
    layer = next(iter(mine.params))
    begin = time.perf_counter()
    for _ in range(1000):
        mine.blobs[data]
        mine.params[layer]
    microseconds = (time.perf_counter() - begin) / 2000 * 1e6
    what = f"{name}, batch {values.shape[0]}"
    return [
        Figure(what, "forward through caffe.Net / without", through / without, GOAL),
        Figure(what, "a look-up in blobs or params", microseconds, LOOK_UP, "us"),
    ]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json")
    args = parser.parse_args()
    figures = [figure for name in args.nets.split(",") for figure in measured(name, args.rounds)]
    machine = f"cpu, {torch.get_num_threads()} threads, torch {torch.__version__}, numpy {np.__version__}"
    print("\n".join([machine, "", *rows(figures)]))
    if args.json:
        write_figures(args.json, figures, {}, machine)


if __name__ == "__main__":
    main()
