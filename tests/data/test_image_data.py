"""The ImageData layer's feed: Caffe's recorded batches, order, shuffling, resume, streaming, and every refusal."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from forcereg.data.feed import FeedContext
from forcereg.data.image_data import ImageFeed, image_feed
from forcereg.data.images import resize
from forcereg.data.mean import write_mean
from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.registry import source
from tests.data.lmdbs import data_spec
from tests.data.pictures import STREAM, make_images, noise, png, put_images
from tests.golden_cases import Case, golden_cases

BUDGETS = pytest.mark.parametrize("budget", [1 << 30, STREAM], ids=["in-memory", "streamed"])
AUGMENTED = "crop_size: 3 mirror: true scale: 0.5 mean_value: 7"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with 10 images of 3x4x5 pixels and their list, labels 0 to 9."""
    put_images(tmp_path, 10)
    return tmp_path


def labels(feed: ImageFeed, count: int) -> list[int]:
    """The labels of the next `count` batches."""
    return torch.cat([feed.next()[1] for _ in range(count)]).int().tolist()


def same(one: ImageFeed, other: ImageFeed, count: int) -> bool:
    return all(torch.equal(a, b) for _ in range(count) for a, b in zip(one.next(), other.next(), strict=True))


@BUDGETS
@pytest.mark.parametrize("case", golden_cases("data", lambda case: case.id.startswith("image_")))
def test_batches_are_caffes(case: Case, budget: int, tmp_path: Path) -> None:
    message = data_spec(case.attrs["prototxt"]).message
    (tmp_path / "list.txt").write_text(case.attrs["list_txt"])
    for name, content in case.tree("images").items():
        if name.endswith("/bytes"):
            path = tmp_path / message.image_data_param.root_folder / name.removesuffix("/bytes")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content.tobytes())
    spec = data_spec(case.attrs["prototxt"], case.attrs["phase"])
    feed = image_feed(spec, FeedContext(tmp_path, torch.device("cpu"), 1, budget))
    resized, grey = message.image_data_param.new_height > 0, not message.image_data_param.is_color
    for number in (1, 2, 3):
        for top, shape, tensor in zip(feed.tops, feed.shapes, feed.next(), strict=True):
            expected = case.load(f"pass_{number}/{top}")
            assert tensor.dtype == torch.float32
            assert shape == expected.shape
            atol = (resized + grey + 1e-4) * message.transform_param.scale if top == "data" else 0
            np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-5, atol=atol)


def test_the_layer_is_registered() -> None:
    assert source.get("ImageData") is image_feed


@BUDGETS
def test_images_come_in_the_lists_order_and_wrap(budget: int, tmp_path: Path) -> None:
    images = put_images(tmp_path, 5)
    feed = make_images(tmp_path, budget=budget)
    assert feed.shapes == ((3, 3, 4, 5), (3,))
    for batch in range(7):
        index = [(3 * batch + i) % 5 for i in range(3)]
        data, label = feed.next()
        np.testing.assert_array_equal(data.numpy(), images[index])
        assert label.tolist() == index


@pytest.mark.parametrize("batch", [1, 4, 10, 23])
@pytest.mark.parametrize("options", ["", "shuffle: true", "shuffle: true rand_skip: 7"])
def test_streamed_equals_in_memory(options: str, batch: int, folder: Path) -> None:
    one, other = (make_images(folder, options, AUGMENTED, batch, "TRAIN", budget) for budget in (1 << 20, STREAM))
    assert same(one, other, 30)
    assert one.state_dict() == other.state_dict()
    assert one._resident is not None and other._resident is None


