"""The batched transform against Caffe's rule applied pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from forcereg.data.mean import read_mean, write_mean
from forcereg.data.transform import Transform, crop_and_mirror, crop_view, gather_crops, read_transform
from forcereg.errors import ForceregError
from forcereg.schema import TEST, TRAIN, BlobProto, TransformationParameter

CPU = torch.device("cpu")


def pixels(count: int, channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(count * height + width)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def by_pixel(
    image: Tensor, mean: Tensor, scale: float, top: int, left: int, size: tuple[int, int], mirror: bool
) -> Tensor:
    """Caffe's rule for one image, spelt out; mean is (C, H, W)."""
    out = torch.empty(image.shape[0], *size)
    for row in range(size[0]):
        for column in range(size[1]):
            to = size[1] - 1 - column if mirror else column
            value = image[:, top + row, left + column].float() - mean[:, top + row, left + column]
            out[:, row, to] = value * scale
    return out


@given(
    channels=st.sampled_from([1, 3]),
    height=st.integers(3, 6),
    width=st.integers(3, 6),
    crop=st.integers(0, 3),
    mirror=st.booleans(),
    train=st.booleans(),
    mean_kind=st.sampled_from(["none", "channels", "image"]),
    seed=st.integers(0, 1000),
)
def test_batches_follow_the_rule_pixel_by_pixel(
    channels: int, height: int, width: int, crop: int, mirror: bool, train: bool, mean_kind: str, seed: int
) -> None:
    images = pixels(4, channels, height, width)
    mean = {
        "none": None,
        "channels": torch.arange(1.0, channels + 1).reshape(-1, 1, 1),
        "image": torch.arange(float(channels * height * width)).reshape(channels, height, width),
    }[mean_kind]
    transform = Transform(0.25, mean, crop, train and crop > 0, mirror)
    found = transform(images, torch.Generator().manual_seed(seed))
    assert found.shape == (4, *transform.shape((channels, height, width)))
    full = (torch.zeros(1) if mean is None else mean).expand(channels, height, width)
    size = (crop or height, crop or width)
    if transform.random_crop:
        places = [(t, x) for t in range(height - size[0] + 1) for x in range(width - size[1] + 1)]
    else:
        places = [((height - size[0]) // 2, (width - size[1]) // 2)]
    for image, result in zip(images, found, strict=True):
        options = [
            by_pixel(image, full, 0.25, top, left, size, flip)
            for top, left in places
            for flip in ([False, True] if mirror else [False])
        ]
        assert any(torch.equal(result, option) for option in options)


def test_crops_and_mirrors_are_uniform() -> None:
    """Each of the 3 x 4 positions and both directions come up within 5 sigma of their share."""
    count, positions = 24_000, 3 * 4 * 2
    images = torch.arange(2 * 4 * 5).reshape(1, 2, 4, 5).to(torch.uint8).expand(count, -1, -1, -1)
    found = Transform(1.0, None, 2, True, True)(images, torch.Generator().manual_seed(0))[:, 0]
    values, hits = found.reshape(count, 4).unique(dim=0, return_counts=True)
    assert len(values) == positions
    share = count / positions
    assert (hits - share).abs().max() < 5 * share**0.5


def test_random_sequence_does_not_depend_on_the_batch_size() -> None:
    images, transform = pixels(12, 3, 6, 7), Transform(1.0, None, 4, True, True)
    whole = transform(images, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    parts = [transform(part, generator) for part in images.split([5, 1, 6])]
    assert torch.equal(whole, torch.cat(parts))


def test_mirror_also_applies_in_test_phase() -> None:
    param = TransformationParameter(mirror=True, crop_size=2)
    transform = read_transform(param, TEST, (1, 4, 4), Path(), CPU)
    assert transform.mirror and not transform.random_crop
    assert read_transform(param, TRAIN, (1, 4, 4), Path(), CPU).random_crop


def test_float_images_are_copied() -> None:
    images = torch.ones(2, 1, 2, 2)
    Transform()(images).zero_()
    assert images.min() == 1


def test_draws_say_where_and_which_way() -> None:
    images = torch.arange(24).reshape(2, 1, 3, 4)
    found = crop_and_mirror(images, torch.tensor([[0, 1], [0, 2], [1, 0]]), 2, 2)
    assert found.tolist() == [[[[1, 0], [5, 4]]], [[[18, 19], [22, 23]]]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_gather_of_the_gpu_crops_alike(dtype: torch.dtype) -> None:
    images, generator = pixels(20, 3, 7, 9).to(dtype), torch.Generator().manual_seed(4)
    transform = Transform(1.0, None, 5, True, True)
    places = torch.stack(transform.place(transform.draw(20, generator).unbind(1), 7, 9))
    assert places[2].unique().tolist() == [0, 1] and len(places[:2].unique(dim=1)[0]) > 8
    assert torch.equal(crop_and_mirror(images, places, 5, 5), gather_crops(images, places, 5, 5))


@pytest.mark.parametrize("mean", [None, torch.full((3, 1, 1), 7.5), torch.rand(3, 7, 9)], ids=["no", "value", "image"])
@pytest.mark.parametrize("crop", [0, 5])
@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_memory_that_is_given_is_used(mean: Tensor | None, crop: int, random: bool, scale: float) -> None:
    images = pixels(4, 3, 7, 9)
    transform = Transform(scale, mean, crop, random and crop > 0, random)
    one, other = (torch.Generator().manual_seed(5) for _ in range(2))
    expected = transform(images, one)
    out = torch.full_like(expected, float("nan"))
    assert transform(images, other, out) is out
    assert torch.equal(out, expected)


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("crop", [0, 4])
@pytest.mark.parametrize("image_mean", [False, True])
def test_cropping_elsewhere_is_the_same(random: bool, crop: int, image_mean: bool) -> None:
    """As a stream does it: draws as numbers, crops of single images, the rest for the batch."""
    images = pixels(6, 3, 7, 9)
    mean = torch.rand(3, 7, 9) if image_mean else torch.rand(3, 1, 1)
    transform = Transform(0.5, mean, crop, random and crop > 0, random)
    one, other = (torch.Generator().manual_seed(6) for _ in range(2))
    draws = transform.draw(6, other)
    _, rows, columns = transform.shape((3, 7, 9))
    crops = [
        crop_view(image.numpy(), *transform.place(draw, 7, 9), rows, columns)
        for image, draw in zip(images, draws.tolist(), strict=True)
    ]
    places = torch.stack(transform.place(draws.unbind(1), 7, 9)) if random else None
    found = transform.finish(torch.from_numpy(np.stack(crops)), places)
    assert torch.equal(found, transform(images, one))


def test_mean_survives_the_file(tmp_path: Path) -> None:
    mean = np.random.default_rng(0).random((3, 4, 5), np.float32)
    write_mean(tmp_path / "m.binaryproto", mean)
    np.testing.assert_array_equal(read_mean(tmp_path / "m.binaryproto"), mean)
    blob = BlobProto.FromString((tmp_path / "m.binaryproto").read_bytes())
    assert (blob.num, blob.channels, blob.height, blob.width) == (1, 3, 4, 5)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xff\xff", "not a BlobProto"),
        (b"", "0 values"),
        (BlobProto(num=1, channels=1, height=2, width=2, data=[1, 2, 3]).SerializeToString(), "3 values"),
        (
            BlobProto(num=2, channels=1, height=1, width=2, data=[1] * 4).SerializeToString(),
            "one C,H,W image",
        ),
        (BlobProto(num=1, channels=1, height=2, width=2, data=[1] * 4).SerializeToString(), "1x2x2.*1x3x3"),
    ],
    ids=["garbage", "empty", "short", "two images", "other size"],
)
def test_a_wrong_mean_file_is_refused(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "m.binaryproto").write_bytes(content)
    param = TransformationParameter(mean_file="m.binaryproto")
    with pytest.raises(ForceregError, match=rf"mean_file .*m\.binaryproto.*{expected}"):
        read_transform(param, TEST, (1, 3, 3), tmp_path, CPU)


def test_a_mean_with_a_modern_shape_is_read(tmp_path: Path) -> None:
    blob = BlobProto(double_data=[1, 2, 3, 4])
    blob.shape.dim.extend([1, 2, 2])
    (tmp_path / "m").write_bytes(blob.SerializeToString())
    assert read_mean(tmp_path / "m").tolist() == [[[1, 2], [3, 4]]]
