"""The WindowData layer's feed: every crop it may hand out computed apart, its sampling, resume, and every refusal."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from forcereg.data.feed import FeedContext
from forcereg.data.images import resize
from forcereg.data.mean import write_mean
from forcereg.data.window_data import WindowFeed, window_feed
from forcereg.errors import ForceregError
from forcereg.registry import source
from forcereg.schema.text import parse_net
from tests.data.lmdbs import data_spec
from tests.data.pictures import noise, png

SIZE = 8
IMAGES = [noise(1, (3, 20, 24)), noise(2, (3, 30, 20))]

# (image, class, overlap, window): label 0 where the overlap is below 0.5
WINDOWS = [
    (0, 3, 0.9, (8, 8, 11, 11)),
    (0, 5, 0.2, (0, 0, 3, 3)),
    (0, 7, 0.5, (20, 17, 23, 19)),
    (1, 1, 1.0, (2, 4, 9, 7)),
    (1, 2, 0.0, (0, 0, 19, 29)),
    (1, 0, 0.1, (5, 6, 6, 6)),
]
FOREGROUND, BACKGROUND = [0, 2, 3], [1, 4, 5]
MODES = {"warp": "", "context": "context_pad: 2", "square": 'crop_mode: "square"'}

Part = tuple[slice, slice]


def window_file() -> str:
    """The text of a window file over IMAGES with WINDOWS."""
    lines = []
    for number, image in enumerate(IMAGES):
        own = [(label, overlap, *corners) for i, label, overlap, corners in WINDOWS if i == number]
        lines += [f"# {number}", f"{number}.png", *map(str, image.shape), str(len(own))]
        lines += [" ".join(map(str, values)) for values in own]
    return "\n".join(lines) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the images and w.txt."""
    for number, image in enumerate(IMAGES):
        (tmp_path / f"{number}.png").write_bytes(png(image))
    (tmp_path / "w.txt").write_text(window_file())
    return tmp_path


def make(
    root: Path,
    options: str = "",
    transform: str = f"crop_size: {SIZE}",
    batch: int = 16,
    budget: int = 1 << 20,
    seed: int | None = 1,
    phase: str = "TRAIN",
    source: str = "w.txt",
    tops: str = 'top: "data" top: "label"',
    device: str = "cpu",
) -> WindowFeed:
    """The feed over root/w.txt with the text `options` inside window_data_param."""
    text = (
        f'layer {{ name: "d" type: "WindowData" {tops} transform_param {{ {transform} }} '
        f'window_data_param {{ source: "{source}" batch_size: {batch} {options} }} }}'
    )
    return window_feed(data_spec(text, phase), FeedContext(root, torch.device(device), seed, budget))


def axis(first: int, last: int, half: float, grow: float, size: int, mirrored: bool) -> tuple[slice, slice]:
    """From where and to where along one axis: as if the image had an endless border that is cut off afterwards."""
    middle = first + (last - first + 1) / 2
    low, high = (int(np.copysign(np.floor(abs(x) + 0.5), x)) for x in (middle - half * grow, middle + half * grow))
    region = np.arange(low, high + 1)
    inside = region[(region >= 0) & (region < size)]
    missing = (region > size - 1).sum() if mirrored else (region < 0).sum()
    offset = int(np.floor(missing * SIZE / len(region) + 0.5))
    length = min(int(np.floor(len(inside) * SIZE / len(region) + 0.5)), SIZE - offset)
    return slice(inside[0], inside[-1] + 1), slice(offset, offset + length)