def test_the_number_of_workers_changes_nothing(folder: Path) -> None:
    feeds = [make_images(folder, "shuffle: true", AUGMENTED, 4, "TRAIN", STREAM, workers=n) for n in (1, 3)]
    assert same(*feeds, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@BUDGETS
def test_batches_on_cuda_are_those_of_the_cpu(budget: int, folder: Path) -> None:
    options = ("shuffle: true", AUGMENTED, 4, "TRAIN", budget)
    cpu, cuda = make_images(folder, *options), make_images(folder, *options, device="cuda")
    for _ in range(12):
        for a, b in zip(cpu.next(), cuda.next(), strict=True):
            assert b.is_cuda and torch.equal(a, b.cpu())


def test_a_net_trains_on_listed_images(folder: Path) -> None:
    text = """
        layer { name: "d" type: "ImageData" top: "data" top: "label"
                image_data_param { source: "LIST" root_folder: "ROOT/" batch_size: 4 shuffle: true } }
        layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: CLASSES } }
        layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
    """
    text = text.replace("LIST", str(folder / "list.txt")).replace("ROOT", str(folder))
    net = load_net(text.replace("CLASSES", "10"), phase="TRAIN", seed=1)
    assert net()["loss"].item() == pytest.approx(np.log(10))
    net.close()
    with pytest.raises(ForceregError, match=r"layer 'd': .*list\.txt:10: label 9 found, expected 0 to 8 for .*'loss'"):
        load_net(text.replace("CLASSES", "9"), phase="TRAIN")


@pytest.mark.parametrize(("budget", "resident"), [(599, False), (600, True)])
def test_the_budget_decides(budget: int, resident: bool, folder: Path) -> None:
    feed = make_images(folder, budget=budget)  # 10 images of 60 bytes
    labels(feed, 8)
    assert (feed._resident is not None) == resident


def test_a_batch_belongs_to_the_caller(folder: Path) -> None:
    feed = make_images(folder, batch=10)
    first = [tensor.clone() for tensor in feed.next()]
    for tensor in feed.next():
        tensor.zero_()
    for before, after in zip(first, feed.next(), strict=True):
        assert torch.equal(before, after)


def test_the_set_is_read_once_when_it_fits(folder: Path) -> None:
    feed = make_images(folder, batch=10)
    expected = feed.next()
    for path in folder.glob("*.png"):
        path.unlink()
    assert all(torch.equal(a, b) for a, b in zip(expected, feed.next(), strict=True))


def test_the_seed_decides_order_and_crops(folder: Path) -> None:
    one, equal, other = (make_images(folder, "shuffle: true", AUGMENTED, 10, "TRAIN", seed=s) for s in (1, 1, 2))
    assert same(one, equal, 3)
    assert labels(one, 2) != labels(other, 2)
    free = [make_images(folder, "shuffle: true", batch=10, seed=None) for _ in range(2)]
    assert labels(free[0], 2) != labels(free[1], 2)


@BUDGETS
def test_random_crops_and_mirrors_are_parts_of_their_images(budget: int, tmp_path: Path) -> None:
    (image,) = put_images(tmp_path, 1)
    feed = make_images(tmp_path, "shuffle: true", "crop_size: 3 mirror: true", 64, "TRAIN", budget)
    parts = [image[:, top : top + 3, left : left + 3] for top in range(2) for left in range(3)]
    possible = {part.tobytes() for whole in parts for part in (whole, whole[:, :, ::-1])}
    found = [crop.astype(np.uint8).tobytes() for _ in range(2) for crop in feed.next()[0].numpy()]
    assert set(found) == possible
    assert found[:64] != found[64:]


def test_rand_skip_is_less_than_its_value_and_depends_on_the_seed(folder: Path) -> None:
    starts = [labels(make_images(folder, "rand_skip: 4", batch=1, seed=seed), 1)[0] for seed in range(40)]
    assert set(starts) == {0, 1, 2, 3}


@BUDGETS
@pytest.mark.parametrize("as_arrays", [False, True], ids=["numbers", "arrays"])
@pytest.mark.parametrize("done", [1, 3, 8])
def test_resume_is_exact(done: int, budget: int, as_arrays: bool, folder: Path) -> None:
    """Within a round of the shuffled list and after several; the state is all that is needed, whatever the seed."""
    options = ("shuffle: true rand_skip: 9", AUGMENTED, 4, "TRAIN", budget)
    feed = make_images(folder, *options)
    labels(feed, done)
    state = feed.state_dict()
    if as_arrays:
        state = {key: np.asarray(value) for key, value in state.items()}
    resumed = make_images(folder, *options, seed=None)
    labels(resumed, 5)
    resumed.load_state_dict(state)
    assert same(feed, resumed, 9)
    assert feed.state_dict() == resumed.state_dict()


@BUDGETS
@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda feed: pickle.loads(pickle.dumps(feed))], ids=["copy", "pickle"]
)
def test_copies_go_on_alike(clone: Callable[[ImageFeed], ImageFeed], budget: int, folder: Path) -> None:
    feed = make_images(folder, "shuffle: true", AUGMENTED, 4, "TRAIN", budget)
    labels(feed, 4)
    assert same(feed, clone(feed), 6)


