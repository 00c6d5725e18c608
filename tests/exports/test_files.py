"""Whole nets as ONNX files: what they hold, their proof, what is folded, and what is left where something is wrong."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import forcereg
from forcereg import registry
from forcereg.exports import onnx as target
from forcereg.exports.proof import recorded
from forcereg.snapshot import write_model
from tests.commands.conftest import Cli, said
from tests.conftest import TOP
from tests.exports.nets import NORMED, filled, snapshot_of

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
CONFIGS = TOP / "configs"


@pytest.fixture
def normed(tmp_path: Path) -> Path:
    snapshot_of(NORMED, tmp_path / "normed.caffemodel.h5")
    return tmp_path / "normed.caffemodel.h5"


def nodes(path: Path) -> list[tuple[str, str]]:
    return [(node.op_type, node.output[0]) for node in onnx.load(path).graph.node]


def test_names_of_blobs_that_layers_work_on_in_place(normed: Path, tmp_path: Path) -> None:
    """The first to write a blob has its name, those in place have their own behind it; outputs keep theirs."""
    forcereg.export(normed, tmp_path / "a.onnx", fold=False)
    assert nodes(tmp_path / "a.onnx") == [
        ("Conv", "conv1"), ("BatchNormalization", "bn1"), ("Mul", "scale1/Mul"), ("Add", "bn1_scale1"),
        ("Relu", "bn1_relu1"), ("Conv", "conv2"), ("MaxPool", "pool"), ("Flatten", "ip/Flatten"), ("Gemm", "ip_ip"),
        ("Sigmoid", "ip"),
    ]  # fmt: skip


def test_folded(normed: Path, tmp_path: Path) -> None:
    done = forcereg.export(normed, tmp_path / "a.onnx")
    assert nodes(tmp_path / "a.onnx") == [
        ("Conv", "bn1"), ("Relu", "bn1_relu1"), ("Conv", "conv2"), ("MaxPool", "pool"), ("Flatten", "ip/Flatten"),
        ("Gemm", "ip_ip"), ("Sigmoid", "ip"),
    ]  # fmt: skip
    assert done.proof is not None and (done.proof.blobs, done.proof.batches) == (6, 2)
    assert done.proof.difference <= 1e-5 * done.proof.magnitude


def test_metadata(normed: Path, tmp_path: Path) -> None:
    model = forcereg.decompose(normed, rule=forcereg.Ranks([3, 2])).write(tmp_path / "low")
    forcereg.export(model["weights"], tmp_path / "a.onnx", batch=3)
    made = onnx.load(tmp_path / "a.onnx")
    found = {entry.key: entry.value for entry in made.metadata_props}
    assert found["weights_sha256"] == hashlib.sha256(Path(model["weights"]).read_bytes()).hexdigest()
    assert found["source"] == model["weights"] and found["forcereg_version"] == forcereg.__version__
    assert json.loads(found["decomposed"]) and (made.producer_name, made.graph.name) == ("forcereg", "normed")
    assert [dim.dim_value for dim in made.graph.input[0].type.tensor_type.shape.dim] == [3, 3, 10, 10]


@pytest.mark.parametrize("method", [*registry.factorizer])
@pytest.mark.parametrize("fold", [False, True], ids=["", "fold-bn"])
def test_every_decomposition(method: str, fold: bool, normed: Path, tmp_path: Path) -> None:
    pytest.importorskip({"cp": "tensorly", "kmeans": "sklearn"}.get(method, "torch"))
    made = forcereg.decompose(normed, rule=forcereg.Ranks([3, 2]), method=method, fold_bn=fold, even_if_dearer=True)
    done = forcereg.export(made, tmp_path / "a.onnx")
    assert done.proof is not None and done.proof.blobs == len(nodes(tmp_path / "a.onnx")) - 1


@pytest.mark.parametrize(
    ("name", "count", "short"),
    [
        ("examples/mnist/lenet.prototxt", 9, True),
        ("examples/cifar10/cifar10_full.prototxt", 24, True),
        ("examples/cifar10/cifar10_resnet20.prototxt", 53, True),
        ("models/googlenet/deploy.prototxt", 142, True),
        ("models/alexnet/deploy.prototxt", 22, False),
        ("models/caffenet/deploy.prototxt", 22, False),
        ("models/resnet50/deploy.prototxt", 123, False),
        ("models/vgg16/deploy.prototxt", 38, False),
    ],
)
def test_shipped_nets(name: str, count: int, short: bool, long_form: bool, tmp_path: Path) -> None:
    """Canonical nodes, as many as the net has layers: no Transpose, Scatter, Slice, Shape or Cast."""
    if not (short or long_form):
        pytest.skip("a large net; --long")
    snapshot_of(CONFIGS / name, tmp_path / "net.caffemodel.h5")
    # GoogLeNet's proof takes seconds
    proves = long_form or not name.startswith("models")
    done = forcereg.export(tmp_path / "net.caffemodel.h5", tmp_path / "net.onnx", verify=proves)
    assert (done.proof is not None) == proves
    found = nodes(tmp_path / "net.onnx")
    assert len(found) == count
    assert {op for op, _ in found} <= {
        "Conv", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "LRN", "Mul", "Pow", "Concat", "Add", "Flatten",
        "Gemm", "Softmax",
    }  # fmt: skip


SMALL = ("examples/mnist/lenet", "examples/cifar10/cifar10_full", "examples/cifar10/cifar10_resnet20")
LARGE = ("models/alexnet/deploy", "models/googlenet/deploy")


@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, method) for name in SMALL for method in registry.factorizer),
     *((name, method) for name in LARGE for method in ("pca", "vh"))],
)  # fmt: skip
def test_decompositions_of_shipped_nets(name: str, method: str, long_form: bool, tmp_path: Path) -> None:
    if not long_form:
        pytest.skip("whole nets by every method; --long")
    snapshot_of(CONFIGS / f"{name}.prototxt", tmp_path / "net.caffemodel.h5")
    made = forcereg.decompose(tmp_path / "net.caffemodel.h5", rule=forcereg.MaxError(0.5), method=method,
                              fold_bn=True, even_if_dearer=True)  # fmt: skip
    done = forcereg.export(made, tmp_path / "a.onnx")
    assert made.report["layers"] and done.proof is not None and done.proof.batches == 2


def test_a_file_that_differs_is_none(normed: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first blob that differs is named; what had the name before has it still."""
    out = tmp_path / "a.onnx"
    out.write_text("before")
    monkeypatch.setitem(registry.onnx_form._known, "ReLU", lambda layer, g, x: g("Abs", x))
    code, said_out, err = cli("export", normed, "-o", out)
    assert (code, said_out) == (1, "")
    assert said(err).startswith("the file's 'bn1_relu1' (layer 'relu1') differs from ours by ")
    assert out.read_text() == "before" and len(list(tmp_path.iterdir())) == 2
    code, said_out, err = cli("export", normed, "-o", out, "--no-verify")
    assert (code, err) == (0, "") and "equal" not in said_out and ("Abs", "bn1_relu1") in nodes(out)


