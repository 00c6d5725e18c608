"""Writes what a version is to be remembered by: its files, which all later versions must read.

    python tests/snapshot/frozen/make.py

makes the folder of the version that runs, once, when it is released; what a released version wrote is never made anew.
test_frozen.py reads all folders.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import forcereg

HERE = Path(__file__).parent
ELSEWHERE = "/frozen"
"""What stands in logs for the folder that a version's files were made in."""

NET = """
name: "small"
layer { name: "data" type: "HDF5Data" top: "data" top: "label"
  hdf5_data_param { source: "data.txt" batch_size: 4 shuffle: true } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { force_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 6 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip" param { name: "shared" }
  inner_product_param { num_output: 3 bias_term: false weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
RECURRENT = """
name: "recurrent"
layer { name: "in" type: "DummyData" top: "x" top: "cont" top: "y"
  dummy_data_param { data_filler { type: "uniform" min: -1 max: 1 } data_filler { type: "constant" value: 1 }
    data_filler { type: "uniform" } shape { dim: 2 dim: 3 dim: 4 } shape { dim: 2 dim: 3 } shape { dim: 6 dim: 2 } } }
layer { name: "lstm" type: "LSTM" bottom: "x" bottom: "cont" top: "h"
  recurrent_param { num_output: 3 weight_filler { type: "uniform" min: -0.5 max: 0.5 } } }
layer { name: "ip" type: "InnerProduct" bottom: "h" top: "ip"
  inner_product_param { num_output: 2 axis: 2 weight_filler { type: "xavier" } } }