def test_a_closed_feed_starts_again(folder: Path) -> None:
    feed = make_images(folder, batch=4, budget=STREAM)
    feed.next()
    feed.close()
    assert labels(feed, 1) == [4, 5, 6, 7]


def test_a_dropped_feed_ends_its_threads(folder: Path) -> None:
    before = set(threading.enumerate())
    feed = make_images(folder, budget=STREAM)
    feed.next()
    started = set(threading.enumerate()) - before
    assert started
    del feed
    for thread in started:
        thread.join(timeout=30)
        assert not thread.is_alive()


@BUDGETS
@pytest.mark.parametrize("color", [True, False])
def test_images_of_several_sizes_are_resized(color: bool, budget: int, tmp_path: Path) -> None:
    images = [noise(i, (3, 5 + i, 9 - i)) for i in range(4)]
    for number, image in enumerate(images):
        (tmp_path / f"{number}.png").write_bytes(png(image))
    (tmp_path / "list.txt").write_text("".join(f"{i}.png {i}\n" for i in range(4)))
    feed = make_images(tmp_path, f"new_height: 6 new_width: 4 is_color: {str(color).lower()}", batch=4, budget=budget)
    expected = np.stack([resize(image, 6, 4) for image in images]).astype(float)
    if not color:
        expected = np.tensordot(expected, [0.114, 0.587, 0.299], (1, 0))[:, None]
    for _ in range(2):
        np.testing.assert_allclose(feed.next()[0].numpy(), expected, atol=0 if color else 1.5)


@BUDGETS
def test_images_of_several_sizes_are_cropped_to_one(budget: int, tmp_path: Path) -> None:
    sizes = [(4, 5), (4, 5), (7, 4), (6, 6)]
    images = [noise(i, (3, *size)) for i, size in enumerate(sizes)]
    for number, image in enumerate(images):
        (tmp_path / f"{number}.png").write_bytes(png(image))
    (tmp_path / "list.txt").write_text("".join(f"{i}.png {i}\n" for i in range(4)))
    feed = make_images(tmp_path, transform="crop_size: 3 mean_value: 1", budget=budget)
    for batch in range(6):
        data, label = feed.next()
        assert label.tolist() == [(3 * batch + i) % 4 for i in range(3)]
        for found, number in zip(data.numpy(), label.int().tolist(), strict=True):
            top, left = ((size - 3) // 2 for size in sizes[number])
            np.testing.assert_array_equal(found, images[number][:, top : top + 3, left : left + 3] - 1.0)


def test_a_mean_image_belongs_to_the_uncropped_position(folder: Path) -> None:
    mean = np.random.default_rng(1).random((3, 4, 5), np.float32)
    write_mean(folder / "mean", mean)
    plain, less = (make_images(folder, transform=t).next()[0] for t in ("", "crop_size: 2 mean_file: 'mean'"))
    np.testing.assert_allclose(less.numpy(), (plain.numpy() - mean)[:, :, 1:3, 1:3], rtol=1e-6)


def test_the_root_folder_is_put_before_the_paths_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "pre1.png").write_bytes(png(noise(1, (3, 4, 5))))
    (tmp_path / "list.txt").write_text("1.png 7\n")
    assert labels(make_images(tmp_path, 'root_folder: "sub/pre"', batch=1), 1) == [7]
    (tmp_path / "list.txt").write_text(f"{tmp_path}/sub/pre1.png 8\n")
    assert labels(make_images(tmp_path / "sub", batch=1, source="../list.txt"), 1) == [8]


