"""Images of 16 bits a value: the high byte of each, as cv::imread gives it (OpenCV 4.6 and 5.0), wherever one is read.

That it is the high byte, neither rounded nor scaled by a PGM's largest value, was seen in OpenCV with every value.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import forcereg.data.decoding as decoding
from forcereg.data.datum import decode
from forcereg.data.decoding import Picture, decode_image
from forcereg.data.opening import open_records
from forcereg.errors import ForceregError
from forcereg.schema import Datum
from tests.conftest import RunCli
from tests.data.deep import deep_pgm, deep_png, deep_tiff
from tests.data.pictures import make_images

EVERY = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
GREY = {
    "png": deep_png(EVERY[:, :, None]),
    "pgm": deep_pgm(EVERY, 65535),
    "tiff": deep_tiff(EVERY, "<"),
    "tiff, big-endian": deep_tiff(EVERY, ">"),
}


@pytest.mark.parametrize("strip", [1 << 18, 256 * 7], ids=["at once", "by strips"])
@pytest.mark.parametrize("kind", GREY)
def test_the_high_byte_of_every_grey_value(kind: str, strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_STRIP", strip)
    expected = (EVERY >> 8)[None]
    for color, channels in (("native", 1), ("gray", 1), ("color", 3)):
        image = decode_image(GREY[kind], color)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, np.repeat(expected, channels, 0))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_the_high_byte_of_every_value_of_a_colour_png(channels: int) -> None:
    values = np.stack([np.roll(EVERY, 777 * number) for number in range(channels)], -1)
    high = (values >> 8).astype(np.uint8)
    bgr = high[..., [0, 0, 0] if channels == 2 else [2, 1, 0]].transpose(2, 0, 1)
    native = bgr if channels == 3 else np.concatenate([bgr, high[None, ..., -1]])
    np.testing.assert_array_equal(decode_image(deep_png(values), "color"), bgr)
    np.testing.assert_array_equal(decode_image(deep_png(values)), native)
    grey = decode_image(deep_png(values), "gray")
    np.testing.assert_allclose(grey[0], np.tensordot([0.114, 0.587, 0.299], bgr.astype(float), 1), atol=1)


@given(st.integers(256, 65535), st.booleans(), st.data())
def test_a_pgms_largest_value_changes_nothing(largest: int, plain: bool, data: st.DataObject) -> None:
    values = np.array(data.draw(st.lists(st.integers(0, largest), min_size=6, max_size=6))).reshape(2, 3)
    np.testing.assert_array_equal(decode_image(deep_pgm(values, largest, plain))[0], values >> 8)


def test_other_kinds_of_deep_images_are_refused_by_name() -> None:
    file = io.BytesIO()
    Image.fromarray(np.ones((2, 3), np.float32)).save(file, "TIFF")
    with pytest.raises(ForceregError, match=r"is a TIFF of mode F; expected 8 bits per channel, or a grey PNG, PGM or"):
        Picture(file.getvalue(), "color")


@pytest.mark.parametrize("color", [True, False])
def test_they_train_and_become_records(color: bool, tmp_path: Path, run_cli: RunCli) -> None:
    """The folder shared/faults/png16, also for images with colours."""
    values: Any = np.random.default_rng(1).integers(0, 1 << 16, (5, 4, 3), dtype=np.uint16)
    images = {"g16.png": values[:, :, :1], "c16.png": values}
    for name, one in images.items():
        (tmp_path / name).write_bytes(deep_png(one))
    (tmp_path / "list.txt").write_text("g16.png 0\nc16.png 1\n")
    expected = [decode_image(deep_png(one), "color" if color else "gray") for one in images.values()]
    data, _ = make_images(tmp_path, batch=2, options=f"is_color: {str(color).lower()}").next()
    np.testing.assert_array_equal(data.numpy(), expected)
    more = [] if color else ["--gray"]
    for name, option in (("raw", []), ("files", ["--encoded"])):
        done = run_cli("data", "images", "list.txt", name, *more, *option, cwd=tmp_path)
        assert done.returncode == 0 and not done.stderr, done.stderr
        records = [decode(value, "color" if color else "gray")[0] for _, value in open_records(tmp_path / name).read()]
        np.testing.assert_array_equal(records, expected)
    for _, value in open_records(tmp_path / "files").read():
        assert not Picture(Datum.FromString(value).data, "color").deep  # Caffe stops at records of 16 bits
