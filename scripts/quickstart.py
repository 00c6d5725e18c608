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
from forcereg.report.table import Table, numeric
from forcereg.terminal import console

WIDTH = 110  # of the text, where nobody's terminal says less
ROUNDS = 30  # forward passes of each net, taken in turn so that all see the same machine


@dataclass
class Row:
    """One net: as trained, or cut."""

    kind: str
    cut: str
    ranks: str
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
    caption = "ranks: of conv1/conv2; MACs: multiply-accumulates for one image"
    to.print(f"{caption}; ms: forward pass of a batch of 100 on the {place}", highlight=False)
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
    ranks = "/".join(str(rank(net, layer)) for layer in ("conv1", "conv2"))
    return Row(kind, cuts[cut], ranks, macs(net), accuracies[name], tuned)


def rank(net: forcereg.Net, layer: str) -> int:
    """How many filters are left of a convolution: its own, or those before the 1x1 that combines them."""
    blobs = net.params.get(f"{layer}_lowrank") or net.params[layer]
    return blobs[0].shape[0]


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
    """What the table says, in words; the numbers decide which words. Accuracies are of `images` images."""
    whole, cut, same, plain = (rows[name] for name in ("force", "force_error", "force_ranks", "plain_ranks"))
    noise = 2 * (whole.accuracy * (1 - whole.accuracy) / images) ** 0.5
    lines = [
        f"Filters: rank {cut.ranks} holds all but {error:.0%} of the weights' energy with force, "
        f"rank {rows['plain_error'].ranks} without."
    ]
    if cut.accuracy < whole.accuracy - noise:
        lines.append(
            f"That bound speaks of weights, not of answers: cut there, the net trained with force falls from "
            f"{whole.accuracy:.1%} to {cut.accuracy:.1%}, because what tells classes apart sits in the small "
            f"remainder; fine-tuning brings it to {cut.tuned:.1%}."
        )
    else:
        lines.append(f"Cut there, it keeps {cut.accuracy:.1%} of {whole.accuracy:.1%}; fine-tuned, {cut.tuned:.1%}.")
    lines.append(
        f"At equal cost (rank {same.ranks}) it has {same.accuracy:.1%}, fine-tuned {same.tuned:.1%}; the net "
        f"trained without force {plain.accuracy:.1%}, fine-tuned {plain.tuned:.1%}."
    )
    lines.append(f"{images:,} test images: differences below {100 * noise:.1f} points may be chance.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