def expected_crop(number: int, mode: str, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    """The crop of a window, float, and which pixels of it show the image; mode as in MODES."""
    index, _, _, (x1, y1, x2, y2) = WINDOWS[number]
    image = IMAGES[index]
    if mode == "warp":
        crop = resize(image[:, y1 : y2 + 1, x1 : x2 + 1], SIZE, SIZE)
        return (crop[:, :, ::-1] if mirrored else crop).astype(np.float32), np.ones((SIZE, SIZE), bool)
    half_x, half_y = (x2 - x1 + 1) / 2, (y2 - y1 + 1) / 2
    if mode == "square":
        half_x = half_y = max(half_x, half_y)
    grow = 2 if mode == "context" else 1
    from_y, to_y = axis(y1, y2, half_y, grow, image.shape[1], False)
    from_x, to_x = axis(x1, x2, half_x, grow, image.shape[2], mirrored)
    part = resize(image[:, from_y, from_x], to_y.stop - to_y.start, to_x.stop - to_x.start)
    crop, shows = np.zeros((3, SIZE, SIZE), np.float32), np.zeros((SIZE, SIZE), bool)
    crop[:, to_y, to_x] = part[:, :, ::-1] if mirrored else part
    shows[to_y, to_x] = True
    return crop, shows


def test_the_layer_is_registered() -> None:
    assert source.get("WindowData") is window_feed


@pytest.mark.parametrize("mirror", [False, True], ids=["", "mirror"])
@pytest.mark.parametrize("mean", ["none", "values", "image"])
@pytest.mark.parametrize("mode", MODES)
def test_every_crop_is_one_of_those_computed_apart(mode: str, mean: str, mirror: bool, folder: Path) -> None:
    """In order background, foreground; each with its label; zero where nothing of the image is shown."""
    transform = f"crop_size: {SIZE} mirror: {str(mirror).lower()} scale: 0.5"
    subtract = np.zeros((3, SIZE, SIZE), np.float32)
    if mean == "values":
        transform += " mean_value: 10 mean_value: 20 mean_value: 30"
        subtract += np.array([10, 20, 30], np.float32)[:, None, None]
    if mean == "image":
        whole = np.random.default_rng(1).random((3, SIZE + 5, SIZE + 4), np.float32) * 100
        write_mean(folder / "mean", whole)
        transform += ' mean_file: "mean"'
        subtract = whole[:, 2 : 2 + SIZE, 2 : 2 + SIZE]
    feed = make(folder, f"{MODES[mode]} fg_fraction: 0.3", transform)
    assert feed.shapes == ((16, 3, SIZE, SIZE), (16,))
    directions = [False, True] if mirror else [False]
    possible: dict[bytes, tuple[int, bool]] = {}
    for number in range(len(WINDOWS)):
        for mirrored in directions:
            crop, shows = expected_crop(number, mode, mirrored)
            # rounding to 1/256: equal keys, not equal floats
            key = np.rint((crop - subtract) * shows * 0.5 * 256).astype(int).tobytes()
            possible[key] = number, mirrored
    seen = set()
    for _ in range(20):
        data, label = feed.next()
        assert data.dtype == label.dtype == torch.float32
        for place, crop in enumerate(data.numpy()):
            number, mirrored = possible[np.rint(crop * 256).astype(int).tobytes()]
            assert number in (BACKGROUND if place < 12 else FOREGROUND)
            assert label[place] == (WINDOWS[number][1] if number in FOREGROUND else 0)
            seen.add((number, mirrored))
    assert seen == set(possible.values()) and len(seen) == len(WINDOWS) * len(directions)


def test_windows_and_directions_are_sampled_uniformly(folder: Path) -> None:
    feed = make(folder, "fg_fraction: 0.5", f"crop_size: {SIZE} mirror: true", 120)
    crops = {expected_crop(n, "warp", m)[0].tobytes(): (n, m) for n in range(6) for m in (False, True)}
    hits = dict.fromkeys(crops.values(), 0)
    batches = 50
    for _ in range(batches):
        for crop in feed.next()[0].numpy():
            hits[crops[crop.tobytes()]] += 1
    share = batches * 60 / 3 / 2
    assert max(abs(found - share) for found in hits.values()) < 5 * share**0.5


@pytest.mark.parametrize(
    ("batch", "fraction", "foreground"),
    [(16, "0.25", 4), (7, "0.5", 3), (10, "0.7", 7), (10, "0.1", 1), (5, "0", 0), (5, "1", 5), (3, "0.3", 0)],
)
def test_how_many_are_foreground(batch: int, fraction: str, foreground: int, folder: Path) -> None:
    label = make(folder, f"fg_fraction: {fraction}", batch=batch).next()[1]
    assert (label != 0).tolist() == [False] * (batch - foreground) + [True] * foreground


def test_thresholds_decide_what_is_sampled(folder: Path) -> None:
    label = make(folder, "fg_threshold: 0.95 bg_threshold: 0.05", batch=40).next()[1]
    assert set(label.tolist()) == {0, 1}
    assert len(make(folder, "bg_threshold: 0.15").windows.background) == 2


def test_context_without_a_mean_needs_no_mask(folder: Path) -> None:
    feed = make(folder, MODES["context"], f"crop_size: {SIZE} scale: 2")
    crops = {(2 * expected_crop(n, "context", False)[0]).tobytes() for n in range(len(WINDOWS))}
    assert all(crop.tobytes() in crops for crop in feed.next()[0].numpy())


@pytest.mark.parametrize(
    ("options", "transform", "scale", "mirror"),
    [
        ("scale: 0.5", "crop_size: 8", 0.5, False),
        ("", "crop_size: 8 scale: 0.5", 0.5, False),
        ("scale: 0.25", "crop_size: 8 scale: 0.5", 0.25, False),
        ("crop_size: 8 mirror: true", "", 1, True),
        ("crop_size: 9 mirror: true", "crop_size: 8 mirror: false", 1, False),
    ],
)
def test_either_message_may_hold_the_transform(
    options: str, transform: str, scale: float, mirror: bool, folder: Path
) -> None:
    """transform_param wins, but for scale, which Caffe reads from window_data_param."""
    feed = make(folder, options, transform)
    assert feed.shapes[0][2:] == (8, 8)
    assert (feed.transform.scale, feed.crop.mirror) == (scale, mirror)
    mean = np.full((3, 9, 9), 7, np.float32)
    write_mean(folder / "mean", mean)
    first, less = make(folder, options, transform), make(folder, f'{options} mean_file: "mean"', transform)
    torch.testing.assert_close(less.next()[0], first.next()[0] - 7 * scale)


def test_an_old_nets_scale_is_honoured(folder: Path) -> None:
    """Caffe's upgrade moves it to transform_param, where its layer no longer looks."""
    old = (
        'layers { name: "d" type: WINDOW_DATA top: "data" top: "label" window_data_param { '
        'source: "w.txt" batch_size: 4 crop_size: 8 mirror: true scale: 0.5 fg_threshold: 0.4 } }'
    )
    message = parse_net(old).message.layer[0]
    spec = data_spec(f"layer {{ {message} }}")
    feed = window_feed(spec, FeedContext(folder, torch.device("cpu"), 1))
    assert (feed.transform.scale, feed.crop.mirror, feed.crop.size) == (0.5, True, 8)


def test_grey_images(folder: Path) -> None:
    (folder / "w.txt").write_text(window_file().replace(".png\n3\n", ".png\n1\n"))
    feed = make(folder)
    assert feed.next()[0].shape == (16, 1, SIZE, SIZE)


def test_the_root_folder_is_put_before_the_paths_as_it_is(folder: Path) -> None:
    (folder / "sub").mkdir()
    for number in (0, 1):
        (folder / f"{number}.png").rename(folder / "sub" / f"pre{number}.png")
    assert make(folder, 'root_folder: "sub/pre"').next()[0].any()


def same(one: WindowFeed, other: WindowFeed, count: int) -> bool:
    return all(torch.equal(a, b) for _ in range(count) for a, b in zip(one.next(), other.next(), strict=True))


MIRRORED = f"crop_size: {SIZE} mirror: true"


@pytest.mark.parametrize("budget", [0, 20 * 24 * 3, 1 << 20], ids=["no image", "one image", "all images"])
def test_the_budget_changes_nothing_but_memory(budget: int, folder: Path) -> None:
    assert same(make(folder, "cache_images: true", MIRRORED), make(folder, "", MIRRORED, budget=budget), 6)


@pytest.mark.parametrize(("budget", "kept"), [(0, 0), (20 * 24 * 3, 1), (20 * (24 + 30) * 3, 2)])
def test_images_are_kept_while_the_budget_lasts(budget: int, kept: int, folder: Path) -> None:
    images = make(folder, budget=budget).images()
    for index in (0, 1, 0, 1):
        np.testing.assert_array_equal(images.load(index), IMAGES[index])
    assert len(images.decoded) == kept


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_on_cuda_are_those_of_the_cpu(folder: Path) -> None:
    options = (MODES["context"], f"{MIRRORED} scale: 0.5 mean_value: 7")
    cpu, cuda = make(folder, *options), make(folder, *options, device="cuda")
    for _ in range(12):
        for a, b in zip(cpu.next(), cuda.next(), strict=True):
            assert b.is_cuda and torch.equal(a, b.cpu())


def test_the_seed_decides(folder: Path) -> None:
    one, equal, other = (make(folder, "", MIRRORED, seed=seed) for seed in (1, 1, 2))
    assert same(one, equal, 4) and not same(one, other, 1)
    assert not same(*(make(folder, "", MIRRORED, seed=None) for _ in range(2)), 1)
    assert not torch.equal(one.next()[0], one.next()[0])


def test_resume_is_exact(folder: Path) -> None:
    feed = make(folder, "", MIRRORED)
    for _ in range(3):
        feed.next()
    state = {key: np.asarray(value) for key, value in feed.state_dict().items()}
    resumed = make(folder, "", MIRRORED, seed=None)
    resumed.next()
    resumed.load_state_dict(state)
    assert same(feed, resumed, 5)
    assert feed.state_dict() == resumed.state_dict()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda feed: pickle.loads(pickle.dumps(feed))])
