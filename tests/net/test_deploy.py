"""Nets for use: which layers they keep, what they end in, and that they compute what the TEST net does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forcereg.errors import ForceregError
from forcereg.net.deploy import Deployed, deploy
from forcereg.net.deploy.make import plain
from forcereg.net.load import load_net
from forcereg.net.module import Net
from forcereg.schema.text import read_net, to_text

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MODELS, EXAMPLES = CONFIGS / "models", CONFIGS / "examples"
PAIRS = {
    "alexnet": (MODELS / "alexnet/train_val.prototxt", MODELS / "alexnet/deploy.prototxt"),
    "caffenet": (MODELS / "caffenet/train_val.prototxt", MODELS / "caffenet/deploy.prototxt"),
    "googlenet": (MODELS / "googlenet/train_val.prototxt", MODELS / "googlenet/deploy.prototxt"),
    "resnet50": (MODELS / "resnet50/train_val.prototxt", MODELS / "resnet50/deploy.prototxt"),
    "vgg16": (MODELS / "vgg16/train_val.prototxt", MODELS / "vgg16/deploy.prototxt"),
    "lenet": (EXAMPLES / "mnist/lenet_train_test.prototxt", EXAMPLES / "mnist/lenet.prototxt"),
    "lenet_force": (EXAMPLES / "mnist/lenet_train_test_force.prototxt", EXAMPLES / "mnist/lenet.prototxt"),
    "cifar10_full": (EXAMPLES / "cifar10/cifar10_full_train_test.prototxt", EXAMPLES / "cifar10/cifar10_full.prototxt"),
    "resnet20": (
        EXAMPLES / "cifar10/cifar10_resnet20_train_test.prototxt",
        EXAMPLES / "cifar10/cifar10_resnet20.prototxt",
    ),
}


def bare(layer: Any) -> Any:
    """A layer as nets for use have it, without fillers: some of the shipped ones keep those that change nothing."""
    made = plain(layer)
    for param in (made.convolution_param, made.inner_product_param):
        for field in ("weight_filler", "bias_filler"):
            if param.HasField(field):
                param.ClearField(field)
    return made


@pytest.mark.parametrize("name", PAIRS)
def test_shipped_nets_become_the_shipped_nets_for_use(name: str) -> None:
    """Every layer, its settings, names and order, and the shapes of the input."""
    trained, use = PAIRS[name]
    expected = read_net(use).message
    shape = list(expected.layer[0].input_param.shape[0].dim)
    found = deploy(trained, input_shapes={"data": shape})
    assert found.net.name == expected.name
    assert [bare(layer) for layer in found.net.layer] == [bare(layer) for layer in expected.layer]
    assert found.inputs == {"data": tuple(shape)}
    assert found.outputs == {"prob": (shape[0], 1000 if use.parent.parent == MODELS else 10)}
    assert found.auxiliary == (("loss1/loss", "loss2/loss") if name == "googlenet" else ())


def filled(net: Net, seed: int = 0) -> dict[str, dict[int, np.ndarray]]:
    """Random weights for a net, none of them 0 or negative where BatchNorm needs others."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for blobs in net.params.values():
            for blob in blobs:
                blob.copy_(torch.rand(blob.shape, generator=generator) * 0.2 - (0 if blob.dim() < 2 else 0.1))
    return {name: {index: blob.detach() for index, blob in enumerate(blobs)} for name, blobs in net.params.items()}


def equal_to_the_test_net(trained: str, data: dict[str, torch.Tensor], found: Deployed, blobs: dict[str, str]) -> None:
    """Each output of the net for use, bit for bit: `blobs` gives the TEST net's blob and what is done to it."""
    shapes = {name: tuple(value.shape) for name, value in data.items()}
    old = load_net(trained, input_shapes=shapes)
    weights = filled(old)
    new = load_net(found.net)
    with torch.no_grad():
        for name, held in new.params.items():
            for index, blob in enumerate(held):
                blob.copy_(weights[name][index])
        fed = {name: value for name, value in data.items() if name in found.inputs}
        before, after = old(data, blobs=list(blobs.values())), new(fed, blobs=list(blobs.values()))
    assert list(new.spec.outputs) == sorted(blobs)
    for output, blob in blobs.items():
        assert torch.equal(after[blob], before[blob]) and before[blob].count_nonzero()
        assert torch.equal(after[output], before[blob] if output == blob else before[blob].softmax(1))


