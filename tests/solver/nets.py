"""Small nets, solvers and data sets to train on, and a recorder of what happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcereg.solver.loop import Solver
from forcereg.system.events import Event
from tests.data.lmdbs import put_lmdb, raw

REGRESSION = """
name: "regression"
layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 4 dim: 3 } shape { dim: 4 dim: 2 } } }
layer {
  name: "ip" type: "InnerProduct" bottom: "x" top: "ip" PARAMS
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } }
}
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "y" top: "loss" }
"""

TESTED = REGRESSION.replace('name: "loss"', 'name: "loss" include { phase: TRAIN }') + (
    'layer { name: "test_loss" type: "EuclideanLoss" bottom: "ip" bottom: "y" top: "test_loss" '
    "include { phase: TEST } }"
)

IMAGE_DATA = """
layer {
  name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  transform_param { scale: 0.00390625 crop_size: 6 mirror: true }
  data_param { source: "train_lmdb" batch_size: 6 backend: LMDB }
}
layer {
  name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
  transform_param { scale: 0.00390625 crop_size: 6 }
  data_param { source: "test_lmdb" batch_size: 5 backend: LMDB }
}
"""
"""Random crops for training, the middle for tests, of the LMDBs of `write_images`."""

IMAGES = (
    '\nname: "images"'
    + IMAGE_DATA
    + """layer {
  name: "conv" type: "Convolution" bottom: "data" top: "conv"
  param { lr_mult: 1 force_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } }
}
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" dropout_param { dropout_ratio: 0.3 } }
layer {
  name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } }
}
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
"""
)

CLASSES = 3


def image_records(count: int, labels: list[int] | None = None) -> list[tuple[bytes, bytes]]:
    """`count` noisy 1x8x8 images in which a bright band tells the class."""
    random = np.random.default_rng(count)
    records = []
    for index in range(count):
        label = index % CLASSES if labels is None else labels[index]
        image = random.integers(0, 80, (1, 8, 8))
        image[:, 2 * (label % CLASSES) : 2 * (label % CLASSES) + 3] += 150
        records.append((b"%08d" % index, raw(image.astype(np.uint8), label)))
    return records


def write_images(root: Path, net: str = IMAGES) -> Path:
    """`root`/net.prototxt with its two LMDBs beside it; 20 images to train on, 10 to test; `root`."""
    put_lmdb(root / "train_lmdb", image_records(20))
    put_lmdb(root / "test_lmdb", image_records(10))
    (root / "net.prototxt").write_text(net)
    return root


def write_solver(root: Path, extra: str = "", name: str = "solver.prototxt", net: str = 'net: "net.prototxt"') -> Path:
    """A solver file over `root`/net.prototxt: `extra` fields, and what they don't set of the usual ones."""
    usual = ("base_lr: 0.1", 'lr_policy: "fixed"', "random_seed: 7", "solver_mode: CPU", "snapshot_format: HDF5")
    unset = [line for line in usual if line.split()[0] not in extra]
    path = root / name
    path.write_text("\n".join([net, *unset, extra, ""]))
    return path


class Recorder:
    """An observer that keeps every event but those that go with others: `progress`, `saved`, `left`."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        if event.kind not in ("progress", "saved", "left"):
            self.events.append(event)

    def of(self, kind: str) -> list[Event]:
        """The events of one kind."""
        return [event for event in self.events if event.kind == kind]

    def texts(self) -> list[str]:
        """The texts of all warnings."""
        return [event.text for event in self.of("warning")]

    def story(self) -> list[str]:
        """'kind iteration' of each event that has an iteration, else its kind."""
        return [f"{e.kind} {e.fields['iteration']}" if "iteration" in e.fields else e.kind for e in self.events]


def regression(
    root: Path, extra: str = "", params: str = "", net: str = REGRESSION, **options: Any
) -> tuple[Solver, Recorder]:
    """A solver over the net of one InnerProduct layer (or `net`), and the recorder of its events."""
    (root / "net.prototxt").write_text(net.replace("PARAMS", params))
    recorder = Recorder()
    return Solver(write_solver(root, extra), observers=[recorder], **options), recorder


def batch(seed: int = 0) -> dict[str, Tensor]:
    """Inputs of the regression net."""
    random = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(4, 3, generator=random), "y": torch.randn(4, 2, generator=random)}


def batches(iteration: int, sub: int) -> dict[str, Tensor]:
    """Inputs that differ in every iteration and sub-iteration."""
    return batch(10 * iteration + sub)


def blobs_of(solver: Solver) -> dict[str, Tensor]:
    """Copies of all blobs of the train net by "layer/index"."""
    return {
        f"{name}/{index}": blob.detach().clone()
        for name, blobs in solver.net.params.items()
        for index, blob in enumerate(blobs)
    }
