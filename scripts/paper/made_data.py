"""Tiny data that nets can be trained on, as Caffe's converters make them of the real ones: for SMOKE=1.

    python scripts/paper/made_data.py cifar10|imagenet OUT_DIR

Images of chance, of which those of one class have one mean colour.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

import forcereg

CHANCE = np.random.RandomState(1)


def images(labels: np.ndarray, size: int) -> np.ndarray:
    """(N, 3, size, size) bytes."""
    colours = np.random.RandomState(0).randint(40, 216, (10, 3))[labels % 10]
    return (colours[:, :, None, None] + CHANCE.randint(-40, 40, (len(labels), 3, size, size))).astype(np.uint8)


def cifar10(out: Path) -> None:
    """As `forcereg data cifar10`: of the binary files, 10 images each."""
    labels = np.arange(10)
    with TemporaryDirectory() as folder:
        for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
            records = np.c_[labels.astype(np.uint8), images(labels, 32).reshape(10, -1)]
            Path(folder, f"{name}.bin").write_bytes(records.tobytes())
        forcereg.convert_cifar10(folder, out, force=True)


def imagenet(out: Path) -> None:
    """ilsvrc12_train_lmdb and _val_lmdb, 8 images of 256 x 256 each, and the first one's mean."""
    with TemporaryDirectory() as folder:
        for part in ("train", "val"):
            labels = CHANCE.randint(0, 1000, 8)
            for number, image in enumerate(images(labels, 256)):
                Image.fromarray(image.transpose(1, 2, 0)).save(Path(folder, f"{part}{number}.png"))
            lines = (f"{part}{number}.png {label}\n" for number, label in enumerate(labels))
            Path(folder, f"{part}.txt").write_text("".join(lines))
            forcereg.convert_imageset(f"{folder}/{part}.txt", out / f"ilsvrc12_{part}_lmdb", root=folder, force=True)
    forcereg.convert_mean(out / "ilsvrc12_train_lmdb", out / "imagenet_mean.binaryproto", force=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["cifar10", "imagenet"])
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    {"cifar10": cifar10, "imagenet": imagenet}[asked.kind](asked.out)