@pytest.mark.parametrize(
    ("name", "shape", "blob", "replaced"),
    [
        pytest.param("lenet", (2, 1, 28, 28), "ip2", {}, id="lenet"),
        pytest.param("cifar10_full", (2, 3, 32, 32), "ip1", {}, id="cifar10_full"),
        pytest.param("resnet20", (2, 3, 32, 32), "ip", {}, id="resnet20"),
        pytest.param("alexnet", (2, 3, 99, 99), "fc8", {"num_output: 4096": "num_output: 8"}, id="alexnet"),
        pytest.param("googlenet", (1, 3, 224, 224), "loss3/classifier", {}, id="googlenet"),
        pytest.param("resnet50", (1, 3, 224, 224), "fc1000", {}, id="resnet50"),
    ],
)
def test_outputs_are_the_test_nets(name: str, shape: tuple[int, ...], blob: str, replaced: dict[str, str]) -> None:
    text = PAIRS[name][0].read_text()
    for old, new in replaced.items():
        text = text.replace(old, new)
    found = deploy(text, batch=None, input_shapes={"data": shape})
    data = {"data": torch.rand(shape, generator=torch.Generator().manual_seed(1)), "label": torch.zeros(shape[0])}
    equal_to_the_test_net(text, data, found, {"prob": blob})


# -- small nets of every kind

DATA = (
    'layer { name: "d" type: "DummyData" top: "data" %s dummy_data_param { shape { dim: 4 dim: 3 dim: 6 dim: 6 } %s } }'
)
SHAPE = "shape { %s }"


def data(*more: str) -> str:
    """A data layer: `data` (4, 3, 6, 6), and blobs given as "name=4,1"."""
    tops = " ".join(f'top: "{one.partition("=")[0]}"' for one in more)
    sizes = (one.partition("=")[2].split(",") for one in more)
    return DATA % (tops, " ".join(SHAPE % " ".join(f"dim: {size}" for size in each) for each in sizes))


def layer(type: str, bottoms: str, tops: str = "", more: str = "", name: str = "") -> str:
    blobs = " ".join([*(f'bottom: "{one}"' for one in bottoms.split()), *(f'top: "{one}"' for one in tops.split())])
    return f'layer {{ name: "{name or tops.split()[0]}" type: "{type}" {blobs} {more} }}\n'


def ip(bottom: str, top: str, more: str = "", outputs: int = 5) -> str:
    return layer("InnerProduct", bottom, top, f"{more} inner_product_param {{ num_output: {outputs} }}")


def conv(bottom: str, top: str, outputs: int = 5) -> str:
    return layer("Convolution", bottom, top, f"convolution_param {{ num_output: {outputs} kernel_size: 1 }}")