layer { name: "flat" type: "Reshape" bottom: "ip" top: "flat" reshape_param { shape { dim: 6 dim: 2 } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "flat" bottom: "y" top: "loss" }
"""
COMMON = "display: 1 max_iter: 4 snapshot: 4 random_seed: 1 solver_mode: CPU lr_policy: 'fixed' "
SOLVERS = {
    "sgd": COMMON.replace("fixed", "multistep")
    + "net: 'small.prototxt' snapshot_prefix: 'sgd' snapshot_format: HDF5 snapshot_diff: true gamma: 0.5 stepvalue: 3 "
    "base_lr: 0.05 momentum: 0.9 weight_decay: 0.001 force_decay: 0.01 test_iter: 1 test_interval: 2",
    "adam": COMMON + "net: 'recurrent.prototxt' snapshot_prefix: 'adam' type: 'Adam' base_lr: 0.01",
    "clipped": COMMON
    + "net: 'chain.prototxt' snapshot_prefix: 'clipped' snapshot_format: HDF5 base_lr: 0.01 momentum: 0.9 test_iter: 1 "
    "test_interval: 2",
}
"""Name -> what it trains; names are those of the snapshots."""
STATES = ("sgd_iter_4.solverstate.h5", "adam_iter_4.solverstate")
"""Those that are gone on from to `numbers`."""


def write_inputs(folder: Path) -> None:
    """Nets, solvers and data."""
    (folder / "small.prototxt").write_text(NET.lstrip())
    (folder / "recurrent.prototxt").write_text(RECURRENT.lstrip())
    for name, text in SOLVERS.items():
        (folder / f"{name}.prototxt").write_text(text.replace("'", '"') + "\n")
    (folder / "data.txt").write_text("data.h5\n")
    random = np.random.default_rng(1)
    labels = np.arange(12) % 3
    images = random.random((12, 2, 5, 5)) + labels[:, None, None, None] * random.random((2, 5, 5)) / 2
    with h5py.File(folder / "data.h5", "w", libver="earliest") as file:
        file["data"], file["label"] = images.astype(np.float32), labels.astype(np.float32)


def run(folder: Path, *args: str, fails: bool = False) -> None:
    """`forcereg ARGS` in the folder."""
    call = [sys.executable, "-m", "forcereg", *args]
    done = subprocess.run(call, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert bool(done.returncode) == fails, args


def numbers(folder: Path, state: str) -> dict[str, Any]:
    """What two iterations behind a state of `STATES` come to; in the folder, in which the working directory must be."""
    losses: list[float] = []

    def heard(event: Any) -> None:
        if event.kind == "train":
            losses.append(event.loss)

    solver = forcereg.Solver(folder / f"{state.partition('_')[0]}.prototxt", observers=[heard], device="cpu")
    solver.restore(folder / state)
    solver.step(2)
    sums = {
        f"{layer}/{index}": [float(blob.detach().double().sum()), float(blob.detach().double().abs().sum())]
        for layer, blobs in solver.net.params.items()
        for index, blob in enumerate(blobs)
    }
    return {"losses": losses, "sums": sums}


def make(folder: Path) -> None:
    """Fills the folder with what the present version writes."""
    write_inputs(folder)
    run(folder, "train", "--solver", "sgd.prototxt", "--log-json", "sgd.jsonl")
    run(folder, "train", "--solver", "adam.prototxt")
    run(folder, "convert", "sgd_iter_4.caffemodel.h5", "sgd_iter_4.caffemodel")
    whole = ("--error", "0", "--even-if-dearer")
    run(folder, "decompose", "--snapshot", "sgd_iter_4.caffemodel.h5", *whole, "--out", "chain")
    clipping = ("--rank-clipping", "0.9", "--amp", "fp16", "--log-json", "clipped.jsonl")
    run(folder, "train", "--solver", "clipped.prototxt", "--weights", "chain.caffemodel.h5", *clipping)
    diverge = "base_lr=1e30", "display=2", "test_interval=100", "debug_info=true"
    settings = [word for setting in diverge for word in ("--set", setting)]
    start = ("--solver", "sgd.prototxt", "--snapshot", "sgd_iter_4.solverstate.h5", "--max-iter", "9")
    run(folder, "train", *start, *settings, "--log-json", "failed.jsonl", fails=True)
    study(folder)
    expected = {state: numbers(folder, state) for state in STATES}
    (folder / "numbers.json").write_text(json.dumps(expected, indent=1) + "\n")
    (folder / "schema.txt").write_text("".join(f"{line}\n" for line in schema()))


def study(folder: Path) -> None:
    """A sweep, a frontier and the like: their CSV files and what they keep beside."""
    rule = ("--ranks", "2", "--finetune", "2", "--device", "cpu")
    run(folder, "sweep", "--solver", "sgd.prototxt", "--set", "force_decay=0,0.01", *rule, "--out", "sweep")
    model = "sgd_iter_4.caffemodel.h5"
    aims = ("--ranks", "2", "--even-if-dearer", "--finetune", "2", "--latency", "no")
    run(folder, "frontier", model, "--solver", "sgd.prototxt", *aims, "-o", "frontier.svg")
    run(folder, "sensitivity", model, "--solver", "sgd.prototxt", "-o", "sensitivity.svg")
    run(folder, "confusion", "--model", "small.prototxt", "--weights", model, "-o", "confusion.csv")
    run(folder, "plot", "sgd.jsonl", "-o", "curves.csv")


def schema() -> list[str]:
    """A line for each message of the schema: its name, and each field as name=number:label:type."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet

    data = (Path(forcereg.__file__).parent / "schema" / "caffe.desc").read_bytes()
    lines = []
    file = FileDescriptorSet.FromString(data).file[0]
    package = f".{file.package}."
    for message in file.message_type:
        words = [message.name]
        for field in message.field:
            label = FieldDescriptorProto.Label.Name(field.label).removeprefix("LABEL_").lower()
            kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
            words.append(f"{field.name}={field.number}:{label}:{field.type_name.removeprefix(package) or kind}")
        lines.append(" ".join(words))
    return lines


KEPT: Sequence[str] = (
    "*.prototxt", "data.*", "sgd_iter_4.*", "adam_iter_4.*", "clipped_iter_4.*", "chain.*",
    "*.jsonl", "*.csv", "frontier.scores.json", "sweep/results.csv", "sweep/*/run.json", "sweep/*/result.json",
    "numbers.json", "schema.txt",
)  # fmt: skip


def main() -> None:
    """The folder of this version."""
    target = HERE / forcereg.__version__
    if target.exists():
        sys.exit(f"{target} is there already; files of a released version stay as they are")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        make(folder)
        for path in sorted({path for pattern in KEPT for path in folder.glob(pattern)}):
            to = target / path.relative_to(folder)
            to.parent.mkdir(parents=True, exist_ok=True)
            data = path.read_bytes()
            is_text = path.suffix in (".json", ".jsonl", ".csv", ".txt", ".prototxt")
            to.write_bytes(data.replace(name.encode(), ELSEWHERE.encode()) if is_text else data)
        os.chdir(HERE)


if __name__ == "__main__":
    main()