def test_constants_in_a_file_of_their_own(normed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for models above 2 GiB; the pair may move together."""
    monkeypatch.setattr(target, "ONE_FILE", 1000)
    done = forcereg.export(normed, tmp_path / "a.onnx")
    assert done.paths == (str(tmp_path / "a.onnx"), str(tmp_path / "a.onnx.data")) and done.proof is not None
    (tmp_path / "moved").mkdir()
    for path in map(Path, done.paths):
        path.rename(tmp_path / "moved" / path.name)
    moved = tmp_path / "moved" / "a.onnx"
    onnx.checker.check_model(moved, full_check=True)
    x = torch.randn(2, 3, 10, 10)
    (found,) = onnxruntime.InferenceSession(moved).run(None, {"data": x.numpy()})
    expected = forcereg.load_net(NORMED, normed)(data=x)["ip"].detach()
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_outputs_that_layers_go_on_with(ending: str, normed: Path, tmp_path: Path, cli: Cli) -> None:
    """Features beside the result; what makes them isn't folded into another layer."""
    code, out, err = cli("export", normed, "-o", tmp_path / f"a.{ending}", "--outputs", "conv1,bn1,ip")
    assert (code, err) == (0, "")
    assert out.splitlines()[1:4] == [
        "output ip batchx5", "output conv1 batchx8x8x8", "output bn1 batchx8x8x8"
    ]  # fmt: skip
    x = torch.randn(3, 3, 10, 10)
    net = forcereg.load_net(NORMED, normed)
    expected = [net({"data": x}, blobs=["conv1", "bn1"])[name].detach() for name in ("ip", "conv1", "bn1")]
    if ending == "onnx":
        found = onnxruntime.InferenceSession(tmp_path / "a.onnx").run(None, {"data": x.numpy()})
        found = [torch.from_numpy(one) for one in found]
    else:
        made = torch.export.load(tmp_path / "a.pt2").module()(x)
        assert list(made) == ["ip", "conv1", "bn1"]
        found = list(made.values())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# -- pixels and test batches

PIXELS = """
layer { name: "data" type: "ImageData" top: "data" top: "label" include { phase: TEST }
  image_data_param { source: "list.txt" batch_size: 4 }
  transform_param { scale: 0.01 mean_value: 90 mean_value: 100 mean_value: 110 } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight images, their net with random weights, and a solver for it."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    chance = torch.Generator().manual_seed(0)
    for index in range(8):
        pixels = torch.randint(0, 256, (6, 5, 3), generator=chance, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(f"{index}.png")
    Path("list.txt").write_text("".join(f"{index}.png {index % 3}\n" for index in range(8)))
    train = PIXELS.replace("phase: TEST", "phase: TRAIN", 1).split("layer")[1]
    Path("net.prototxt").write_text(f"layer{train}{PIXELS}")
    Path("solver.prototxt").write_text(
        'net: "net.prototxt" test_iter: 2 test_interval: 9 base_lr: 0.1 lr_policy: "fixed"'
    )
    net = forcereg.load_net("net.prototxt", seed=3)
    blobs = {name: {at: blob.detach().numpy() for at, blob in enumerate(held)} for name, held in net.params.items()}
    write_model(tmp_path / "net.caffemodel.h5", blobs, attrs={"forcereg_net": Path("net.prototxt").read_text()})
    return tmp_path / "net.caffemodel.h5"


def test_pixels_of_an_image_file(photos: Path) -> None:
    """Red, green, blue from 0 to 255, as every other program reads a file: what users would have to do is done."""
    from PIL import Image

    done = forcereg.export("net.caffemodel.h5", "a.onnx", with_transform=True, rgb=True)
    assert done.preparation == {
        "data": "pixels from 0 to 255 (red, green, blue), the file subtracts the mean and scales"
    }
    assert [op for op, _ in nodes(Path("a.onnx"))] == ["Gather", "Sub", "Mul", "Flatten", "Gemm", "Softmax"]
    net = forcereg.load_net("net.prototxt", photos)
    expected = torch.softmax(net(blobs=["ip"])["ip"], 1).detach()
    pixels = torch.stack([torch.from_numpy(_pixels(Image.open(f"{index}.png"))) for index in range(4)])
    (found,) = onnxruntime.InferenceSession("a.onnx").run(None, {"data": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-6)


def _pixels(image: Any) -> Any:
    import numpy as np

    return np.asarray(image, np.float32).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("out", "args"),
    [("a.onnx", ()), ("a.onnx", ("--with-transform", "--rgb")), ("a.pt2", ())],
    ids=["onnx", "pixels", "pt2"],
)
def test_accuracy_beside_ours(out: str, args: tuple[str, ...], photos: Path, cli: Cli) -> None:
    code, out, err = cli("export", photos, "-o", out, "--solver", "solver.prototxt", *args)
    assert (code, err) == (0, "")
    accuracy = forcereg.score("net.prototxt", photos, iterations=2).mean("accuracy")
    assert f"accuracy: {accuracy:.4f} here, {accuracy:.4f} by the file\n" in out and " on 4 batches" in out


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--solver", "solver.prototxt", "--batch", "3"),
         "its test batches of 'data' are [4, 3, 6, 5], which the file doesn't take; leave out --batch"),
        (("--solver", "solver.prototxt", "--no-verify"), "--no-verify runs nothing"),
        (("--iterations", "3"), "--iterations counts the test batches of --solver; give that too"),
    ],
)  # fmt: skip
def test_slips_about_test_batches(args: tuple[str, ...], expected: str, photos: Path, cli: Cli) -> None:
    code, _, err = cli("export", photos, "-o", "a.onnx", *args)
    assert code == 2 and expected in said(err) and not Path("a.onnx").exists()


def test_no_pixels(normed: Path, tmp_path: Path) -> None:
    with pytest.raises(forcereg.UsageError, match="--with-transform: no data layer of the net says scale or mean"):
        forcereg.export(normed, tmp_path / "a.onnx", with_transform=True)
    made = forcereg.export(normed, tmp_path / "a.onnx", rgb=True)
    assert made.preparation == {"data": "pixels from 0 to 255 (red, green, blue)"}
    assert nodes(tmp_path / "a.onnx")[0] == ("Gather", "data_prepared")


RECURRENT = """
layer { name: "x" type: "Input" top: "x" top: "cont"
  input_param { shape { dim: 3 dim: 2 dim: 4 } shape { dim: 3 dim: 2 } } }
layer { name: "lstm" type: "LSTM" bottom: "x" bottom: "cont" top: "lstm"
  recurrent_param { num_output: 5 weight_filler { type: "xavier" } } }
"""


def test_a_recurrent_net(tmp_path: Path, cli: Cli) -> None:
    """Its hidden state isn't carried on, which is said; nor is it by our net while both are compared."""
    snapshot_of(RECURRENT, tmp_path / "r.caffemodel.h5")
    code, out, err = cli("export", tmp_path / "r.caffemodel.h5", "-o", tmp_path / "r.onnx")
    assert (code, err) == (0, "")
    assert out.splitlines()[3:5] == [
        "each run begins with hidden state 0 in lstm; expose_hidden: true hands it on",
        "the batch is fixed: with another one the net layer 'lstm' needs axis 0 of its bottom to be of one size",
    ]


def test_our_net_begins_anew_for_each_batch() -> None:
    net = filled(RECURRENT)
    inputs = {"x": torch.randn(3, 2, 4), "cont": torch.ones(3, 2)}
    first, second = (recorded(net, inputs)["lstm", 0] for _ in range(2))
    assert torch.equal(first, second)