TRAIN, TEST = "include { phase: TRAIN }", "include { phase: TEST }"
LABELLED = data("label=4")
CASES: dict[str, tuple[str, list[str], list[str], list[str]]] = {
    # name: (net, inputs, layers behind them as "name: type bottoms -> tops", outputs)
    "softmax": (
        LABELLED + ip("data", "s") + layer("SoftmaxWithLoss", "s label", "loss") + layer("Accuracy", "s label", "acc"),
        ["data"],
        ["s: InnerProduct data -> s", "prob: Softmax s -> prob"],
        ["prob"],
    ),
    "a-loss-without-a-top": (
        LABELLED + ip("data", "s") + layer("SoftmaxWithLoss", "s label", name="loss"),
        ["data"],
        ["s: InnerProduct data -> s", "prob: Softmax s -> prob"],
        ["prob"],
    ),
    "the-name-is-taken": (
        LABELLED + ip("data", "prob") + layer("SoftmaxWithLoss", "prob label", "loss"),
        ["data"],
        ["prob: InnerProduct data -> prob", "loss_prob: Softmax prob -> loss_prob"],
        ["loss_prob"],
    ),
    "a-probability-layer-is-there": (
        LABELLED
        + ip("data", "s")
        + layer("Softmax", "s", "p")
        + layer("SoftmaxWithLoss", "s label", "loss")
        + layer("Accuracy", "p label", "acc"),
        ["data"],
        ["s: InnerProduct data -> s", "p: Softmax s -> p"],
        ["p"],
    ),
    "probabilities-by-the-loss": (
        LABELLED
        + ip("data", "s")
        + layer("SoftmaxWithLoss", "s label", "loss p")
        + layer("ArgMax", "p", "best")
        + layer("Accuracy", "p label", "acc"),
        ["data"],
        ["s: InnerProduct data -> s", "prob: Softmax s -> p", "best: ArgMax p -> best"],
        ["best"],
    ),
    "axis-and-ignored-labels": (
        data("label=4,6,6")
        + conv("data", "s")
        + layer("SoftmaxWithLoss", "s label", "loss", "softmax_param { axis: 1 } loss_param { ignore_label: 255 }"),
        ["data"],
        ["s: Convolution data -> s", "prob: Softmax s -> prob"],
        ["prob"],
    ),
    "two-tasks": (
        data("a=4", "b=4")
        + ip("data", "s")
        + ip("data", "t")
        + layer("SoftmaxWithLoss", "s a", "la")
        + layer("SoftmaxWithLoss", "t b", "lb", "loss_weight: 0.1"),
        ["data"],
        ["s: InnerProduct data -> s", "t: InnerProduct data -> t", "la_prob: Softmax s -> la_prob",
         "lb_prob: Softmax t -> lb_prob"],
        ["la_prob", "lb_prob"],
    ),
    "auxiliary": (
        LABELLED
        + ip("data", "h")
        + ip("h", "aux")
        + layer("SoftmaxWithLoss", "aux label", "l1", "loss_weight: 0.3")
        + ip("h", "s")
        + layer("SoftmaxWithLoss", "s label", "l2"),
        ["data"],
        ["h: InnerProduct data -> h", "s: InnerProduct h -> s", "prob: Softmax s -> prob"],
        ["prob"],
    ),
    "parts-of-labels": (
        data("labels=4,2")
        + layer("Slice", "labels", "a b")
        + layer("Silence", "b", name="hush")
        + ip("data", "s")
        + layer("SoftmaxWithLoss", "s a", "loss"),
        ["data"],
        ["s: InnerProduct data -> s", "prob: Softmax s -> prob"],
        ["prob"],
    ),
    "sigmoid": (
        data("t=4,5") + ip("data", "s") + layer("SigmoidCrossEntropyLoss", "s t", "loss"),
        ["data"],
        ["s: InnerProduct data -> s", "prob: Sigmoid s -> prob"],
        ["prob"],
    ),
    "hinge": (
        LABELLED + ip("data", "s") + layer("HingeLoss", "s label", "loss"),
        ["data"],
        ["s: InnerProduct data -> s"],
        ["s"],
    ),
    "logistic": (
        LABELLED
        + ip("data", "s")
        + layer("Softmax", "s", "p")
        + layer("MultinomialLogisticLoss", "p label", "loss"),
        ["data"],
        ["s: InnerProduct data -> s", "p: Softmax s -> p"],
        ["p"],
    ),
    "infogain": (
        data("label=4", "h=5,5") + ip("data", "s") + layer("InfogainLoss", "s label h", "loss"),
        ["data"],
        ["s: InnerProduct data -> s", "prob: Softmax s -> prob"],
        ["prob"],
    ),
    "regression": (
        data("t=4,5") + ip("data", "s") + layer("EuclideanLoss", "t s", "loss"),
        ["data"],
        ["s: InnerProduct data -> s"],
        ["s"],
    ),
    "autoencoder": (
        data()
        + layer("Flatten", "data", "flat")
        + ip("flat", "code", outputs=2)
        + ip("code", "back", outputs=108)
        + layer("SigmoidCrossEntropyLoss", "back flat", "entropy")
        + layer("Sigmoid", "back", "image")
        + layer("EuclideanLoss", "image flat", "distance"),
        ["data"],
        ["flat: Flatten data -> flat", "code: InnerProduct flat -> code", "back: InnerProduct code -> back",
         "image: Sigmoid back -> image"],
        ["image"],
    ),
    "siamese": (
        data("sim=4")
        + layer("Slice", "data", "a b extra")
        + ip("a", "fa", 'param { name: "w" } param { name: "v" }')
        + ip("b", "fb", 'param { name: "w" } param { name: "v" }')
        + layer("ContrastiveLoss", "fa fb sim", "loss"),
        ["data"],
        ["a: Slice data -> a b extra", "fa: InnerProduct a -> fa", "fb: InnerProduct b -> fb",
         "silence: Silence extra -> "],
        ["fa", "fb"],
    ),
    "a-loss-of-layers": (
        data("t=4,5")
        + ip("data", "s")
        + layer("Eltwise", "s t", "diff", "eltwise_param { coeff: 1 coeff: -1 }")
        + layer("Reduction", "diff", "total", "loss_weight: 1 reduction_param { operation: SUMSQ }"),
        ["data"],
        ["s: InnerProduct data -> s"],
        ["s"],
    ),
    "masked": (
        data("t=4,5", "mask=4,5")
        + ip("data", "s")
        + layer("Eltwise", "s mask", "sm", "eltwise_param { operation: PROD }")
        + layer("Eltwise", "t mask", "tm", "eltwise_param { operation: PROD }")
        + layer("EuclideanLoss", "sm tm", "loss"),
        ["data"],
        ["s: InnerProduct data -> s"],
        ["s"],
    ),
    "a-sum-of-losses": (
        LABELLED
        + ip("data", "s")
        + layer("SoftmaxWithLoss", "s label", "l", "loss_weight: 0")
        + layer("Power", "l", "l2", "loss_weight: 2"),
        ["data"],
        ["s: InnerProduct data -> s", "prob: Softmax s -> prob"],
        ["prob"],
    ),
    "accuracy-alone": (
        LABELLED + ip("data", "s") + layer("Accuracy", "s label", "acc"),
        ["data"],
        ["s: InnerProduct data -> s"],
        ["s"],
    ),
    "the-loss-is-for-training": (
        LABELLED
        + ip("data", "s")
        + layer("Accuracy", "s label", "acc", TEST)
        + layer("SoftmaxWithLoss", "s label", "loss", TRAIN),
        ["data"],
        ["s: InnerProduct data -> s", "prob: Softmax s -> prob"],
        ["prob"],
    ),
    "features-to-a-file": (
        LABELLED
        + ip("data", "f")
        + layer("HDF5Output", "f label", "", 'hdf5_output_param { file_name: "f.h5" }', "out"),
        ["data"],
        ["f: InnerProduct data -> f"],
        ["f"],
    ),
    "other-outputs-stay": (
        LABELLED
        + ip("data", "s")
        + layer("SoftmaxWithLoss", "s label", "loss")
        + layer("ArgMax", "s", "best"),
        ["data"],
        ["s: InnerProduct data -> s", "prob: Softmax s -> prob", "best: ArgMax s -> best"],
        ["best", "prob"],
    ),
    "in-place": (
        LABELLED
        + ip("data", "s")
        + layer("ReLU", "s", "s", name="r")
        + layer("Dropout", "s", "s", name="drop")
        + ip("s", "o")
        + layer("SoftmaxWithLoss", "o label", "loss"),
        ["data"],
        ["s: InnerProduct data -> s", "r: ReLU s -> s", "drop: Dropout s -> s", "o: InnerProduct s -> o",
         "prob: Softmax o -> prob"],
        ["prob"],
    ),
    "training-layers-stay-out": (
        LABELLED
        + ip("data", "s")
        + layer("Power", "s", "noise", TRAIN)
        + layer("SoftmaxWithLoss", "s label", "loss")
        + layer("SoftmaxWithLoss", "noise label", "l2", TRAIN),
        ["data"],
        ["s: InnerProduct data -> s", "prob: Softmax s -> prob"],
        ["prob"],
    ),
    "several-inputs": (
        data("info=4,5", "label=4")
        + ip("data", "s")
        + layer("Eltwise", "s info", "both")
        + layer("SoftmaxWithLoss", "both label", "loss"),
        ["data", "info"],
        ["s: InnerProduct data -> s", "both: Eltwise s info -> both", "prob: Softmax both -> prob"],
        ["prob"],
    ),
    "an-inputs-name-is-a-layers": (
        LABELLED
        + layer("InnerProduct", "data", "s", "inner_product_param { num_output: 5 }", name="data")
        + layer("SoftmaxWithLoss", "s label", "loss"),
        ["data"],
        ["data: InnerProduct data -> s", "prob: Softmax s -> prob"],
        ["prob"],
    ),
    "for-use-already": (
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 4 dim: 3 } } }'
        + ip("x", "s")
        + layer("Softmax", "s", "prob"),
        ["x"],
        ["s: InnerProduct x -> s", "prob: Softmax s -> prob"],
        ["prob"],
    ),
}  # fmt: skip


