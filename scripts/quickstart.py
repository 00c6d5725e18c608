"""The quickstart's table: what `quickstart.sh` left in the working directory, and measured forward times.

python quickstart.py ERROR ITERATIONS TUNING TEST_IMAGES DATA
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import forcereg
from forcereg.lowrank.ladder import Ladder
from forcereg.report.table import Table, numeric
from forcereg.system.terminal import console

LAYERS = ("conv1", "conv2")
WIDTH = 110  # of the text, where nobody's terminal says less
ROUNDS = 30  # forward passes of each net, taken in turn so that all see the same machine


@dataclass
class Row:
    """One net: as trained, or cut. `needed`: the ranks that hold all but the error of the weights' energy."""

    kind: str
    cut: str
    ranks: str
    needed: str
    macs: float
    accuracy: float
    tuned: float | None
    milliseconds: float = 0.0


def main() -> None:
    error, iterations, tuning, images, data = sys.argv[1:]
    accuracies = read_accuracies(Path("accuracies.tsv"))
    nets = {name: load(name, int(iterations)) for name in accuracies if not name.endswith("_tuned")}
    rows = {name: make_row(name, net, accuracies, float(error)) for name, net in nets.items()}
    for name, seconds in forward_times(nets).items():
        rows[name].milliseconds = 1000 * seconds
    make_table(list(rows.values()), iterations, tuning, data).show()
    to = console()
    to.width = min(to.width, WIDTH)
    place = "GPU" if torch.cuda.is_available() else "CPU"
    caption = "ranks: of conv1/conv2, whole: not cut; MACs: multiply-accumulates for one image"
    to.print(
        f"{caption}; ms: forward pass of a batch of 100 on the {place}; fine-tuned: all without force", highlight=False
    )
    to.print(conclusion(rows, float(error), int(images)), highlight=False)


def read_accuracies(path: Path) -> dict[str, float]:
    """Net name -> share of the test images it gets right."""
    return {name: float(value) for name, value in map(str.split, path.read_text().splitlines())}


def load(name: str, iterations: int) -> forcereg.Net:
    """The net called `name` in its test phase, with the weights it had before fine-tuning."""
    if "_" in name:
        return forcereg.load_net(f"{name}.prototxt", f"{name}.caffemodel.h5")
    model = "lenet_train_test.prototxt" if name == "plain" else "lenet_train_test_force.prototxt"
    return forcereg.load_net(f"examples/mnist/{model}", f"{name}_iter_{iterations}.caffemodel.h5")


def make_row(name: str, net: forcereg.Net, accuracies: dict[str, float], error: float) -> Row:
    """Everything about one net but its forward time."""
    kind, _, cut = name.partition("_")
    cuts = {"": "as trained", "error": f"{error:.0%} error", "ranks": "same ranks"}
    tuned = accuracies.get(f"{name}_tuned")
    ranks = "/".join(rank(net, layer, whole=not cut) for layer in LAYERS)
    needed = "" if cut else "/".join(str(needed_rank(net, layer, error)) for layer in LAYERS)
    return Row(kind, cuts[cut], ranks, needed, macs(net), accuracies[name], tuned)


def rank(net: forcereg.Net, layer: str, whole: bool) -> str:
    """How many filters are left of a convolution before the 1x1 that combines them, or that it is whole.

    In a net that is `whole` its own filters.
    """
    if f"{layer}_lowrank" in net.params:
        return str(net.params[f"{layer}_lowrank"][0].shape[0])
    return str(net.params[layer][0].shape[0]) if whole else "whole"


def needed_rank(net: forcereg.Net, layer: str, error: float) -> int:
    """How many filters hold all but `error` of a convolution's energy."""
    found = Ladder(net.params[layer][0].detach().cpu().numpy(), "pca").smallest_rank(error)
    assert isinstance(found, int)
    return found


def macs(net: forcereg.Net) -> float:
    """Multiply-accumulates of one image, in millions, in convolutions and inner products."""
    total = 0
    for layer in net.spec.layers:
        if layer.type in ("Convolution", "InnerProduct"):
            positions = net.shapes[layer.tops[0]][2:]
            total += net.params[layer.name][0].numel() * torch.Size(positions).numel()
    return total / 1e6


