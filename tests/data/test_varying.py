"""Images of several sizes, one in a batch: each batch has its image's size, as in Caffe, and all around follows."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forcereg.data.feed import Feed
from forcereg.data.mean import write_mean
from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.net.moments import input_moments
from forcereg.net.scoring import score
from forcereg.snapshot import read_model
from forcereg.solver.loop import Solver
from tests.conftest import RunCli
from tests.data.lmdbs import encoded, make_feed, put_leveldb, put_lmdb, raw
from tests.data.pictures import STREAM, make_images, noise, png
from tests.solver.graphs import on_device
from tests.solver.nets import Recorder, write_solver
from tests.solver.tape import Tape

SIZES = ((8, 10), (9, 9), (7, 12), (8, 10), (12, 8))
IMAGES = [noise(number, (3, *size)) for number, size in enumerate(SIZES)]
BUDGETS = pytest.mark.parametrize("budget", [1 << 30, STREAM], ids=["in-memory", "streamed"])
WAYS = ("raw", "floats", "files", "leveldb", "list")

FCN = """
name: "fcn"
layer { name: "d" type: "Data" top: "data" top: "label" data_param { source: "db" batch_size: 1 backend: LMDB }
  transform_param { mirror: MIRROR scale: 0.01 mean_value: 100 } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 1 force_mult: 1 }
  convolution_param { num_output: 6 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 3 stride: 2 } }
layer { name: "up" type: "Deconvolution" bottom: "pool" top: "up"
  convolution_param { num_output: 4 kernel_size: 4 stride: 2 weight_filler { type: "xavier" } } }
