"""What a sparse net's phases came to: OUT/NAME.csv with every number, and a table of it.

    python scripts/paper/sparse_phases.py NAME [--score OUTPUT]

Run in OUT: reads baseline, ssl and finetune_solver.prototxt, their logs and last snapshots. Zeros are those that the
weights hold, of every kernel group by itself; MACs are the net's for use, cut by `forcereg shrink`.
"""

from __future__ import annotations

import argparse
import datetime
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import forcereg
from forcereg.errors import ForceregError
from forcereg.report.curves import read_run
from forcereg.report.table import Table, csv_text, numeric
from forcereg.schema.text import parse_net, read_solver
from forcereg.snapshot import NET, read_model
from forcereg.system.files import write_text
from forcereg.version import __version__

PHASES = ("baseline", "ssl", "finetune")
COLUMNS = ("net", "phase", "accuracy", "macs", "params", "layer", "shape", "elements", "rows", "columns")
FEW = 5
"""Layers that a table has room for."""


@dataclass(frozen=True)
class Zeros:
    """The zeros of a layer's weights: shares of all elements, rows (filters) and columns."""

    layer: str
    shape: tuple[int, ...]
    elements: float
    rows: float
    columns: float

    def cells(self) -> list[object]:
        """The last of COLUMNS."""
        return [self.layer, "x".join(map(str, self.shape)), self.elements, self.rows, self.columns]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--score", default="accuracy", help="the test net's output that is the accuracy")
    asked = parser.parse_args()
    rows: list[list[object]] = []
    told_rows, layers = list[list[str]](), list[str]()
    for phase in PHASES:
        iterations = read_solver(f"{phase}_solver.prototxt").message.max_iter
        snapshot = Path(f"{phase}_iter_{iterations}.caffemodel.h5")
        accuracy = read_run(Path(f"{phase}.log")).curves[f"test {asked.score}"].values[-1]
        macs, params = left(snapshot)
        found = zeros(snapshot)
        layers = [one.layer for one in found]
        rows += [[asked.name, phase, accuracy, macs, params, *one.cells()] for one in found]
        shares = (told([getattr(one, kind) for one in found]) for kind in ("rows", "columns"))
        told_rows.append([phase, f"{accuracy:.2%}", *shares, f"{macs / 1e6:.3g}", f"{params:,}"])
    versions = f"forcereg {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    remarks = [f"scripts/paper, {versions}, {platform.machine()}, {datetime.date.today()}"]
    write_text(f"{asked.name}.csv", csv_text(COLUMNS, rows, remarks))
    made = Table("phase", *numeric("accuracy", "zero rows", "zero columns", "million MACs", "parameters"),
                 title=f"{asked.name}: {', '.join(layers)}" if len(layers) <= FEW else asked.name)  # fmt: skip
    for cells in told_rows:
        made.row(*cells)
    made.show()


def left(snapshot: Path) -> tuple[int, int]:
    """MACs for one image and parameters of the net for use once what is zero is cut out."""
    written = forcereg.deploy(snapshot).write(snapshot.name.removesuffix(".caffemodel.h5") + "_deploy")
    whole = forcereg.summary(written["model"])
    try:
        net = forcereg.shrink(written["weights"]).report["net"]
    except ForceregError as error:
        if "nothing to cut" not in str(error):
            raise
        return whole.macs, whole.params
    return net["macs_after"], net["params_after"]


def zeros(snapshot: Path) -> list[Zeros]:
    """Of every layer with a weight matrix, in net order."""
    read = read_model(snapshot)
    net = parse_net(read.attrs[NET]).message
    groups = {layer.name: layer.convolution_param.group for layer in net.layer}
    kept = []
    for name, blobs in read.layers.items():
        zero = np.asarray(blobs.get(0, 0.0)) == 0
        if zero.ndim < 2:
            continue
        parts = zero.reshape(groups.get(name, 1), -1, zero[0].size)
        kept.append(Zeros(name, zero.shape, zero.mean(), parts.all(2).mean(), parts.all(1).mean()))
    return kept


def told(shares: Sequence[float]) -> str:
    """Those of few layers; of many how many are gone whole, and the mean."""
    if len(shares) <= FEW:
        return " ".join(f"{share:.1%}" for share in shares)
    return f"{np.mean(shares):.1%}, {sum(share == 1 for share in shares)} of {len(shares)} layers whole"


if __name__ == "__main__":
    main()