def forward_times(nets: dict[str, forcereg.Net]) -> dict[str, float]:
    """Net name -> median seconds of a forward pass over one test batch, where training runs too."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    shape = next(iter(nets.values())).shapes["data"]
    data = torch.rand(shape, generator=generator).to(device)
    label = torch.zeros(shape[0], device=device)
    times: dict[str, list[float]] = {name: [] for name in nets}
    for net in nets.values():
        net.to(device)
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for name, net in nets.items():
                start = time.perf_counter()
                net(data=data, label=label)["loss"].item()  # item() waits for the device
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def make_table(rows: list[Row], iterations: str, tuning: str, data: str) -> Table:
    """One line per net, in percent, millions and milliseconds."""
    numbers = numeric("ranks", "million MACs", "ms", "accuracy", f"fine-tuned for {tuning}")
    table = Table("trained", "convolutions", *numbers, title=f"LeNet after {iterations} iterations on {data}")
    for row in rows:
        name = "without force" if row.kind == "plain" else "with force"
        tuned = f"{row.tuned:.1%}" if row.tuned is not None else ""
        cells = (row.ranks, f"{row.macs:.2f}", f"{row.milliseconds:.2f}", f"{row.accuracy:.1%}", tuned)
        table.row(name, row.cut, *cells)
        if row.cut == "same ranks":
            table.section()
    return table


def conclusion(rows: dict[str, Row], error: float, images: int) -> str:
    """What the table says, in words; the numbers decide which words. Accuracies are of `images` images.

    `rows` may lack nets cut at the error: those of which no layer would be cheaper.
    """
    force, plain = rows["force"], rows["plain"]
    noise = chance(force.accuracy, images)
    lines = [
        f"Filters: rank {force.needed} holds all but {error:.0%} of the weights' energy with force, "
        f"rank {plain.needed} without."
    ]
    for row, name in ((plain, "without"), (force, "with")):
        lines += [dearer(rows.get(f"{row.kind}_error"), row, name)]
    if "force_error" in rows:
        lines.append(at_error(rows["force_error"], force, error, noise))
    cut, other = rows["force_ranks"], rows["plain_ranks"]
    lines.append(
        f"At equal cost (rank {cut.ranks}) the net trained with force has {cut.accuracy:.1%}, fine-tuned "
        f"{cut.tuned:.1%}; the one trained without {other.accuracy:.1%}, fine-tuned {other.tuned:.1%}. "
        f"{verdict(cut, other, noise)}"
    )
    lines.append(f"Whole nets, fine-tuned as long: {force.tuned:.1%} with force, {plain.tuned:.1%} without.")
    lines.append(f"{images:,} test images: differences below {100 * noise:.1f} points may be chance.")
    return "\n".join(filter(None, lines))


def chance(accuracy: float, images: int) -> float:
    """Two standard errors of an accuracy, of one that is 0 or 1 too (Agresti and Coull: as if of 4 images more)."""
    share = (accuracy * images + 2) / (images + 4)
    return 2 * (share * (1 - share) / (images + 4)) ** 0.5


def dearer(cut: Row | None, whole: Row, name: str) -> str:
    """Which layers of the net cut at the error stay whole; '' for none."""
    ranks = ["whole"] * len(LAYERS) if cut is None else cut.ranks.split("/")
    left = [
        f"{layer} ({needed})"
        for layer, found, needed in zip(LAYERS, ranks, whole.needed.split("/"), strict=True)
        if found == "whole"
    ]
    many = "the chains" if len(left) > 1 else "the chain"
    return f"At these ranks {many} for {' and '.join(left)} {name} force would cost no less: not cut." if left else ""


def at_error(cut: Row, whole: Row, error: float, noise: float) -> str:
    """What the cut at the error does to the answers."""
    if cut.accuracy >= whole.accuracy - noise:
        return f"Cut there, it keeps {cut.accuracy:.1%} of {whole.accuracy:.1%}; fine-tuned, {cut.tuned:.1%}."
    return (
        f"That bound speaks of weights, not of answers: cut there, the net trained with force falls from "
        f"{whole.accuracy:.1%} to {cut.accuracy:.1%}, so what tells classes apart is among the {error:.0%} left out; "
        f"fine-tuned, it has {cut.tuned:.1%}."
    )


def verdict(one: Row, other: Row, noise: float) -> str:
    """Whether force has helped at equal cost, before fine-tuning and behind it."""
    gaps = (one.accuracy - other.accuracy, (one.tuned or 0.0) - (other.tuned or 0.0))
    cut, tuned = ("makes no difference" if abs(gap) < noise else "helps" if gap > 0 else "harms" for gap in gaps)
    return f"As cut, force {cut}; fine-tuned, it {tuned}." if cut != tuned else f"Force {cut}, as cut and fine-tuned."


if __name__ == "__main__":
    main()