layer { name: "crop" type: "Crop" bottom: "up" bottom: "data" top: "crop" }
layer { name: "norm" type: "LRN" bottom: "crop" top: "norm" }
layer { name: "all" type: "Pooling" bottom: "norm" top: "all" pooling_param { pool: AVE global_pooling: true } }
layer { name: "ip" type: "InnerProduct" bottom: "all" top: "ip"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
"""


def values(way: str) -> list[np.ndarray]:
    return [image * np.float32(0.5) for image in IMAGES] if way == "floats" else list(IMAGES)


def opened(way: str, root: Path, transform: str = "", batch: int = 1, phase: str = "TEST", **options: Any) -> Feed:
    """The feed over IMAGES, labels 0 to 4, as records of one kind or files of a list."""
    if way == "list":
        for number, image in enumerate(IMAGES):
            (root / f"{number}.png").write_bytes(png(image))
        (root / "list.txt").write_text("".join(f"{number}.png {number}\n" for number in range(len(IMAGES))))
        return make_images(root, transform=transform, batch=batch, phase=phase, **options)
    if way == "files":
        image_of = pytest.importorskip("PIL.Image").fromarray
        made = [encoded(image_of(image[::-1].transpose(1, 2, 0)), i, "PNG") for i, image in enumerate(IMAGES)]
    else:
        made = [raw(image, number) for number, image in enumerate(values(way))]
    put = put_leveldb if way == "leveldb" else put_lmdb
    put(root / "db", [(b"%08d" % number, value) for number, value in enumerate(made)])
    return make_feed(root, transform, batch, phase, **options)


@BUDGETS
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("way", WAYS)
def test_each_batch_is_its_image(way: str, workers: int, budget: int, tmp_path: Path) -> None:
    feed = opened(way, tmp_path, "scale: 0.5 mean_value: 7", budget=budget, workers=workers)
    assert feed.shapes == ((1, 3, 8, 10), (1,))
    for number in range(12):
        data, label = feed.next()
        expected = (values(way)[number % 5].astype(np.float32) - 7) * np.float32(0.5)
        np.testing.assert_array_equal(data.numpy(), expected[None])
        assert label.tolist() == [number % 5] and data.dtype == torch.float32
        assert str(number % 5) in feed.named()
    feed.close()


@BUDGETS
@pytest.mark.parametrize("way", ["raw", "list"])
def test_mirrored_ones_are_drawn_and_resumed_exactly(way: str, budget: int, tmp_path: Path) -> None:
    feed = opened(way, tmp_path, "mirror: true", phase="TRAIN", budget=budget)
    mirrored = set()
    for number in range(20):
        data = feed.next()[0].numpy()[0]
        plain = IMAGES[number % 5]
        found = np.array_equal(data, plain[:, :, ::-1])
        assert found or np.array_equal(data, plain)
        mirrored.add(found)
    assert mirrored == {True, False}
    others = [copy.deepcopy(feed), pickle.loads(pickle.dumps(feed)), opened_again(way, tmp_path, budget)]
    others[2].load_state_dict(feed.state_dict())
    coming = [feed.next() for _ in range(11)]
    for other in others:
        for batch in coming:
            for one, expected in zip(other.next(), batch, strict=True):
                assert torch.equal(one, expected)
        other.close()
    feed.close()


def opened_again(way: str, root: Path, budget: int) -> Feed:
    make = make_images if way == "list" else make_feed
    return make(root, transform="mirror: true", batch=1, phase="TRAIN", budget=budget, seed=5)


def test_a_budget_and_ways_change_nothing(tmp_path: Path) -> None:
    feeds = [
        opened("raw", tmp_path / f"{budget}{workers}", "mirror: true", phase="TRAIN", budget=budget, workers=workers)
        for budget in (1 << 30, STREAM)
        for workers in (1, 4)
    ]
    for _ in range(13):
        first, *others = [feed.next() for feed in feeds]
        assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
)
def test_any_sizes(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]], skip: int, memory: bool, gray: bool
) -> None:
    root = tmp_path_factory.mktemp("sizes")
    images = [noise(number, (1 if gray else 3, *size)) for number, size in enumerate(sizes)]
    put_lmdb(root / "db", [(b"%d" % number, raw(image, number)) for number, image in enumerate(images)])
    feed = make_feed(root, batch=1, budget=1 << 30 if memory else STREAM)
    feed.skip(skip)
    for number in range(skip, skip + 9):
        data, label = feed.next()
        np.testing.assert_array_equal(data.numpy()[0], images[number % len(images)])
        assert label.item() == number % len(images)
    feed.close()


# -- what stays an error


@BUDGETS
@pytest.mark.parametrize(
    ("way", "named"),
    [
        (
            "raw",
            "db: record '00000001': is 3x9x9 uint8, expected 3x8x10 uint8 as in the first record; write the set with "
            "one size (`forcereg data images --resize-height --resize-width`), or ",
        ),
        ("list", "1.png: is 3x9x9, expected 3x8x10 as list.txt:1; set new_height and new_width, or "),
    ],
)
def test_several_in_a_batch_must_be_of_one_size(way: str, named: str, budget: int, tmp_path: Path) -> None:
    feed = opened(way, tmp_path, batch=2, budget=budget)
    with pytest.raises(ForceregError) as caught:
        for _ in range(3):
            feed.next()
    fix = "set crop_size, or batch_size: 1, with which each batch takes its image's size"
    assert str(caught.value).endswith(named + fix)


@BUDGETS
@pytest.mark.parametrize("transform", ["", "crop_size: 5"])
@pytest.mark.parametrize("way", ["raw", "list"])
def test_a_mean_image_fits_one_size(way: str, transform: str, budget: int, tmp_path: Path) -> None:
    write_mean(tmp_path / "mean", np.zeros((3, 8, 10), np.float32))
    feed = opened(way, tmp_path, f'mean_file: "mean" {transform}', budget=budget)
    with pytest.raises(ForceregError, match=r"is 3x9x9.* expected 3x8x10.*, or subtract mean_value in place of mean_f"):
        for _ in range(5):
            feed.next()
    write_mean(tmp_path / "mean", np.zeros((3, 4, 4), np.float32))
    with pytest.raises(ForceregError, match=r"mean_file .*mean is 3x4x4, the uncropped images are 3x8x10"):
        opened_with_mean(way, tmp_path)


def opened_with_mean(way: str, root: Path) -> Feed:
    return (make_images if way == "list" else make_feed)(root, transform='mean_file: "mean"', batch=1)


def test_channels_may_not_change(tmp_path: Path) -> None:
    put_lmdb(tmp_path / "db", [(b"0", raw(noise(1, (3, 5, 5)))), (b"1", raw(noise(2, (1, 6, 5))))])
    feed = make_feed(tmp_path, batch=1)
    with pytest.raises(ForceregError, match=r"record '1': is 1x6x5 uint8, expected 3x5x5.*one number of channels"):
        for _ in range(2):
            feed.next()


# -- nets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The net FCN and its set of five images."""
    put_lmdb(tmp_path / "db", [(b"%08d" % number, raw(image, number)) for number, image in enumerate(IMAGES)])
    (tmp_path / "net.prototxt").write_text(FCN.replace("MIRROR", "false"))
    return tmp_path


def plain_net(size: tuple[int, int]) -> str:
    _, _, layers = FCN.partition('layer { name: "conv"')
    height, width = size
    shapes = f"shape {{ dim: 1 dim: 3 dim: {height} dim: {width} }} shape {{ dim: 1 }}"
    return f'layer {{ name: "in" type: "Input" top: "data" top: "label" input_param {{ {shapes} }} }}\n' + (
        'layer { name: "conv"' + layers
    )


def test_forward_and_backward_are_those_of_a_net_of_that_size(folder: Path) -> None:
    torch.manual_seed(3)
    net = load_net(folder / "net.prototxt", phase="TRAIN")
    for turn in range(7):
        number = turn % 5
        plain = load_net(plain_net(SIZES[number]), phase="TRAIN")
        plain.load_state_dict(net.state_dict())
        data = (torch.from_numpy(IMAGES[number]).float() - 100) * 0.01
        results = []
        for one, inputs in ((net, {}), (plain, {"data": data[None], "label": torch.tensor([float(number)])})):
            one.zero_grad()
            loss, _ = one.forward_loss(inputs)
            loss.backward()
            results.append([loss, *(blob.grad for blob in one.parameters()), *one.buffers()])
        for found, expected in zip(*results, strict=True):
            assert torch.equal(found, expected)


def trained(folder: Path, extra: str, mirror: bool = True, tape: Tape | None = None, **options: Any) -> Solver:
    (folder / "net.prototxt").write_text(FCN.replace("MIRROR", str(mirror).lower()))
    path = write_solver(folder, f"base_lr: 0.01 momentum: 0.9 force_decay: 0.001 {extra}")
    with on_device(tape):
        return Solver(path, **options)


@BUDGETS
def test_training_resumes_bit_for_bit(budget: int, folder: Path) -> None:
    extra = 'max_iter: 12 snapshot: 7 snapshot_prefix: "s" test_iter: 5 test_interval: 4'
    whole = trained(folder, extra, budget=budget)
    whole.solve()
    rest = trained(folder, extra, budget=budget)
    rest.restore(folder / "s_iter_7.solverstate.h5")
    rest.solve()
    for (name, one), other in zip(whole.net.state_dict().items(), rest.net.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_graphs_are_off_behind_the_first_other_size(folder: Path) -> None:
    extra = "max_iter: 9 display: 1 test_iter: 5 test_interval: 3"
    outcomes = []
    for tape in (Tape(), None):
        recorder = Recorder()
        solver = trained(folder, extra, tape=tape, observers=[recorder])
        solver.solve()
        outcomes.append((solver, recorder))
    (graphed, told), (plain, untold) = outcomes
    notes = [event.text for event in told.of("note")]
    assert sorted(notes) == [
        f"CUDA graphs are off in {what}: its batches change their shapes" for what in ("tests", "training")
    ]
    for one, other in zip(graphed.net.state_dict().values(), plain.net.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(told.of("test"), untold.of("test"), strict=True):
        assert one.fields["outputs"] == other.fields["outputs"]


@pytest.mark.parametrize("at_once", [1, 2, 7])
def test_joined_test_batches_stay_apart(at_once: int, folder: Path) -> None:
    torch.manual_seed(1)
    net = load_net(folder / "net.prototxt", phase="TEST")
    found = score(net, 10, at_once=at_once)
    net.feeds["d"].load_state_dict({"cursor": 0})
    with torch.no_grad():
        each = [net.forward_loss() for _ in range(10)]
    assert found.loss == pytest.approx(float(sum(loss for loss, _ in each)) / 10, rel=1e-6)
    assert found.mean("accuracy") == pytest.approx(float(sum(out["accuracy"] for _, out in each)) / 10)


def test_second_moments_count_all_positions(folder: Path) -> None:
    net = load_net(folder / "net.prototxt", phase="TRAIN")
    found = input_moments(net, ["conv"], 5)["conv"]
    rows = []
    for image in IMAGES:
        x = torch.nn.functional.pad((torch.from_numpy(image).double() - 100) * 0.01, (1, 1, 1, 1))
        windows = x.unfold(1, 3, 1).unfold(2, 3, 1)  # C, H, W, 3, 3
        rows.append(windows.permute(1, 2, 0, 3, 4).reshape(-1, 27))
    every = torch.cat(rows)
    torch.testing.assert_close(found[0], every.T @ every / len(every), rtol=1e-5, atol=1e-6)


WHOLE = FCN.replace("MIRROR", "false").replace(", pooling_param { pool: AVE global_pooling: true }", "")
UNPOOLED = "\n".join(line for line in WHOLE.splitlines() if 'name: "all"' not in line).replace('"all"', '"norm"')
MISFIT = (
    "net.prototxt:15: layer 'ip': its weight [5, 320] doesn't fit bottom [1, 4, 9, 9], which needs [5, 324]; give all "
    "images one size (crop_size, new_height and new_width), or pool over all positions in front of it (global_pooling)"
)


@pytest.mark.parametrize("command", ["train", "test"])
def test_an_inner_product_over_positions_names_layer_and_record(command: str, folder: Path, run_cli: RunCli) -> None:
    (folder / "net.prototxt").write_text(UNPOOLED)
    write_solver(folder, 'max_iter: 3 snapshot_prefix: "s"')
    if command == "train":
        done = run_cli("train", "--solver", "solver.prototxt", cwd=folder)
    else:
        write_solver(folder, 'max_iter: 0 snapshot_prefix: "s"')
        assert run_cli("train", "--solver", "solver.prototxt", cwd=folder).returncode == 0
        weights = "s_iter_0.caffemodel.h5"
        done = run_cli("test", "--model", "net.prototxt", "--weights", weights, "--iterations", "3", cwd=folder)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        f"{MISFIT}; 'data' is [1, 3, 9, 9] (db: record '00000001'), the net was made for [1, 3, 8, 10]"
    )
    assert "Traceback" not in done.stderr


def test_check_builds_the_net_for_the_least_and_the_largest(folder: Path, run_cli: RunCli) -> None:
    done = run_cli("check", "net.prototxt", cwd=folder)
    assert done.returncode == 0 and "all 5 records read, all fine" in " ".join(done.stdout.split()), done.stderr
    (folder / "net.prototxt").write_text(UNPOOLED.replace('name: "conv"', 'name: "conv"'))
    done = run_cli("check", "net.prototxt", cwd=folder)
    told = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1 and "layer 'ip': its weight [5, 320] doesn't fit bottom [1, 4, 9, 9]" in told
    assert "so it is with 'data' [1, 3, 9, 9] (db: record '00000001')" in told


def test_images_and_their_label_maps_change_together(tmp_path: Path, run_cli: RunCli) -> None:
    """As fully convolutional nets are trained: two sets, each batch a class for every pixel of its image."""
    put_lmdb(tmp_path / "db", [(b"%d" % number, raw(image)) for number, image in enumerate(IMAGES)])
    maps = [image[:1] % 3 for image in IMAGES]
    put_lmdb(tmp_path / "maps", [(b"%d" % number, raw(one)) for number, one in enumerate(maps)])
    (tmp_path / "net.prototxt").write_text(
        """
layer { name: "d" type: "Data" top: "data" data_param { source: "db" batch_size: 1 backend: LMDB } }
layer { name: "m" type: "Data" top: "map" data_param { source: "maps" batch_size: 1 backend: LMDB } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 3 kernel_size: 3 pad: 1 weight_filler { type: "gaussian" std: 0.001 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "conv" bottom: "map" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "conv" bottom: "map" top: "accuracy" }
"""
    )
    net = load_net(tmp_path / "net.prototxt", phase="TRAIN", seed=1)
    weight, bias = net.params["conv"]
    for number in range(7):
        loss, _ = net.forward_loss()
        data, target = (torch.from_numpy(one[number % 5][None]) for one in (IMAGES, maps))
        scores = torch.nn.functional.conv2d(data.float(), weight, bias, padding=1)
        expected = torch.nn.functional.cross_entropy(scores, target[:, 0].long())
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    done = run_cli("check", "net.prototxt", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_processes_train_on_images_of_their_own(folder: Path, run_cli: RunCli) -> None:
    """Two processes of one image each are one process of two, but for the order of additions."""
    (folder / "net.prototxt").write_text(FCN.replace("MIRROR", "true").replace('type: "BatchNorm"', 'type: "TanH"'))
    results = []
    for name, extra, options in (("two", "", ["--nproc", "2"]), ("one", "iter_size: 2", [])):
        write_solver(
            folder, f'max_iter: 4 base_lr: 0.01 display: 1 snapshot_prefix: "{name}" {extra}', f"{name}.prototxt"
        )
        done = run_cli("train", "--solver", f"{name}.prototxt", "--device", "cpu", *options, cwd=folder)
        assert done.returncode == 0, done.stderr
        results.append(read_model(folder / f"{name}_iter_4.caffemodel.h5").layers)
    for (name, one), other in zip(results[0].items(), results[1].values(), strict=True):
        for found, expected in zip(one, other, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6, err_msg=name)


# -- command lines


FAULT = {
    "data": 'type: "Data" top: "data" top: "label" data_param { source: "db" batch_size: 1 backend: LMDB }',
    "list": 'type: "ImageData" top: "data" top: "label" image_data_param { source: "l.txt" batch_size: 1 }',
}
REST = """
layer { name: "c" type: "Convolution" bottom: "data" top: "c"
  convolution_param { num_output: 2 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { pool: AVE global_pooling: true } }
layer { name: "l" type: "SoftmaxWithLoss" bottom: "p" bottom: "label" top: "l" }
"""


@pytest.mark.parametrize("kind", FAULT)
def test_every_command_takes_them(kind: str, tmp_path: Path, run_cli: RunCli) -> None:
    """The folder shared/faults/varying-size: a set by `forcereg data images`, or its list."""
    for number, image in enumerate(IMAGES[:4]):
        (tmp_path / f"{number}.png").write_bytes(png(image))
    (tmp_path / "l.txt").write_text("".join(f"{number}.png {number % 2}\n" for number in range(4)))
    (tmp_path / "net.prototxt").write_text(f'layer {{ name: "d" {FAULT[kind]} }}{REST}')
    write_solver(tmp_path, 'base_lr: 0.001 max_iter: 6 display: 1 test_iter: 4 test_interval: 3 snapshot_prefix: "z"')
    if kind == "data":
        done = run_cli("data", "images", "l.txt", "db", cwd=tmp_path)
        said = "records of several sizes (train with crop_size or batch_size: 1, or give --resize-height/-width)"
        assert done.returncode == 0 and said in done.stdout
        done = run_cli("data", "mean", "db", "mean", cwd=tmp_path)
        assert done.returncode == 1 and "or subtract mean_value, which fits images of any size" in done.stderr
        assert not (tmp_path / "mean").exists()
    model = ["--model", "net.prototxt", "--weights", "z_iter_6.caffemodel.h5"]
    snapshot = ["--model", "net.prototxt", "--snapshot", "z_iter_6.caffemodel.h5"]
    for args, expected in (
        (["train", "--solver", "solver.prototxt"], "Optimization Done."),
        (["test", *model, "--iterations", "4"], "Loss: "),
        (["check", "solver.prototxt"], "all 4 records"),
        (["summary", "net.prototxt"], "1x3x8x10"),
        (["time", "--model", "net.prototxt", "--iterations", "5"], "Average Forward-Backward"),
        (["decompose", *snapshot, "--error", "0.1", "--method", "pca", "--data-aware", "4", "--out", "low"], ""),
    ):
        done = run_cli(*args, cwd=tmp_path)
        assert done.returncode == 0, (args, done.stderr)
        assert expected in " ".join((done.stdout + done.stderr).split()), args