def fails(feed_or_root: ImageFeed | Path, *expected: str, **options) -> None:
    """Building or reading fails with one line that opens with the layer and holds all of `expected`."""
    with pytest.raises(ForceregError) as caught:
        feed = make_images(feed_or_root, **options) if isinstance(feed_or_root, Path) else feed_or_root
        labels(feed, 20)
    line = str(caught.value)
    assert line.startswith("net.prototxt:1: layer 'd': ") and "\n" not in line
    for text in expected:
        assert text in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"source": ""}, ["image_data_param.source is missing"]),
        ({"source": r"no\000ne"}, [r"'no\x00ne' holds a NUL character"]),
        ({"source": "none.txt"}, ["none.txt", "cannot be read (No such file or directory)"]),
        ({"source": "."}, ["cannot be read (it is a folder, expected a regular file)"]),
        ({"batch": 0}, ["batch_size is 0"]),
        ({"batch": 4_000_000_000, "options": "new_height: 9 new_width: 9"}, ["a batch of resized", "2,147,483,647"]),
        ({"tops": 'top: "data"'}, ["has 1 tops; expected data and label"]),
        ({"options": "new_height: 4"}, ["new_height 4 and new_width 0; give both or neither"]),
        ({"options": "new_height: 2000000000 new_width: 2000000000"}, ["a batch of resized images", "values"]),
        ({"options": "rand_skip: 11"}, ["rand_skip 11 exceeds the 10 images of list.txt"]),
        ({"options": "root_folder: 'no/'"}, ["list.txt:1: ", "no/0.png: cannot be read (No such file or directory)"]),
        ({"transform": "crop_size: 5"}, ["crop_size 5", "3x4x5", "at most 4"]),
        ({"transform": "mean_value: 1 mean_value: 2"}, ["2 mean_value", "3 channels"]),
        ({"transform": "mean_value: 1 mean_value: 2 mean_value: 3", "options": "is_color: false"}, ["1 channels"]),
        ({"transform": 'mean_file: "none.binaryproto"'}, ["none.binaryproto", "No such file"]),
    ],
)
def test_bad_parameters_are_refused(options: dict, expected: list[str], folder: Path) -> None:
    fails(folder, *expected, **options)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("a.png", "is 'a.png'"),
        ("a.png\t1.5", r"is 'a.png\t1.5'"),
        ("a.png 1.5", "is 'a.png 1.5'"),
        ("a.png 1_0", "is 'a.png 1_0'"),
        ("a.png cat", "is 'a.png cat'"),
        ("a.png 2147483648", "is 'a.png 2147483648'"),
        ("a.png " + "9" * 5000, "..."),
        ("7", "is '7'"),
    ],
)
def test_a_bad_line_of_the_list_is_named(line: str, found: str, folder: Path) -> None:
    with open(folder / "list.txt", "a") as file:
        file.write(f"\n{line}\n")
    fails(folder, "list.txt:12: ", found, "expected an image's path, a space or tab and its label, an integer")


@pytest.mark.parametrize("label", ["0.5", "-1e-3", ".25", "99999999999"])
def test_labels_that_are_no_integers_have_a_place(label: str, folder: Path) -> None:
    (folder / "list.txt").write_text(f"0.png 1\n1.png {label}\n")
    fails(folder, f"list.txt:2: is '1.png {label}'", "HDF5Data, or from a second Data layer over an LMDB of labels")


@pytest.mark.parametrize("tail", ["1 0 1", "0.25 7", "1\t0\t1", "  3   4"])
def test_several_labels_have_a_place(tail: str, folder: Path) -> None:
    os.rename(folder / "1.png", folder / "my image 1 2.png")
    (folder / "list.txt").write_text(f"0.png 1\nmy image 1 2.png {tail}\n")
    feed = make_images(folder, batch=1)
    assert labels(feed, 1) == [1]
    text = r"list.txt:2: there is no 'my image 1 2.png .*', but 'my image 1 2.png'; expected one label in a line.*HDF5D"
    with pytest.raises(ForceregError, match=text):
        feed.next()


