"""Small image files, lists of them, and the feeds over both."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from forcereg.data.feed import DEFAULT_BUDGET, FeedContext
from forcereg.data.image_data import ImageFeed, image_feed
from tests.data.lmdbs import data_spec

STREAM = 0  # a budget that nothing fits


def noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Seeded uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def png(bgr: np.ndarray) -> bytes:
    """The PNG file of an image (C, H, W): B, G, R or grey."""
    pixels = bgr[0] if len(bgr) == 1 else bgr[::-1].transpose(1, 2, 0)
    file = io.BytesIO()
    pytest.importorskip("PIL.Image").fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return file.getvalue()


def put_images(root: Path, count: int, shape: tuple[int, int, int] = (3, 4, 5)) -> np.ndarray:
    """Noise images 0.png, 1.png, ... and list.txt, in which the label is the number; (N, C, H, W)."""
    images = noise(count, (count, *shape))
    for number, image in enumerate(images):
        (root / f"{number}.png").write_bytes(png(image))
    (root / "list.txt").write_text("".join(f"{number}.png {number}\n" for number in range(count)))
    return images


def make_images(
    root: Path,
    options: str = "",
    transform: str = "",
    batch: int = 3,
    phase: str = "TEST",
    budget: int = DEFAULT_BUDGET,
    seed: int | None = 1,
    tops: str = 'top: "data" top: "label"',
    source: str = "list.txt",
    workers: int = 0,
    device: str = "cpu",
) -> ImageFeed:
    """The feed over root/list.txt with the text `options` inside image_data_param."""
    text = (
        f'layer {{ name: "d" type: "ImageData" {tops} transform_param {{ {transform} }} '
        f'image_data_param {{ source: "{source}" batch_size: {batch} {options} }} }}'
    )
    return image_feed(data_spec(text, phase), FeedContext(root, torch.device(device), seed, budget, workers))
