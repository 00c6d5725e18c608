"""A trained ResNet-20 retrained with force until its last stage collapses: each try's ranks at 5 % error and accuracy.

    cd FOLDER
    python SCRIPTS/paper/compare/collapse.py WEIGHTS --decay 1e-3 --rate 0.05 --iterations 1500

WEIGHTS: a snapshot of the shipped ResNet-20; FOLDER: as for the comparison. The rate falls to 0 on a line. With
--afresh the net is trained from its fillers, and WEIGHTS, read at the end, is what it is compared with. Each try adds
a row to --csv (results/collapse.csv) once it is done; one that was ended goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from nets import STUDIES, net_text
from rows import add_row, made_by, resumable

import forcereg
from forcereg.system.files import write_text

COLUMNS = (
    "weights", "afresh", "type", "decay", "layers", "until", "rate", "iterations", "batch", "seed", "before",
    "accuracy", "ranks_before", "ranks", "last_stage", "version", "torch", "date", "machine", "command",
)  # fmt: skip
LAST = "res_grp3"


def ranks_of(weights: Path) -> dict[str, int]:
    """At 5 % error by pca, of the convolutions but for shortcuts, as the paper's authors count them."""
    found = forcereg.ranks(weights, error=[0.05], layers="*conv*").report["layers"]
    return {layer["name"]: layer["ranks"][0] for layer in found}


def tried(asked: argparse.Namespace, folder: Path) -> tuple[float, float, Path]:
    """The test accuracies of WEIGHTS and of what one try made, and its weights."""
    study = STUDIES["resnet20"]
    forced = "force_mult: 1"
    text = net_text(study).replace("batch_size: 128", f"batch_size: {asked.batch}")
    if asked.layers == "last":  # only there
        head, mark, tail = text.partition(f'name: "{LAST}_1_conv1"')
        text = head.replace(forced, "force_mult: 0") + mark + tail
    name = (
        f"collapse_{asked.type}_{asked.decay}_{asked.layers}_{asked.until}_{asked.rate}_{asked.iterations}_{asked.batch}"
        f"_{asked.seed}{'_afresh' if asked.afresh else ''}"
    )
    net = Path(study.net).with_name(f"{name}.prototxt")
    write_text(net, text)
    fields: dict[str, Any] = {
        "net": str(net), "display": 500, "snapshot_format": "HDF5", "snapshot_prefix": str(folder / name),
        "snapshot": 500, "solver_mode": "CPU", "test_initialization": False, "test_interval": asked.iterations + 1,
        "lr_policy": "poly", "power": 1.0, "stepvalue": [], "base_lr": asked.rate,
        "force_decay": asked.decay, "force_type": asked.type,
    }  # fmt: skip
    if asked.until < 1:
        fields["force_iter"] = round(asked.until * asked.iterations)
    begun = resumable(folder, name)
    forcereg.train(
        study.solver, set=fields, weights=None if begun or asked.afresh else asked.weights, seed=asked.seed,
        max_iter=asked.iterations, resume=begun, keep=1,
    )  # fmt: skip
    made = folder / f"{name}_iter_{asked.iterations}.caffemodel.h5"
    # of the weights themselves: a training's last test may lie well before its end
    before, after = (
        forcereg.score(net, weights, iterations=asked.tests, device="cpu").mean("accuracy")
        for weights in (asked.weights, made)
    )
    return before, after, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--afresh", action="store_true", help="from the fillers, beside WEIGHTS")
    parser.add_argument("--type", choices=("Constant", "Degradation"), default="Degradation")
    parser.add_argument("--decay", type=float, default=1e-3)
    parser.add_argument(
        "--layers", choices=("all", "last"), default="all", help="forced: every convolution, or its last stage's"
    )
    parser.add_argument("--until", type=float, default=1.0, help="the share of the iterations that feels the force")
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tests", type=int, default=STUDIES["resnet20"].tests, help="batches of a test")
    parser.add_argument("--csv", type=Path, default=Path("results/collapse.csv"))
    parser.add_argument("--version", default="", help="the commit that runs")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path("runs/collapse")
    for one in (folder, asked.csv.parent):
        one.mkdir(parents=True, exist_ok=True)
    before, accuracy, made = tried(asked, folder)
    ranks = ranks_of(made)
    row = {key: str(value) for key, value in vars(asked).items() if key in COLUMNS} | {
        "weights": asked.weights.name, "before": f"{before:.6g}", "accuracy": f"{accuracy:.6g}",
        "ranks_before": " ".join(map(str, ranks_of(asked.weights).values())),
        "ranks": " ".join(map(str, ranks.values())),
        "last_stage": " ".join(str(rank) for layer, rank in ranks.items() if layer.startswith(LAST)),
        **made_by(asked.version),
    }  # fmt: skip
    row = add_row(asked.csv, COLUMNS, row)
    print(" ".join(f"{key}={row[key]}" for key in ("decay", "rate", "iterations", "accuracy", "ranks")))


if __name__ == "__main__":
    main()