def test_a_path_may_end_in_numbers(folder: Path) -> None:
    os.rename(folder / "1.png", folder / "1 0 3.5")
    os.rename(folder / "2.png", folder / "1 0")
    (folder / "list.txt").write_text("1 0 3.5 1\n1 0 2\n")
    assert labels(make_images(folder, batch=1), 2) == [1, 2]


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n\n")
    fails(tmp_path, "list.txt: lists no images")


BAD_IMAGES = {
    "missing": (None, "cannot be read (No such file or directory)"),
    "no image": (b"GIF8", "cannot be decoded"),
    "cut": (png(noise(1, (3, 4, 5)))[:60], "cannot be decoded"),
    "other size": (png(noise(1, (3, 5, 4))), "is 3x5x4, expected 3x4x5 as list.txt:1; set new_height and new_width"),
}


@BUDGETS
@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_named_behind_the_good_batches(name: str, budget: int, folder: Path) -> None:
    content, expected = BAD_IMAGES[name]
    good = (folder / "7.png").read_bytes()
    (folder / "7.png").unlink() if content is None else (folder / "7.png").write_bytes(content)
    feed = make_images(folder, budget=budget)
    assert labels(feed, 2) == [0, 1, 2, 3, 4, 5]
    fails(feed, "list.txt:8: ", f"{folder}/7.png", expected)
    (folder / "7.png").write_bytes(good)
    assert labels(feed, 2) == [6, 7, 8, 9, 0, 1]


def test_an_image_smaller_than_the_crop_is_named(folder: Path) -> None:
    (folder / "7.png").write_bytes(png(noise(1, (3, 2, 9))))
    fails(folder, "list.txt:8: ", "7.png: is 3x2x9, smaller than crop_size 3", transform="crop_size: 3")


def test_a_mean_image_allows_one_size_only(folder: Path) -> None:
    write_mean(folder / "mean", np.zeros((3, 4, 5), np.float32))
    (folder / "7.png").write_bytes(png(noise(1, (3, 9, 9))))
    fails(folder, "list.txt:8: ", "7.png: is 3x9x9, expected 3x4x5", transform="crop_size: 3 mean_file: 'mean'")


def test_a_label_out_of_range_is_found_before_training(folder: Path) -> None:
    feed = make_images(folder)
    feed.limit_labels(3, None, "layer 'euclid'", "data")
    feed.limit_labels(10, None, "layer 'loss'", "label")
    feed.limit_labels(9, 9, "layer 'loss'", "label")
    with pytest.raises(ForceregError) as caught:
        feed.limit_labels(8, 9, "net.prototxt:9: layer 'loss'", "label")
    assert str(caught.value) == (
        "net.prototxt:1: layer 'd': list.txt:9: label 8 found, expected 0 to 7 or 9 (ignore_label) for "
        "net.prototxt:9: layer 'loss'"
    )


@pytest.mark.parametrize("field", ["crop_size: 2", "mirror: true", "scale: 2", 'mean_file: "none"'])
def test_fields_that_moved_to_transform_param_are_pointed_out(field: str, folder: Path) -> None:
    name = field.split(":")[0]
    text = f"^net.prototxt:1: layer 'd': image_data_param.{name} has no effect; write it in transform_param$"
    with pytest.warns(UserWarning, match=text):
        with_field = make_images(folder, field)
    assert same(make_images(folder), with_field, 2)


@pytest.mark.parametrize("field", ["force_color", "force_gray"])
def test_forced_colours_are_pointed_out(field: str, folder: Path) -> None:
    with pytest.warns(UserWarning, match="have no effect here; use is_color"):
        assert make_images(folder, transform=f"{field}: true").shapes[0] == (3, 3, 4, 5)
