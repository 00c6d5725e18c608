"""What is said about images that differ from the first: a fix of what differs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from forcereg.data.cifar import read_cifar10
from forcereg.data.mean import write_mean
from forcereg.data.set_mean import convert_mean
from forcereg.errors import ForceregError
from tests.conftest import RunCli
from tests.data.lmdbs import encoded, make_feed, put_lmdb, raw
from tests.data.pictures import make_images, noise, put_images

RGB, GREY = Image.new("RGB", (8, 8), "teal"), Image.new("L", (8, 8), 9)
OTHER, ALPHA = Image.new("RGB", (9, 8)), Image.new("RGBA", (8, 8), "teal")
COLOR = r"set transform_param \{ force_color: true \} \(or force_gray: true\)"
SIZE = (
    r"write the set with one size \(`forcereg data images --resize-height --resize-width`\), or set crop_size, or "
    "batch_size: 1, with which each batch takes its image's size"
)


def png(image: Image.Image) -> bytes:
    return encoded(image, kind="PNG")


@pytest.mark.parametrize(
    ("first", "second", "fix"),
    [
        (png(RGB), png(GREY), COLOR),
        (png(GREY), png(RGB), COLOR),
        (png(RGB), png(ALPHA), COLOR),
        (png(RGB), png(OTHER), SIZE),
        (png(GREY), png(OTHER), COLOR),
        (raw(noise(1, (3, 4, 5))), raw(noise(1, (1, 4, 5))), "write the set with one number of channels .*"),
        (raw(noise(1, (3, 4, 5))), raw(noise(1, (3, 5, 5))), SIZE),
        (raw(noise(1, (3, 4, 5))), raw(np.ones((3, 4, 5), np.float32)), "write the set with bytes or with floats only"),
    ],
    ids=["colour-grey", "grey-colour", "alpha", "size", "both", "raw-channels", "raw-size", "floats"],
)
@pytest.mark.parametrize("budget", [0, 1 << 30], ids=["streamed", "in-memory"])
def test_records(first: bytes, second: bytes, fix: str, budget: int, tmp_path: Path) -> None:
    put_lmdb(tmp_path / "db", [(b"0", first), (b"1", second)])
    with pytest.raises(ForceregError, match=rf"db: record '1': is .*, expected .* as in the first record; {fix}$"):
        make_feed(tmp_path, batch=2, budget=budget).next()


@pytest.mark.parametrize("transform", ["force_color: true", "force_gray: true"])
def test_the_fix_mends_it(transform: str, tmp_path: Path, run_cli: RunCli) -> None:
    put_lmdb(tmp_path / "db", [(b"0", png(RGB)), (b"1", png(GREY)), (b"2", png(ALPHA))])
    net = 'layer {{ name: "d" type: "Data" top: "a" top: "b" data_param {{ source: "db" batch_size: 3 }} {} }}'
    (tmp_path / "net.prototxt").write_text(net.format(""))
    done = run_cli("check", "net.prototxt", cwd=tmp_path)
    assert done.returncode == 1 and "set transform_param { force_color: true } (or force_gray: true)" in done.stdout
    (tmp_path / "net.prototxt").write_text(net.format(f"transform_param {{ {transform} }}"))
    assert run_cli("check", "net.prototxt", cwd=tmp_path).returncode == 0


def test_too_small_for_the_crop(tmp_path: Path) -> None:
    put_lmdb(tmp_path / "db", [(b"0", png(RGB)), (b"1", png(RGB.resize((5, 8))))])
    with pytest.raises(ForceregError, match=r"3x8x5, smaller than crop_size 6; lower crop_size, or write"):
        make_feed(tmp_path, "crop_size: 6", batch=2).next()


@pytest.mark.parametrize(
    ("second", "fix"), [(png(GREY), r"channels \(--gray or not\)"), (png(OTHER), r"size \(--resize-height, ")]
)
def test_the_mean_of_a_set(second: bytes, fix: str, tmp_path: Path) -> None:
    put_lmdb(tmp_path / "db", [(b"0", png(RGB)), (b"1", second)])
    with pytest.raises(ForceregError, match=rf"record '1': is .* as the first; write the set with one .*{fix}"):
        convert_mean(tmp_path / "db", tmp_path / "mean")


@pytest.mark.parametrize(
    ("shape", "fix"),
    [
        ((1, 4, 5), r"read them in its colours \(force_color, force_gray, is_color\)"),
        ((3, 5, 5), "resize the images to it, as by new_height and new_width"),
    ],
)
def test_a_mean_file_of_another_shape(shape: tuple[int, ...], fix: str, tmp_path: Path) -> None:
    write_mean(tmp_path / "mean", np.ones(shape, np.float32))
    put_lmdb(tmp_path / "db", [(b"0", raw(noise(1, (3, 4, 5))))])
    put_images(tmp_path, 2)
    for make in (make_feed, make_images):
        with pytest.raises(
            ForceregError, match=rf"the uncropped images are 3x4x5; {fix}, or make it anew with `forcereg data mean`"
        ):
            make(tmp_path, transform='mean_file: "mean"')


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_transform_that_is_not_finite(value: float, tmp_path: Path) -> None:
    write_mean(tmp_path / "mean", np.full((3, 4, 5), value, np.float32))
    put_images(tmp_path, 2)
    for transform, said in (
        ('mean_file: "mean"', f"mean_file .*/mean: holds {value:g}; make it anew"),
        (f"mean_value: {value}", f"mean_value is {value:g}; expected a number"),
        (f"scale: {value}", f"scale is {value:g}; expected a number"),
    ):
        with pytest.raises(ForceregError, match=said):
            make_images(tmp_path, transform=transform)


def test_class_folders_of_several_sizes(tmp_path: Path) -> None:
    for number, image in enumerate((RGB, OTHER)):
        path = tmp_path / f"train/cat/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    with pytest.raises(ForceregError, match="is 3x8x9, expected 3x8x8 as the first image; resize all to one size"):
        read_cifar10(tmp_path)
