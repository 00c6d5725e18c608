"""A folder as scripts for Caffe find one: images in LMDB and HDF5, a net with its solver and its weights, a mean."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from PIL import Image

import forcereg.pycaffe as caffe
from forcereg.data.convert import write_set
from forcereg.pycaffe.proto import caffe_pb2

NET = """
name: "Bands"
layer { name: "data" type: "Data" top: "data" top: "label" transform_param { scale: 0.00390625 }
  data_param { source: "%(folder)s/train_lmdb" batch_size: 20 backend: LMDB } include { phase: TRAIN } }
layer { name: "data" type: "Data" top: "data" top: "label" transform_param { scale: 0.00390625 }
  data_param { source: "%(folder)s/test_lmdb" batch_size: 30 backend: LMDB } include { phase: TEST } }
%(body)s
layer { name: "accuracy" type: "Accuracy" bottom: "score" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" }
"""
DEPLOY = """
name: "Bands"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 10 dim: 1 dim: 12 dim: 12 } } }
%(body)s
layer { name: "prob" type: "Softmax" bottom: "score" top: "prob" }
"""
BODY = """
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 6 kernel_size: 5 weight_filler { type: "xavier" } } }
layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "bn1" }
layer { name: "scale1" type: "Scale" bottom: "bn1" top: "bn1" scale_param { bias_term: true } }
layer { name: "relu1" type: "ReLU" bottom: "bn1" top: "bn1" }
layer { name: "pool1" type: "Pooling" bottom: "bn1" top: "pool1" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "ip1" type: "InnerProduct" bottom: "pool1" top: "ip1" param { lr_mult: 1 } param { lr_mult: 2 }
  inner_product_param { num_output: 12 weight_filler { type: "xavier" } } }
layer { name: "relu2" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "score" type: "InnerProduct" bottom: "ip1" top: "score" param { lr_mult: 1 } param { lr_mult: 2 }
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
"""
SOLVER = """
net: "%(folder)s/train_val.prototxt"
test_iter: 2
test_interval: 1000
test_initialization: false
base_lr: 0.05
momentum: 0.9
lr_policy: "fixed"
display: 0
max_iter: 40
random_seed: 1
snapshot_prefix: "%(folder)s/bands"
solver_mode: CPU
"""
CLASSES = ("top", "middle", "bottom")


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, 1, 12, 12) uint8 of noise, a third of each bright, and (n,) which third that is."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = random.integers(0, 140, (count, 1, 12, 12))
    for image, label in zip(pixels, labels, strict=True):
        image[0, 4 * label : 4 * label + 4] += 60
    return pixels.astype(np.uint8), labels


def furnish(folder: Path) -> Path:
    """Fills the folder: train_lmdb, test_lmdb, test.h5, test.txt, band_0.png to band_2.png, mean.binaryproto,
    train_val.prototxt, deploy.prototxt, solver.prototxt, bands.caffemodel (trained)."""
    for name, count, seed in (("train", 120, 1), ("test", 60, 2)):
        pixels, labels = images(count, seed)
        write_set(folder / f"{name}_lmdb", pixels, labels, 8, force=False)
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["data"], file["label"] = pixels.astype(np.float32) / 256, labels.astype(np.float32)
        (folder / f"{name}.txt").write_text(f"{folder / name}.h5\n")
    for label in range(3):
        Image.fromarray(pixels[label, 0]).save(folder / f"band_{label}.png")
    mean = caffe_pb2.BlobProto(num=1, channels=1, height=12, width=12, data=pixels.mean(0).ravel())
    (folder / "mean.binaryproto").write_bytes(mean.SerializeToString())
    names = dict(folder=folder, body=BODY)
    for name, text in (("train_val", NET), ("deploy", DEPLOY), ("solver", SOLVER)):
        (folder / f"{name}.prototxt").write_text(text % names)
    solver = caffe.SGDSolver(str(folder / "solver.prototxt"))
    solver.step(20)
    solver.net.save(str(folder / "bands.caffemodel"))
    return folder