def test_copies_go_on_alike(clone: Callable[[WindowFeed], WindowFeed], folder: Path) -> None:
    feed = make(folder, MODES["context"], MIRRORED)
    feed.next()
    assert same(feed, clone(feed), 4)


def fails(folder: Path, *expected: str, **options) -> None:
    """Building or reading fails with one line that opens with the layer and holds all of `expected`."""
    with pytest.raises(ForceregError) as caught:
        feed = make(folder, **options)
        for _ in range(10):
            feed.next()
    line = str(caught.value)
    assert line.startswith("net.prototxt:1: layer 'd': ") and "\n" not in line
    for text in expected:
        assert text in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"tops": 'top: "data"'}, ["has 1 tops; expected data and label"]),
        ({"source": ""}, ["window_data_param.source is missing"]),
        ({"source": r"no\000ne"}, [r"'no\x00ne' holds a NUL character"]),
        ({"source": "none.txt"}, ["none.txt: cannot be read (No such file"]),
        ({"batch": 0}, ["batch_size is missing or 0"]),
        ({"transform": ""}, ["crop_size is missing or 0"]),
        ({"transform": "crop_size: 100000"}, ["a batch would have shape [16, 3, 100000, 100000]"]),
        ({"options": "context_pad: 4"}, ["context_pad 4 on both sides leaves nothing of crop_size 8"]),
        ({"options": 'crop_mode: "wrap"'}, ["unknown crop_mode 'wrap'; expected warp or square"]),
        ({"options": "fg_fraction: 1.5"}, ["fg_fraction is 1.5; expected 0 to 1"]),
        ({"options": "fg_fraction: nan"}, ["fg_fraction is nan; expected 0 to 1"]),
        (
            {"options": "fg_threshold: 1.1"},
            ["w.txt has no foreground windows (overlap >= fg_threshold 1.1), but a batch takes 4", "fg_fraction"],
        ),
        ({"options": "bg_threshold: 0"}, ["no background windows (overlap < bg_threshold 0), but a batch takes 12"]),
        ({"options": "root_folder: 'no/'"}, ["w.txt:2: ", "no/0.png: cannot be read (No such file or directory)"]),
        ({"transform": "crop_size: 8 mean_value: 1 mean_value: 2"}, ["2 mean_value entries for 3 channels"]),
        ({"transform": "crop_size: 8 mean_value: 1 mean_file: 'm'"}, ["has mean_file and mean_value"]),
        ({"transform": "crop_size: 8 mean_file: 'none'"}, ["none: cannot be read"]),
        ({"transform": "crop_size: 8 mean_file: 'mean'"}, ["is 3x7x9; expected 3 channels of at least 8x8"]),
    ],
)
def test_bad_parameters_are_refused(options: dict, expected: list[str], folder: Path) -> None:
    write_mean(folder / "mean", np.zeros((3, 7, 9), np.float32))
    fails(folder, *expected, **options)


