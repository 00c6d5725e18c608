"""caffe.io.Transformer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from forcereg.pycaffe.io import Transformer, resize_image

IMAGE = np.random.default_rng(0).random((6, 5, 3)).astype(np.float32)
MEAN = np.array([104, 117, 123])


def transformer(size: tuple[int, int] = (6, 5), **settings: Any) -> Transformer:
    made = Transformer({"data": (10, 3, *size)})
    for name, value in settings.items():
        getattr(made, f"set_{name}")("data", value)
    return made


def imagenet(size: tuple[int, int] = (6, 5)) -> Transformer:
    return transformer(size, transpose=(2, 0, 1), mean=MEAN, raw_scale=255, channel_swap=(2, 1, 0), input_scale=0.017)


def test_the_order_of_steps() -> None:
    found = imagenet().preprocess("data", IMAGE)
    expected = (IMAGE.transpose(2, 0, 1)[::-1] * 255 - MEAN[:, None, None]) * 0.017
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_images_of_another_size_are_resized_first() -> None:
    found = imagenet((3, 4)).preprocess("data", IMAGE)
    assert np.array_equal(found, imagenet((3, 4)).preprocess("data", resize_image(IMAGE, (3, 4))))


def test_back_again() -> None:
    found = imagenet().deprocess("data", imagenet().preprocess("data", IMAGE)[None])
    np.testing.assert_allclose(found, IMAGE, atol=1e-5)


def test_nothing_set_changes_nothing() -> None:
    image = IMAGE.copy()
    assert Transformer({"data": (1, 6, 6, 5)}).preprocess("data", image) is image


def test_an_image_of_the_right_size_is_scaled_itself() -> None:
    image = IMAGE.copy()
    transformer(transpose=(2, 0, 1), raw_scale=255).preprocess("data", image)
    np.testing.assert_allclose(image, IMAGE * 255)


def test_a_shape_that_is_a_list_never_fits() -> None:
    image = IMAGE.copy()
    made = Transformer({"data": [1, 3, 6, 5]})  # type: ignore[dict-item]
    made.set_transpose("data", (2, 0, 1))
    np.testing.assert_allclose(made.preprocess("data", image), IMAGE.transpose(2, 0, 1), atol=1e-6)
    assert made.preprocess("data", image).base is not image


def test_mean_images_of_another_size_are_resized() -> None:
    mean = np.random.default_rng(1).random((3, 8, 8)) * 255
    found = transformer(mean=mean).mean["data"]
    np.testing.assert_allclose(found, resize_image(mean.transpose(1, 2, 0), (6, 5)).transpose(2, 0, 1), atol=1e-4)
    constant = transformer(mean=np.full((3, 8, 8), 9.0)).mean["data"]
    assert constant.shape == (3, 6, 5) and np.all(constant == 9)


def test_means() -> None:
    assert transformer(mean=MEAN).mean["data"].shape == (3, 1, 1)
    assert transformer(mean=np.ones((3, 6, 5))).mean["data"].shape == (3, 6, 5)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        pytest.param("transpose", (1, 0), Exception, id="transpose"),
        pytest.param("channel_swap", (1, 0), Exception, id="channel-swap"),
        pytest.param("mean", np.zeros(4), ValueError, id="mean-channels"),
        pytest.param("mean", np.zeros((2, 2)), ValueError, id="mean-of-two-axes"),
        pytest.param("mean", np.zeros((1, 1, 2, 2)), ValueError, id="mean-of-four-axes"),
        pytest.param("mean", 3.0, AttributeError, id="mean-a-number"),
    ],
)
def test_wrong_settings(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        transformer(**{name: value})


METHODS = (
    "preprocess",
    "deprocess",
    "set_transpose",
    "set_channel_swap",
    "set_raw_scale",
    "set_mean",
    "set_input_scale",
)


@pytest.mark.parametrize("method", METHODS)
def test_unknown_inputs(method: str) -> None:
    with pytest.raises(Exception, match=r"x is not one of the net inputs: \{'data'"):
        getattr(transformer(), method)("x", MEAN)
