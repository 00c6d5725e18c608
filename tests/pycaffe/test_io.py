"""caffe.io against scikit-image and SciPy, whose numbers pycaffe's users have had."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from forcereg.pycaffe import io
from forcereg.pycaffe.proto import caffe_pb2

SIZES = [(5, 7), (20, 30), (12, 9), (12, 17), (1, 1), (24, 18)]
IMAGE = np.random.default_rng(0).normal(size=(12, 9, 4)).astype(np.float32) * 3 - 1
PIXELS = np.random.default_rng(1).integers(0, 256, (6, 5, 3), np.uint8)


# -- sizes


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_and_three_channels_as_scikit_image(channels: int, order: int) -> None:
    transform = pytest.importorskip("skimage.transform", reason="scikit-image is the oracle: pip install scikit-image")
    image = IMAGE[:, :, :channels]
    least, most = image.min(), image.max()
    for size in SIZES:
        found = io.resize_image(image, size, interp_order=order)
        share = (image - least) / (most - least)
        expected = transform.resize(share, size, order=order, mode="constant", anti_aliasing=False)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected * (most - least) + least, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_as_scipy(channels: int, order: int) -> None:
    ndimage = pytest.importorskip("scipy.ndimage", reason="SciPy is the oracle: pip install scipy")
    image = IMAGE[:, :, :channels]
    for size in SIZES:
        factors = (size[0] / 12, size[1] / 9, 1)
        for one in (image, (image * 20 + 60).clip(0, 255).astype(np.uint8)):
            found = io.resize_image(one, size, order)
            # an integer is a rounded number: one half may be either
            near = 1 if one.dtype == np.uint8 and order == 1 else 1e-4
            np.testing.assert_allclose(found, ndimage.zoom(one, factors, order=order).astype(np.float32), atol=near)


def test_borders_lean_to_the_least_value() -> None:
    found = io.resize_image(np.array([[[1.0], [3.0]], [[3.0], [3.0]]]), (4, 4))
    # half a pixel outside, and the rest: what is out there is 1
    assert found[0, 3, 0] == pytest.approx(1 + 2 * 0.75 * 0.75) and found[1, 2, 0] < 3


def test_a_constant_image_stays() -> None:
    found = io.resize_image(np.full((3, 4, 3), 7, np.uint8), (5, 6))
    assert found.shape == (5, 6, 3) and found.dtype == np.float32 and np.all(found == 7)


def test_an_image_has_three_axes() -> None:
    with pytest.raises(RuntimeError, match="2 axes"):
        io.resize_image(np.zeros((4, 5)), (2, 2))


# -- files


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    Image.fromarray(PIXELS).save(folder / "color.png")
    Image.fromarray(PIXELS).save(folder / "color.jpg")
    Image.fromarray(PIXELS[:, :, 0]).save(folder / "grey.png")
    Image.fromarray(PIXELS).convert("P").save(folder / "palette.png")
    Image.fromarray(np.dstack([PIXELS, PIXELS[:, :, 0]])).save(folder / "alpha.png")
    Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 256 + 99).save(folder / "deep.png")
    return folder


@pytest.mark.parametrize("name", ["color.png", "color.jpg", "grey.png", "palette.png", "alpha.png", "deep.png"])
@pytest.mark.parametrize("color", [True, False])
def test_images_as_scikit_image_reads_them(name: str, color: bool, pictures: Path) -> None:
    skimage = pytest.importorskip("skimage", reason="scikit-image is the oracle: pip install scikit-image")
    from skimage import color as colors
    from skimage import io as reader

    expected = skimage.img_as_float(reader.imread(pictures / name))
    if expected.ndim == 2:
        expected = np.stack([expected] * 3, 2)
    expected = expected[:, :, :3] if color else colors.rgb2gray(expected[:, :, :3])[:, :, None]
    found = io.load_image(str(pictures / name), color)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_an_open_file_is_an_image_too(pictures: Path) -> None:
    data = (pictures / "color.png").read_bytes()
    assert (io.load_image(BytesIO(data)) == io.load_image(pictures / "color.png")).all()
    with pytest.raises(OSError, match="the open file: the image inside cannot be decoded"):
        io.load_image(BytesIO(b"no picture"))


def test_no_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        io.load_image(str(tmp_path / "none.jpg"))
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(OSError, match=r"text\.jpg: the image inside cannot be decoded"):
        io.load_image(tmp_path / "text.jpg")


# -- crops


@given(st.integers(4, 9), st.integers(4, 9), st.integers(1, 4), st.integers(1, 4))
def test_ten_crops(high: int, wide: int, h: int, w: int) -> None:
    image = np.arange(high * wide * 2).reshape(high, wide, 2)
    crops = io.oversample([image, image + 1], (h, w))
    assert crops.shape == (20, h, w, 2) and crops.dtype == np.float32
    top, left = (high - h) // 2, (wide - w) // 2
    places = [(0, 0), (0, wide - w), (high - h, 0), (high - h, wide - w), (top, left)]
    for crop, mirrored, (y, x) in zip(crops[:5], crops[5:10], places, strict=True):
        assert np.array_equal(crop, image[y : y + h, x : x + w]) and np.array_equal(mirrored, crop[:, ::-1])
    assert np.array_equal(crops[10:], crops[:10] + 1)


# -- messages

ARRAYS = hnp.arrays(np.float32, hnp.array_shapes(max_dims=5, max_side=4), elements=st.floats(-1e6, 1e6, width=32))


@given(ARRAYS)
def test_blobs_there_and_back(array: np.ndarray) -> None:
    found = io.blobproto_to_array(io.array_to_blobproto(array, -array))
    assert found.dtype == np.float64 and np.array_equal(found, array)
    assert np.array_equal(io.blobproto_to_array(io.array_to_blobproto(array, -array), return_diff=True), -array)


def test_old_blobs_have_four_axes() -> None:
    blob = caffe_pb2.BlobProto(channels=2, num=1, height=1, width=3, data=range(6))
    assert io.blobproto_to_array(blob).shape == (1, 2, 1, 3)
    with pytest.raises(ValueError):
        io.blobproto_to_array(blob, return_diff=True)


@given(st.lists(ARRAYS, max_size=3))
def test_vectors_there_and_back(arrays: list[np.ndarray]) -> None:
    data = io.arraylist_to_blobprotovector_str(arrays)
    found = io.blobprotovector_str_to_arraylist(data)
    assert isinstance(data, bytes) and len(found) == len(arrays)
    assert all(np.array_equal(one, other) for one, other in zip(found, arrays, strict=True))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
@pytest.mark.parametrize("label", [None, 0, 7])
def test_datums_there_and_back(dtype: Any, label: int | None) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    datum = io.array_to_datum(array, label)
    found = io.datum_to_array(caffe_pb2.Datum.FromString(datum.SerializeToString()))
    assert found.dtype == (np.uint8 if dtype is np.uint8 else np.float64) and np.array_equal(found, array)
    assert datum.HasField("label") is (label is not None) and datum.label == (label or 0)
    assert not datum.HasField("encoded")
    found[...] = 0  # not what the message owns


def test_datums_have_three_axes() -> None:
    with pytest.raises(ValueError, match=r"Incorrect array shape\."):
        io.array_to_datum(np.zeros((2, 2)))
    with pytest.raises(ValueError):
        io.datum_to_array(caffe_pb2.Datum(channels=3, height=2, width=2, data=b"\xff\xd8", encoded=True))