@pytest.mark.parametrize(("fraction", "threshold"), [("0", "fg_threshold: 2"), ("1", "bg_threshold: 0")])
def test_a_kind_that_no_batch_takes_may_be_missing(fraction: str, threshold: str, folder: Path) -> None:
    assert len(make(folder, f"fg_fraction: {fraction} {threshold}").next()[1]) == 16


def test_a_bad_line_is_named(folder: Path) -> None:
    (folder / "w.txt").write_text(window_file().replace("0 0 3 3", "0 0 3 20"))
    fails(folder, "w.txt:8: the window leaves its image, 24 wide and 20 high")


@pytest.mark.parametrize("number", [0, 1], ids=["first", "later"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"GIF8", "cannot be decoded"),
        (png(noise(1, (3, 24, 20))[:, :22]), "is 22x20, not "),
    ],
    ids=["missing", "no image", "other size"],
)
def test_a_bad_image_is_named(content: bytes | None, expected: str, number: int, folder: Path) -> None:
    path = folder / f"{number}.png"
    path.unlink() if content is None else path.write_bytes(content)
    fails(folder, f"w.txt:{(2, 11)[number]}: {path}", expected)


def test_labels_out_of_range_are_found_before_training(folder: Path) -> None:
    feed = make(folder)
    feed.limit_labels(2, None, "layer 'euclid'", "data")
    feed.limit_labels(8, None, "layer 'loss'", "label")
    feed.limit_labels(7, 7, "layer 'loss'", "label")
    with pytest.raises(ForceregError, match=r"layer 'd': w\.txt:9: label 7 found, expected 0 to 6 for layer 'loss'"):
        feed.limit_labels(7, None, "layer 'loss'", "label")
