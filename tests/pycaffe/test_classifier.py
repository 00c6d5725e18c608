"""caffe.Classifier and caffe.Detector against the net that they are."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import forcereg.pycaffe as caffe

MEAN = np.array([30.0, 60.0, 90.0], np.float32)
SETTINGS: dict[str, Any] = dict(mean=MEAN, raw_scale=255, channel_swap=(2, 1, 0), input_scale=0.01)


def files(small: Path, kind: str = "color") -> tuple[str, str]:
    return str(small / f"{kind}.prototxt"), str(small / f"{kind}.caffemodel")


def direct(small: Path, crop: np.ndarray, kind: str = "color") -> np.ndarray:
    """The scores of one crop (9, 9, K), by the plain net."""
    net = caffe.Net(*files(small, kind), caffe.TEST)
    inputs = (crop[:, :, ::-1].transpose(2, 0, 1) * 255 - (MEAN[:, None, None] if kind == "color" else 0)) * 0.01
    net.blobs["data"].data[...] = inputs
    return net.forward()["prob"][0]


@pytest.fixture(scope="module")
def image(small: Path) -> np.ndarray:
    return caffe.io.load_image(str(small / "a.png"))


def test_the_middle_crop(small: Path, image: np.ndarray) -> None:
    classifier = caffe.Classifier(*files(small), image_dims=(11, 12), **SETTINGS)
    assert isinstance(classifier, caffe.Net) and tuple(classifier.crop_dims) == (9, 9)
    found = classifier.predict([image], oversample=False)
    crop = caffe.io.resize_image(image, (11, 12))[1:10, 1:10]
    assert found.shape == (1, 5)
    np.testing.assert_allclose(found[0], direct(small, crop), rtol=1e-5)


def test_ten_crops_of_more_images_than_the_batch(small: Path, image: np.ndarray) -> None:
    classifier = caffe.Classifier(*files(small), image_dims=[10, 13], **SETTINGS)
    found = classifier.predict(iter([image, image[::-1], image]))
    crops = caffe.io.oversample([caffe.io.resize_image(image, (10, 13))], (9, 9))
    expected = np.mean([direct(small, crop) for crop in crops], 0)
    assert found.shape == (3, 5) and np.array_equal(found[0], found[2]) and not np.allclose(found[0], found[1])
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


def test_without_settings_the_image_is_the_input(small: Path, image: np.ndarray) -> None:
    classifier = caffe.Classifier(*files(small))
    assert tuple(classifier.image_dims) == (9, 9) and classifier.transformer.transpose == {"data": (2, 0, 1)}
    net = caffe.Net(*files(small), caffe.TEST)
    net.blobs["data"].data[...] = caffe.io.resize_image(image, (9, 9)).transpose(2, 0, 1)
    np.testing.assert_allclose(classifier.predict([image], False)[0], net.forward()["prob"][0], rtol=1e-5)


# -- windows


def test_windows_are_warped(small: Path, image: np.ndarray) -> None:
    detector = caffe.Detector(*files(small), **SETTINGS)
    windows = np.array([[2, 3, 12, 20], [0, 0, 20, 30]])
    found = detector.detect_windows(iter([(str(small / "a.png"), windows), (str(small / "b.png"), windows[:1])]))
    assert [Path(one["filename"]).name for one in found] == ["a.png", "a.png", "b.png"]
    assert [one["window"].tolist() for one in found] == [*windows.tolist(), windows[0].tolist()]
    expected = direct(small, caffe.io.resize_image(image[2:12, 3:20], (9, 9)))
    np.testing.assert_allclose(found[0]["prediction"], expected, rtol=1e-5)
    assert detector.detect_windows([]) == []


def test_what_is_around_a_window(small: Path, image: np.ndarray) -> None:
    """9 pixels of which 2 on each side are around: of a window of 10 (both ends in it) the region is 18."""
    detector = caffe.Detector(*files(small), **SETTINGS, context_pad=2)
    inside = detector.crop(image, np.array([5, 6, 14, 15]))
    np.testing.assert_allclose(inside, caffe.io.resize_image(image[1:19, 2:20], (9, 9)), rtol=1e-5)


def test_what_lies_outside_of_the_image_is_the_mean(small: Path, image: np.ndarray) -> None:
    detector = caffe.Detector(*files(small), **SETTINGS, context_pad=2)
    corner = detector.crop(image, np.array([0, 0, 9, 9]))
    np.testing.assert_allclose(corner[:2], np.broadcast_to(MEAN[::-1] / 255, (2, 9, 3)), rtol=1e-6)
    np.testing.assert_allclose(corner[2:, 2:], caffe.io.resize_image(image[:14, :14], (7, 7)), rtol=1e-5)
    plain = caffe.Detector(*files(small), context_pad=2)
    assert not plain.crop(image, [0, 0, 9, 9])[:2].any()


@pytest.mark.parametrize("pad", [0, 2])
def test_windows_outside(pad: int, small: Path, image: np.ndarray) -> None:
    detector = caffe.Detector(*files(small), context_pad=pad)
    with pytest.raises(AssertionError, match="window 50, 50, 60, 60 has no pixel of its image, 20x30"):
        detector.crop(image, np.array([50, 50, 60, 60]))


def test_selective_search_is_other_people_s(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = caffe.Detector(*files(small))
    name = str(small / "a.png")
    with pytest.raises(ImportError, match="selective_search_ijcv_with_python cannot be imported"):
        detector.detect_selective_search([name])
    module: Any = ModuleType("selective_search_ijcv_with_python")
    module.get_windows = lambda files, cmd: [[(0, 0, 9, 9), (1, 1, 10, 10)] for _ in files]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert [one["window"] for one in detector.detect_selective_search([name])] == [(0, 0, 9, 9), (1, 1, 10, 10)]


def test_nets_of_one_channel_see_grey(small: Path) -> None:
    found = caffe.Detector(*files(small, "grey")).detect_windows([(str(small / "a.png"), [(0, 0, 9, 9)])])
    crop = caffe.io.load_image(str(small / "a.png"), color=False)[:9, :9]
    net = caffe.Net(*files(small, "grey"), caffe.TEST)
    net.blobs["data"].data[...] = crop.transpose(2, 0, 1)
    np.testing.assert_allclose(found[0]["prediction"], net.forward()["prob"][0], rtol=1e-5)
