"""Opening image files: which formats, what happens to all others, in what memory; real command lines for bombs."""

from __future__ import annotations

import io
import re
import stat
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import forcereg.data.decoding as decoding
from forcereg.data.budget import DECODING, Budget
from forcereg.data.convert import in_order
from forcereg.data.decoding import Picture, decode_image
from forcereg.data.images import load_image
from forcereg.errors import ForceregError
from forcereg.schema import Datum
from tests.conftest import RunCli
from tests.data.bombs import HUGE, png, png_text
from tests.data.deep import deep_pgm, deep_png
from tests.data.lmdbs import put_lmdb
from tests.data.pictures import noise
from tests.nursery import Nursery

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n%%EndComments\nshowpage\n%%EOF\n"


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rgb(seed: int = 1, height: int = 9, width: int = 7) -> np.ndarray:
    return noise(seed, (height, width, 3))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_what_caffes_opencv_reads_is_read(kind: str) -> None:
    pixels = rgb()
    data = saved(Image.fromarray(pixels), kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(decode_image(data, "color"), pixels[:, :, ::-1].transpose(2, 0, 1))


def test_jpeg_and_the_first_frame_of_a_gif_are_read() -> None:
    first, second = (Image.new("RGB", (7, 9), colour) for colour in ("red", "lime"))
    for data in (
        saved(first, "JPEG"),
        saved(first, "JPEG", progressive=True),
        saved(first, "GIF", save_all=True, append_images=[second]),
    ):
        assert decode_image(data, "color")[:, 4, 4] == pytest.approx([0, 0, 255], abs=3)


@pytest.mark.parametrize("head", [b"P1 2 1\n1 0", b"P2 2 1 255\n0 255", b"P4 2 1\n\x80", b"P5 2 1 255\n\x00\xff"])
def test_grey_pnm_is_read(head: bytes) -> None:
    assert decode_image(head).tolist() == [[[0, 255]]]


CODE = """
import sys
from forcereg.data.decoding import FORMATS, decode_image
for path in sys.argv[1:]:
    try:
        decode_image(open(path, "rb").read())
    except Exception as error:
        print(type(error).__name__)
print(sorted(name for name in sys.modules if name.startswith("PIL.") and name.endswith("Plugin")))
"""


def test_no_other_format_is_loaded_or_tried(tmp_path: Path, nursery: Nursery) -> None:
    contents = {kind: saved(Image.fromarray(rgb()), kind) for kind in decoding.FORMATS}
    contents |= {"ICO": saved(Image.new("RGB", (16, 16)), "ICO"), "EPS": EPS, "nothing": b"", "text": b"hello"}
    contents |= {"MPO": saved(Image.fromarray(rgb()), "MPO", save_all=True, append_images=[Image.fromarray(rgb())])}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    done = nursery.run("-c", CODE, *contents, cwd=tmp_path)
    *errors, plugins = done.stdout.splitlines()
    assert errors == ["ForceregError"] * 4, done.stderr
    known = {f"PIL.{name}ImagePlugin" for name in (*decoding.FORMATS.values(), "Mpo")}
    assert set(re.findall(r"'(.*?)'", plugins)) <= known


@pytest.mark.parametrize("name", ["pic.jpg", "pic.eps"])
def test_no_program_is_started(name: str, tmp_path: Path, run_cli: RunCli) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
    (programs / "gs").chmod(stat.S_IRWXU)
    (tmp_path / name).write_bytes(EPS)
    (tmp_path / "good.png").write_bytes(png(4, 5))
    (tmp_path / "list.txt").write_text(f"good.png 0\n{name} 1\n")
    done = run_cli("data", "images", "list.txt", "out", cwd=tmp_path, env={"PATH": f"{programs}:/usr/bin:/bin"})
    assert done.returncode == 0 and not (tmp_path / "ran").exists()
    assert done.stderr == (
        f"warning: {name}: the image inside cannot be decoded (none of JPEG, PNG, BMP, GIF, TIFF, WebP and PNM); "
        "skipped\n"
    )


RAISED = [
    SyntaxError, ValueError, TypeError, IndexError, KeyError, struct.error, zlib.error, OverflowError, RecursionError,
    MemoryError, EOFError, OSError, AttributeError, AssertionError, ZeroDivisionError, Image.DecompressionBombError,
    Image.DecompressionBombWarning, UserWarning,
]  # fmt: skip


@pytest.mark.parametrize("at", ["header", "pixels"])
@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
def test_whatever_a_decoder_raises_it_cannot_be_decoded(
    at: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise kind("oh\nno")

    monkeypatch.setattr(decoding, "_open" if at == "header" else "_pixels", fail)
    with pytest.raises(ForceregError, match=r"^the image inside cannot be decoded \(.*oh\\nno.*\)$"):
        decode_image(png(4, 5))
    assert DECODING.used == 0


def test_a_decoder_that_says_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoding, "_pixels", fail)
    with pytest.raises(ForceregError, match=r"cannot be decoded \(MemoryError\)"):
        decode_image(png(4, 5))


KINDS: dict[str, Callable[[Image.Image], bytes]] = {
    "RGB": lambda image: saved(image, "PNG"),
    "RGBA": lambda image: saved(Image.fromarray(noise(3, (50, 40, 4)), "RGBA"), "PNG"),
    "L": lambda image: saved(image.convert("L"), "PNG"),
    "LA": lambda image: saved(image.convert("LA"), "PNG"),
    "1": lambda image: saved(image.convert("1"), "PNG"),
    "P": lambda image: saved(image.convert("P"), "PNG"),
    "P with transparency": lambda image: saved(image.convert("P"), "PNG", transparency=3),
    "RGB with transparency": lambda image: saved(image, "PNG", transparency=(1, 2, 3)),
    "CMYK": lambda image: saved(image.convert("CMYK"), "JPEG"),
    "GIF": lambda image: saved(image, "GIF"),
    "WebP": lambda image: saved(image, "WEBP", lossless=True),
    "TIFF": lambda image: saved(image, "TIFF", compression="tiff_adobe_deflate"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("color", ["native", "color", "gray"])
@pytest.mark.parametrize("kind", KINDS)
def test_large_images_are_converted_by_strips_to_the_same(
    kind: str, color: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = KINDS[kind](Image.fromarray(rgb(2, 50, 40)))
    whole = decode_image(data, color)
    monkeypatch.setattr(decoding, "_STRIP", 40 * 7)
    np.testing.assert_array_equal(decode_image(data, color), whole)


@pytest.mark.parametrize("kind", HUGE)
def test_a_bomb_is_refused_by_its_header(kind: str) -> None:
    with pytest.raises(ForceregError, match=r"decoding the image inside, \d+x\d+, takes [0-9,]+ MiB.*--decode-budget"):
        Picture(HUGE[kind], "color")


def test_a_webp_counts_its_canvases(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(Image.new("RGB", (1000, 1000)), "WEBP")
    monkeypatch.setattr(DECODING, "limit", 20 << 20)
    with pytest.raises(ForceregError, match=r"decoding the image inside, 1000x1000, takes 23 MiB.*--decode-budget"):
        Picture(data, "color")


def test_what_is_written_beside_the_pixels_is_bounded() -> None:
    """400 MB of text in half a megabyte."""
    size = 1 << 26
    assert len(png_text(size)) < 1 << 19
    with pytest.raises(ForceregError, match="cannot be decoded"):
        decode_image(png_text(size))


MEASURED = """
import resource, sys
from pathlib import Path
from forcereg.data.decoding import Picture
def most():
    return 1024 * int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
Picture(Path(sys.argv[2]).read_bytes(), "color").decode()
for path in sys.argv[2:]:
    picture = Picture(Path(path).read_bytes(), sys.argv[1])
    Path("/proc/self/clear_refs").write_text("5")
    before = most()
    array = picture.decode()
    print(path, picture.memory, most() - before, array.nbytes)
    del picture, array
"""


@pytest.mark.parametrize("color", ["native", "gray"])
def test_decoding_takes_no_more_than_was_said(color: str, tmp_path: Path, nursery: Nursery) -> None:
    image = Image.new("RGB", (1500, 1500), "teal")
    (tmp_path / "small").write_bytes(png(4, 4))
    for kind in ("RGB", "RGBA", "L", "LA", "P", "P with transparency", "CMYK", "GIF", "WebP", "TIFF"):
        content = saved(image.convert("RGBA"), "PNG") if kind == "RGBA" else KINDS[kind](image)
        (tmp_path / kind).write_bytes(content)
    (tmp_path / "progressive").write_bytes(saved(image, "JPEG", progressive=True, subsampling=0))
    (tmp_path / "ppm").write_bytes(saved(image, "PPM"))
    deep = np.full((1500, 1500), 40_000, np.uint16)
    (tmp_path / "deep png").write_bytes(deep_png(deep[:, :, None]))
    (tmp_path / "deep pgm").write_bytes(deep_pgm(deep, 50_000))
    names = [path.name for path in tmp_path.iterdir() if path.name != "small"]
    done = nursery.run("-c", MEASURED, color, "small", *names, cwd=tmp_path)
    lines = [line.rsplit(maxsplit=3) for line in done.stdout.splitlines()]
    assert len(lines) == len(names) + 1, done.stderr
    for name, said, taken, _ in lines:
        assert int(taken) <= int(said) + (2 << 20), (name, said, taken)


def test_a_budget_is_never_exceeded_and_serves_in_order() -> None:
    budget, served, lock = Budget(100), [], threading.Lock()
    most = 0

    def work(number: int, size: int) -> None:
        nonlocal most
        for _ in range(50):
            budget.take(size)
            with lock:
                most = max(most, budget.used)
                served.append(number)
            budget.give(size)

    threads = [threading.Thread(target=work, args=(n, size)) for n, size in enumerate([100, 60, 30, 30, 1, 1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most <= 100 and budget.used == 0 and len(served) == 300


def test_what_waits_in_order_stays_in_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DECODING, "limit", 100)
    alive = most = 0
    lock = threading.Lock()

    def work(item: int) -> int:
        nonlocal alive, most
        with lock:
            alive += item
            most = max(most, alive)
        return item

    sizes = [30, 60, 40, 10, 10, 10, 90, 5, 200, 3] * 10
    found = []
    for item in in_order(work, sizes, lambda item: item):
        found.append(item)
        with lock:
            alive -= item
    assert found == sizes and most <= 200


@pytest.fixture
def bombs(tmp_path: Path) -> Path:
    """A list of a small image and a bomb, a database and a window file of the same, and nets over them."""
    (tmp_path / "small.png").write_bytes(png(8, 8))
    (tmp_path / "bomb.png").write_bytes(png(4000, 4000))
    files = [(name, (tmp_path / f"{name}.png").read_bytes()) for name in ("small", "bomb")]
    (tmp_path / "list.txt").write_text("small.png 0\nbomb.png 1\n")
    records = [Datum(encoded=True, data=data).SerializeToString() for _, data in files]
    put_lmdb(tmp_path / "db", [(b"%d" % number, record) for number, record in enumerate(records)])
    windows = "# {}\n{}.png\n1\n{}\n{}\n1\n1 1 0 0 3 3\n"
    (tmp_path / "windows").write_text(windows.format(0, "small", 8, 8) + windows.format(1, "bomb", 4000, 4000))
    layers = {
        "Data": 'data_param { source: "db" batch_size: 2 } transform_param { crop_size: 8 }',
        "ImageData": 'image_data_param { source: "list.txt" batch_size: 2 new_height: 8 new_width: 8 }',
        "WindowData": 'window_data_param { source: "windows" batch_size: 20 fg_fraction: 1 crop_size: 8 }',
    }
    for kind, text in layers.items():
        (tmp_path / f"{kind}.prototxt").write_text(
            f'layer {{ name: "d" type: "{kind}" top: "data" top: "label" {text} }}\n'
        )
    return tmp_path


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("check", "Data.prototxt"), "db: record '1': "),
        (("check", "ImageData.prototxt"), "list.txt:2: {}/bomb.png: "),
        (("check", "WindowData.prototxt"), "windows:9: {}/bomb.png: "),
        (("time", "--model", "ImageData.prototxt", "--iterations", "1"), "list.txt:2: {}/bomb.png: "),
        (("data", "images", "list.txt", "out"), "warning: bomb.png: "),
        (("data", "mean", "db", "out"), "record '1': "),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_every_way_to_an_image_refuses_a_bomb(args: tuple[str, ...], named: str, bombs: Path, run_cli: RunCli) -> None:
    done = run_cli(*args, "--decode-budget", "20", cwd=bombs)
    said = re.escape(named.format(bombs)) + r"decoding the image inside, 4000x4000, takes \d\d MiB of memory, and all "
    said += "that is decoded at a time may take 20 MiB; shrink it or raise --decode-budget"
    assert re.search(said, done.stdout + done.stderr), done.stdout + done.stderr


PEAK = """
import resource, sys
from forcereg.__main__ import main
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    main(sys.argv[1:])
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_many_bombs_at_once_take_no_more_than_the_budget(tmp_path: Path, nursery: Nursery) -> None:
    (tmp_path / "bomb.png").write_bytes(png(5000, 5000))
    (tmp_path / "list.txt").write_text("bomb.png 0\n" * 8)
    small = ("--resize-height", "4", "--resize-width", "4", "--decode-budget", "128")
    done = nursery.run("-c", PEAK, "data", "images", "list.txt", "out", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < (128 + 64) << 10


def test_a_file_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DECODING, "limit", 1 << 20)
    with open(tmp_path / "holes.png", "wb") as file:
        file.write(png(8, 8))
        file.truncate(1 << 40)
    with pytest.raises(
        ForceregError, match=r"holes.png: cannot be read \(it has 1,099,511,627,776 bytes.*decode-budget"
    ):
        load_image(tmp_path / "holes.png", True)