def said(layer: Any) -> str:
    return f"{layer.name}: {layer.type} {' '.join(layer.bottom)} -> {' '.join(layer.top)}"


@pytest.mark.parametrize("name", CASES)
def test_what_is_kept(name: str) -> None:
    text, inputs, layers, outputs = CASES[name]
    found = deploy(text)
    fed = [layer for layer in found.net.layer if layer.type == "Input"]
    assert [layer.top[0] for layer in fed] == inputs == list(found.inputs)
    assert [said(layer) for layer in found.net.layer if layer.type != "Input"] == layers
    net = load_net(found.net)
    assert list(net.spec.outputs) == outputs == sorted(found.outputs)
    assert {name: net.shapes[name] for name in outputs} == found.outputs
    assert {shape[0] for shape in found.inputs.values()} == ({4} if name == "for-use-already" else {1})
    for layer in found.net.layer:
        assert not (layer.include or layer.exclude or layer.loss_weight or layer.propagate_down)


@pytest.mark.parametrize("name", [name for name in CASES if name != "infogain"])
def test_small_nets_compute_what_the_test_net_does(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # HDF5Output writes there
    text, _, _, outputs = CASES[name]
    found = deploy(text, batch=4)
    old, new = load_net(text, seed=1), load_net(found.net, seed=2)
    generator = torch.Generator().manual_seed(3)
    fed = {name: torch.rand(old.shapes[name], generator=generator) for name in old.inputs}
    with torch.no_grad():
        for layer, blobs in new.params.items():
            for index, blob in enumerate(blobs):
                blob.copy_(old.params[layer][index])
        shared = [name for name in old.shapes if name in new.shapes and name not in old.inputs]
        before, after = old(fed, blobs=shared), new({name: fed[name] for name in found.inputs}, blobs=shared)
    assert shared and all(torch.equal(before[name], after[name]) for name in shared)
    assert set(after) >= set(outputs)


def test_settings_of_the_loss_go_with_it() -> None:
    softmax = layer("SoftmaxWithLoss", "s label", "loss", "softmax_param { axis: 2 } loss_param { ignore_label: 9 }")
    infogain = layer("InfogainLoss", "s label h", "loss", "infogain_loss_param { axis: 2 }")
    for loss, more in ((softmax, ""), (infogain, "h=6,6")):
        found = deploy(data("label=4,3,6", *filter(None, [more])) + conv("data", "s", 3) + loss)
        assert found.net.layer[-1].type == "Softmax" and found.net.layer[-1].softmax_param.axis == 2
        assert not found.net.layer[-1].HasField("loss_param")


def test_what_only_training_needs_goes() -> None:
    body = (
        "param { lr_mult: 2 } inner_product_param { num_output: 5 "
        'weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.5 } }'
    )
    text = LABELLED + layer("InnerProduct", "data", "s", f"propagate_down: false phase: TRAIN {body} {TEST}")
    found = deploy(text + layer("SoftmaxWithLoss", "s label", "loss")).net.layer[1]
    assert to_text(found.inner_product_param) == 'num_output: 5\nbias_filler {\n  type: "constant"\n  value: 0.5\n}\n'
    assert [field.name for field, _ in found.ListFields()] == ["name", "type", "bottom", "top", "inner_product_param"]


def test_names_of_shared_weights_stay() -> None:
    found = deploy(CASES["siamese"][0]).net
    assert [[param.name for param in layer.param] for layer in found.layer if layer.param] == [["w", "v"], ["w", "v"]]


def test_outputs_by_name() -> None:
    text = CASES["auxiliary"][0]
    found = deploy(text, outputs=["aux", "h"])
    assert [said(layer) for layer in found.net.layer[1:]] == [
        "h: InnerProduct data -> h",
        "aux: InnerProduct h -> aux",
    ]
    assert list(found.outputs) == ["aux", "h"] and found.auxiliary == ()
    probabilities = deploy(CASES["probabilities-by-the-loss"][0], outputs=["p"])
    assert said(probabilities.net.layer[-1]) == "prob: Softmax s -> p"


def test_batches() -> None:
    text = CASES["softmax"][0]
    assert deploy(text).inputs == {"data": (1, 3, 6, 6)}
    assert deploy(text, batch=7).outputs == {"prob": (7, 5)}
    assert deploy(text, input_shapes={"data": (9, 3, 2, 2)}).inputs == {"data": (9, 3, 2, 2)}
    assert deploy(text, batch=7, input_shapes={"data": (9, 3, 2, 2)}).inputs == {"data": (9, 3, 2, 2)}
    assert deploy(CASES["for-use-already"][0], batch=2).inputs == {"x": (2, 3)}
    halves = "slice_param { axis: 0 }"
    both = data() + layer("Slice", "data", "a b", halves) + ip("a", "x") + ip("b", "y")
    assert deploy(both).inputs == {"data": (4, 3, 6, 6)}  # which 1 would not do
    with pytest.raises(ForceregError, match="'a'"):
        deploy(both, batch=1)


def test_axis_0_of_recurrent_nets_is_time() -> None:
    text = """
        layer { name: "d" type: "DummyData" top: "x" top: "cont" top: "label"
          dummy_data_param { shape { dim: 7 dim: 2 dim: 3 } shape { dim: 7 dim: 2 } shape { dim: 7 dim: 2 } } }
        layer { name: "lstm" type: "LSTM" bottom: "x" bottom: "cont" top: "h" recurrent_param { num_output: 4 } }
        layer { name: "loss" type: "SoftmaxWithLoss" bottom: "h" bottom: "label" softmax_param { axis: 2 } }
    """
    found = deploy(text)
    assert found.inputs == {"x": (7, 2, 3), "cont": (7, 2)} and found.outputs == {"prob": (7, 2, 4)}


@pytest.mark.parametrize(
    ("kind", "body", "channels", "told"),
    [
        pytest.param("Data", "", 1, "pixels from 0 to 255", id="plain"),
        pytest.param("Data", "transform_param { scale: 0.017 mean_value: 10 }", 1,
                     "pixels from 0 to 255, minus 10, times 0.017", id="scale"),
        pytest.param("Data", 'transform_param { crop_size: 6 mean_file: "m.binaryproto" }', 3,
                     "pixels from 0 to 255 (colours in the order of the data: blue, green, red of image files), "
                     "6x6 from the centre, minus the mean image m.binaryproto at the same place", id="crop"),
        pytest.param("ImageData", "image_data_param { new_height: 6 new_width: 7 } transform_param { mean_value: 1 "
                     "mean_value: 2.5 mean_value: 3 }", 3,
                     "pixels from 0 to 255 (blue, green, red), resized to 6x7, minus 1, 2.5, 3", id="images"),
        pytest.param("WindowData", "window_data_param { crop_size: 6 scale: 2 }", 3,
                     "pixels from 0 to 255 (blue, green, red), windows as 6x6, times 2", id="windows"),
        pytest.param("HDF5Data", "", 3, "", id="hdf5"),
    ],
)  # fmt: skip
def test_what_callers_have_to_do(kind: str, body: str, channels: int, told: str) -> None:
    text = layer(kind, "", "data label", body) + ip("data", "s") + layer("SoftmaxWithLoss", "s label", "loss")
    found = deploy(text, input_shapes={"data": (2, channels, 6, 6)})
    assert found.preparation == ({"data": told} if told else {})
    assert found.outputs == {"prob": (2, 5)}


ABSENT = layer("Data", "", "data label", 'data_param { source: "gone" batch_size: 8 } transform_param { crop_size: 6 }')
ABSENT += ip("data", "s") + layer("SoftmaxWithLoss", "s label", "loss")


def test_shapes_that_are_known_do_where_the_source_is_absent() -> None:
    found = deploy(ABSENT, known_shapes={"data": [64, 1, 6, 6], "label": [64]})
    assert found.inputs == {"data": (1, 1, 6, 6)}


DETECTION = (
    layer("Data", "", "data label", 'data_param { source: "gone" batch_size: 8 }')
    + conv("data", "c")
    + layer("PriorBox", "c data", "p", "prior_box_param { min_size: 3 }")
    + layer("DetectionOutput", "c p", "det", "detection_output_param { num_classes: 21 }")
    + layer("DetectionEvaluate", "det label", "score", "detection_evaluate_param { num_classes: 21 }")
)


def test_layers_that_are_not_known_here_stay_as_they_are() -> None:
    """SSD's, for example: nothing of them is needed to take labels and scores away."""
    with pytest.warns(UserWarning, match="shapes are not looked at: layer 'p': unknown layer type 'PriorBox'"):
        found = deploy(DETECTION, input_shapes={"data": (1, 3, 9, 9)})
    assert [said(layer) for layer in found.net.layer[1:]] == [
        "c: Convolution data -> c",
        "p: PriorBox c data -> p",
        "det: DetectionOutput c p -> det",
    ]
    assert found.outputs == {"det": None} and found.inputs == {"data": (1, 3, 9, 9)}
    assert "prior_box_param {\n  min_size: 3\n}" in to_text(found.net.layer[2])


def test_python_layers_that_may_not_run_stay_as_they_are() -> None:
    text = LABELLED + ip("data", "s") + layer("Python", "s", "t", 'python_param { module: "m" layer: "L" }')
    with pytest.warns(UserWarning, match="layer 't' runs code that the net names, which --allow-python-layers permits"):
        found = deploy(text + layer("SoftmaxWithLoss", "t label", "loss"))
    assert [layer.name for layer in found.net.layer] == ["data", "s", "t", "prob"] and found.outputs == {"prob": None}


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        pytest.param(ABSENT, {}, r"gone.*; or give its shape: --input-shape data=1,C,6,6", id="no-source"),
        pytest.param(
            CASES["softmax"][0], {"outputs": ["ss"]}, "the TEST net has no blob 'ss'; did you mean \"s\"", id="no-blob"
        ),
        pytest.param(CASES["softmax"][0], {"outputs": ["loss"]}, "'loss' is a loss or a score", id="loss"),
        pytest.param(CASES["softmax"][0], {"outputs": ["acc"]}, "'acc' is a loss or a score", id="score"),
        pytest.param(
            CASES["softmax"][0],
            {"input_shapes": {"label": [4]}},
            "for 'label', which the net for use lacks; its inputs are data",
            id="shape-of-a-label",
        ),
        pytest.param(data(), {}, "the TEST net has nothing to give", id="nothing"),
        pytest.param(CASES["softmax"][0].replace('"data"', '"dat"', 1), {}, "unknown bottom blob 'data'", id="wrong"),
        pytest.param(LABELLED + ip("data", "s", TRAIN), {"stages": ["x"]}, "nothing to give", id="another-phase"),
    ],
)
def test_what_cannot_be(text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ForceregError, match=message):
        deploy(text, **options)
