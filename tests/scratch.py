"""The folder in which the examples of public docstrings run: small files under the names that users would give them.

solver.prototxt  net.prototxt  train_lmdb  test_lmdb        60 and 30 pictures of 1x8x8 in 3 classes, 20 iterations
net_iter_20.caffemodel.h5  net_iter_20.solverstate.h5      what training wrote, and train.log, train.json its logs
deploy.prototxt                                             the net for use: input data 1x1x8x8, output prob
net_iter_20_lowrank.prototxt  ..._lowrank.caffemodel.h5     decomposed: conv1 (8 filters) to 4, conv2 (16) to 6
grouped.prototxt  grouped.caffemodel.h5                     the net for use, conv2 in two groups
examples/mnist/lenet_force_solver.prototxt ...          what `forcereg new lenet` writes, without its data
mnist/train-images-idx3-ubyte ...  photos/0.png ...  photos.txt     what converters read: 4 pictures each
"""

from __future__ import annotations

import contextlib
import importlib
import io
import struct
from pathlib import Path

import numpy as np

from tests.data.lmdbs import put_lmdb
from tests.solver.nets import image_records, write_solver

NET = """name: "bands"
layer {
  name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  transform_param { scale: 0.00390625 } data_param { source: "train_lmdb" batch_size: 12 backend: LMDB }
}
layer {
  name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
  transform_param { scale: 0.00390625 } data_param { source: "test_lmdb" batch_size: 10 backend: LMDB }
}
layer {
  name: "conv1" type: "Convolution" bottom: "data" top: "conv1" param { lr_mult: 1 force_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 8 kernel_size: 3 weight_filler { type: "xavier" } }
}
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer {
  name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2" param { lr_mult: 1 force_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 16 kernel_size: 3 weight_filler { type: "xavier" } }
}
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer {
  name: "ip" type: "InnerProduct" bottom: "conv2" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } }
}
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
"""
SNAPSHOT = "net_iter_20"
SOLVER = """
base_lr: 0.02 momentum: 0.9 max_iter: 20 display: 5 test_iter: 3 test_interval: 10
force_type: "Constant" force_decay: 0.001 snapshot_prefix: "net"
"""


def prepare(folder: Path) -> Path:
    """Fills `folder`, which is the working directory."""
    from forcereg.solver.jsonlog import JsonLog
    from forcereg.solver.log import GlogWriter
    from forcereg.solver.loop import Solver

    write_data(folder)
    run("new", "lenet")
    with (folder / "train.log").open("w") as text, contextlib.closing(JsonLog(folder / "train.json")) as records:
        Solver(write_solver(folder, SOLVER), observers=[GlogWriter(text), records]).solve()
    run("deploy", "net.prototxt", "-o", "deploy.prototxt")
    write_grouped(folder)
    run("decompose", "--snapshot", f"{SNAPSHOT}.caffemodel.h5", "--ranks", "4,6")
    return folder


def run(name: str, *args: str) -> None:
    """A command, without what it prints."""
    command = importlib.import_module(f"forcereg.commands.{name}").command
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        command.main(args, standalone_mode=False)


def write_grouped(folder: Path) -> None:
    """The net for use with conv2 in two groups, and weights without its text."""
    from forcereg.net.load import load_net
    from forcereg.snapshot import write_model

    text = (folder / "deploy.prototxt").read_text().replace("num_output: 16", "num_output: 16 group: 2")
    (folder / "grouped.prototxt").write_text(text)
    params = load_net(text, seed=1).params
    blobs = {name: {at: blob.detach().numpy() for at, blob in enumerate(held)} for name, held in params.items()}
    write_model(folder / "grouped.caffemodel.h5", blobs)


def write_data(folder: Path) -> None:
    """The net, its databases, and what converters read."""
    put_lmdb(folder / "train_lmdb", image_records(60))
    put_lmdb(folder / "test_lmdb", image_records(30))
    (folder / "net.prototxt").write_text(NET)
    random = np.random.default_rng(0)
    (folder / "mnist").mkdir()
    for stem in ("train", "t10k"):
        pixels = random.integers(0, 256, (4, 28, 28), np.uint8)
        for kind, magic, values in (("images-idx3", 2051, pixels), ("labels-idx1", 2049, np.arange(4, dtype=np.uint8))):
            head = struct.pack(f">{1 + values.ndim}I", magic, *values.shape)
            (folder / "mnist" / f"{stem}-{kind}-ubyte").write_bytes(head + values.tobytes())
    (folder / "photos").mkdir()
    from PIL import Image

    for number in range(4):
        Image.fromarray(random.integers(0, 256, (10, 12, 3), np.uint8)).save(folder / f"photos/{number}.png")
    (folder / "photos.txt").write_text("".join(f"{number}.png {number % 2}\n" for number in range(4)))
