"""Rewritten nets compute what the originals do, and keep what they said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format

from forcereg.cost import lowrank_speedup
from forcereg.errors import ForceregError, UsageError
from forcereg.lowrank.decompose import LowrankNet, Selection, decompose
from forcereg.lowrank.ranks import by_error, by_list
from forcereg.lowrank.rewrite import AXES, set_field
from forcereg.net.load import load_net, net_shapes
from forcereg.net.module import Net
from forcereg.schema import ConvolutionParameter
from forcereg.schema.text import NetFile, parse_net, read_net, to_text

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4 dim: 9 dim: 8 } } }\n'

CONVOLUTIONS = {
    "plain": "num_output: 6 kernel_size: 3",
    "stride_pad": "num_output: 6 kernel_size: 3 stride: 2 pad: 1",
    "rectangular": "num_output: 6 kernel_h: 3 kernel_w: 2 stride_h: 1 stride_w: 2 pad_h: 2 pad_w: 0",
    "dilation": "num_output: 6 kernel_size: 3 dilation: 2",
    "group": "num_output: 6 kernel_size: 3 pad: 1 group: 2",
    "no_bias": "num_output: 6 kernel_size: 3 bias_term: false",
    "1x1": "num_output: 3 kernel_size: 1",
    "1x1_stride": "num_output: 7 kernel_size: 1 stride: 2",
    "one_filter": "num_output: 1 kernel_size: 3",
}


def convolution(body: str, more: str = "", name: str = "c", bottom: str = "x", top: str = "y") -> str:
    blobs = f'bottom: "{bottom}" top: "{top}"'
    return f'layer {{ name: "{name}" type: "Convolution" {blobs} {more} convolution_param {{ {body} }} }}\n'


FILLERS = 'weight_filler { type: "gaussian" std: 0.3 } bias_filler { type: "uniform" min: -1 max: 1 }'


def arrays(net: Net) -> dict[str, dict[int, np.ndarray]]:
    """The net's blobs as a snapshot holds them."""
    return {
        name: {index: blob.detach().numpy() for index, blob in enumerate(blobs) if f"{name}/{index}" not in net.shared}
        for name, blobs in net.params.items()
    }


def fill(net: Net, weights: dict[str, dict[int, np.ndarray]]) -> None:
    with torch.no_grad():
        for name, blobs in weights.items():
            for index, values in blobs.items():
                net.params[name][index].copy_(torch.from_numpy(values))


def exact(file: NetFile, net: Net) -> LowrankNet:
    return decompose(file, arrays(net), by_error(0))


def outputs_agree(old: Net, new: Net, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = {name: torch.rand(old.shapes[name], generator=generator) for name in old.inputs}
    with torch.no_grad():
        expected, found = old(batch), new(batch)
    assert list(found) == list(expected)
    for name, blob in expected.items():
        assert (found[name] - blob).abs().max() <= 1e-5 * max(1, float(blob.abs().max())), name


@pytest.mark.parametrize("body", CONVOLUTIONS.values(), ids=list(CONVOLUTIONS))
def test_outputs_are_equal_at_error_zero(body: str) -> None:
    relu = 'layer { name: "r" type: "ReLU" bottom: "y" top: "y" }'  # in place: goes on working on y
    file = parse_net(INPUT + convolution(f"{body} {FILLERS}") + relu)
    old = load_net(file, seed=1)
    result = exact(file, old)
    new = load_net(to_text(result.net))
    fill(new, result.weights)
    outputs_agree(old, new)
    assert (result.layers[0].rank, result.layers[0].error) == (result.layers[0].full_rank, 0)


@pytest.mark.parametrize(
    "path", ["examples/mnist/lenet.prototxt", "examples/cifar10/cifar10_full.prototxt"], ids=["lenet", "cifar10"]
)
def test_shipped_nets_are_equal_at_error_zero(path: str) -> None:
    file = read_net(CONFIGS / path)
    old = load_net(file, seed=1)
    result = exact(file, old)
    new = load_net(to_text(result.net))
    fill(new, result.weights)
    outputs_agree(old, new)


def test_two_bottoms_and_two_tops() -> None:
    both = 'bottom: "x" bottom: "x2" top: "y" top: "y2"'
    layer = (
        f'layer {{ name: "c" type: "Convolution" {both} convolution_param {{ {CONVOLUTIONS["plain"]} {FILLERS} }} }}'
    )
    second = INPUT.replace('"in"', '"in2"').replace('"x"', '"x2"')
    file = parse_net(INPUT + second + layer)
    old = load_net(file, seed=2)
    result = exact(file, old)
    new = load_net(to_text(result.net))
    fill(new, result.weights)
    outputs_agree(old, new)


def test_what_each_layer_keeps() -> None:
    body = "num_output: 6 kernel_h: 3 kernel_w: 2 stride: 2 pad: 1 dilation: 1 group: 2 engine: CAFFE " + FILLERS
    specs = "param { lr_mult: 3 decay_mult: 2 force_mult: 1 force_view: BOTH } param { lr_mult: 4 decay_mult: 0 }"
    file = parse_net(INPUT + convolution(body, specs + " include { phase: TEST } propagate_down: false loss_weight: 2"))
    result = decompose(file, arrays(load_net(file)), by_list([4]))
    _, lowrank, linear = result.net.layer
    expected = """
        name: "c_lowrank" type: "Convolution" bottom: "x" top: "y_lowrank" include { phase: TEST }
        propagate_down: false param { lr_mult: 3 decay_mult: 2 force_mult: 1 force_view: BOTH }
        convolution_param { num_output: 4 kernel_h: 3 kernel_w: 2 stride: 2 pad: 1 dilation: 1 group: 2
            engine: CAFFE bias_term: false weight_filler { type: "gaussian" std: 0.3 } }"""
    assert lowrank == text_format.Parse(expected, type(lowrank)())
    expected = f"""
        name: "c_linear" type: "Convolution" bottom: "y_lowrank" top: "y" include {{ phase: TEST }}
        loss_weight: 2 {specs} convolution_param {{ num_output: 6 kernel_size: 1 group: 2 engine: CAFFE {FILLERS} }}"""
    assert linear == text_format.Parse(expected, type(linear)())
    shapes = {name: {i: blob.shape for i, blob in blobs.items()} for name, blobs in result.weights.items()}
    assert shapes["c_lowrank"] == {0: (4, 2, 3, 2)}
    assert shapes["c_linear"] == {0: (6, 2, 1, 1), 1: (6,)}


@pytest.mark.parametrize(
    ("body", "windows"),
    [
        pytest.param("kernel_size: 3", ["kernel_h: 3 kernel_w: 1", "kernel_h: 1 kernel_w: 3"], id="kernel"),
        pytest.param(
            "kernel_size: 3 pad: 1 stride: 2",
            ["kernel_h: 3 kernel_w: 1 pad_h: 1 pad_w: 0 stride_h: 2 stride_w: 1",
             "kernel_h: 1 kernel_w: 3 pad_h: 0 pad_w: 1 stride_h: 1 stride_w: 2"],
            id="all",
        ),
        pytest.param(
            "kernel_h: 3 kernel_w: 2 pad_w: 1 dilation: 2",
            ["kernel_h: 3 kernel_w: 1 dilation: 2 dilation: 1",
             "kernel_h: 1 kernel_w: 2 pad_h: 0 pad_w: 1 dilation: 1 dilation: 2"],
            id="dilation-has-no-names",
        ),
        pytest.param("kernel_size: 1 kernel_size: 1", ["kernel_size: 1", "kernel_size: 1"], id="equal"),
    ],
)  # fmt: skip
def test_windows_of_two_axes_are_written_by_name(body: str, windows: list[str]) -> None:
    """Readers of prototxts that take one kernel_size, pad and stride know `_h` and `_w`."""
    file = parse_net(INPUT + convolution(f"num_output: 6 {body}"))
    made = decompose(file, arrays(load_net(file, seed=1)), by_error(0), selection=Selection("vh")).net
    fields = [name for field, names in AXES.items() for name in (field, *names)] + ["dilation"]
    for layer, window in zip(made.layer[1:], windows, strict=True):
        param = layer.convolution_param
        expected = text_format.Parse(window, type(param)())
        for name in {field.name for field in param.DESCRIPTOR.fields}.difference(fields):
            param.ClearField(name)
        assert param == expected


def test_windows_of_three_axes_have_a_value_for_each() -> None:
    param = ConvolutionParameter()
    set_field(param, "kernel_size", [3, 1, 1])
    set_field(param, "pad", [1, 0, 0])
    assert param == text_format.Parse(
        "kernel_size: 3 kernel_size: 1 kernel_size: 1 pad: 1 pad: 0 pad: 0", type(param)()
    )


def test_train_and_test_phases_and_other_layers_stay() -> None:
    file = read_net(CONFIGS / "examples/mnist/lenet_train_test_force.prototxt")
    shapes = {"data": (3, 1, 28, 28), "label": (3,)}
    old = load_net(file, input_shapes=shapes)
    result = decompose(file, arrays(old), by_list([3, 7]))
    names = [layer.name for layer in result.net.layer]
    assert names[:4] == ["mnist", "mnist", "conv1_lowrank", "conv1_linear"]
    kept = {"conv1_lowrank", "conv1_linear", "conv2_lowrank", "conv2_linear"}
    untouched = [layer for layer in file.message.layer if layer.type != "Convolution"]
    assert [layer for layer in result.net.layer if layer.name not in kept] == untouched
    for phase in ("TRAIN", "TEST"):
        net = load_net(to_text(result.net), phase=phase, input_shapes=shapes)
        assert {learnable.force_mult for learnable in net.learnable if learnable.blob.dim() == 4} == {1.0}
    assert not {name for name in result.weights if "split" in name}


def test_a_layer_given_per_phase_is_replaced_in_both() -> None:
    two = [convolution(CONVOLUTIONS["plain"], f"include {{ phase: {phase} }}") for phase in ("TRAIN", "TEST")]
    file = parse_net(INPUT + "".join(two))
    result = exact(file, load_net(file))
    assert [layer.name for layer in result.net.layer[1:]] == ["c_lowrank", "c_linear"] * 2
    assert len(result.layers) == 1


def test_a_name_that_nobody_shares_is_dropped() -> None:
    specs = 'param { name: "w" lr_mult: 2 } param { name: "b" }'
    file = parse_net(INPUT + convolution(CONVOLUTIONS["plain"] + " " + FILLERS, specs))
    old = load_net(file, seed=3)
    result = exact(file, old)
    assert [spec.name for layer in result.net.layer for spec in layer.param] == ["", "", "b"]
    new = load_net(to_text(result.net))
    fill(new, result.weights)
    outputs_agree(old, new)


SECOND = {"name": "d", "top": "z"}


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        pytest.param(
            convolution("num_output: 4 kernel_size: 3", 'param { name: "w" }')
            + convolution("num_output: 4 kernel_size: 3", 'param { name: "w" }', **SECOND),
            "c",
            "shared with layer 'd'",
            id="shared-owner",
        ),
        pytest.param(
            convolution("num_output: 4 kernel_size: 3", 'param { name: "w" }')
            + convolution("num_output: 4 kernel_size: 3", 'param { name: "w" }', **SECOND),
            "d",
            "shared with layer 'c'",
            id="shared-borrower",
        ),
        pytest.param(
            convolution("num_output: 4 kernel_size: 3")
            + convolution("num_output: 4 kernel_size: 3", name="c_linear", top="z"),
            "c",
            "has a layer 'c_linear' already",
            id="layer-name",
        ),
        pytest.param(
            convolution("num_output: 4 kernel_size: 3")
            + convolution("num_output: 4 kernel_size: 3", name="d", top="y_lowrank"),
            "c",
            "has a blob 'y_lowrank' already",
            id="blob-name",
        ),
    ],
)
def test_layers_that_stay_whole(text: str, name: str, reason: str) -> None:
    file = parse_net(INPUT + text)
    old = load_net(file, seed=4)
    result = exact(file, old)
    assert reason in result.skipped[name]
    new = load_net(to_text(result.net))
    fill(new, result.weights)
    outputs_agree(old, new)


def test_without_weights_a_layer_stays_whole() -> None:
    file = parse_net(INPUT + convolution(CONVOLUTIONS["plain"]))
    result = decompose(file, {}, by_error(0.1))
    assert result.skipped == {"c": "the snapshot has no weights for it"} and result.layers == ()
    assert result.net == file.message


@pytest.mark.parametrize(
    ("weight", "criterion", "message"),
    [
        pytest.param(np.ones((5, 4, 3, 3)), by_error(0), "<text>:2: layer 'c': .*num_output is 6", id="shape"),
        pytest.param(np.full((6, 4, 3, 3), np.nan), by_error(0), "<text>:2: layer 'c': .*NaN", id="nan"),
        pytest.param(np.ones((6, 4, 3, 3)), by_list([7]), "layer 'c': .*rank is 7; expected 1 to 6", id="rank"),
        pytest.param(np.ones((6, 4, 3, 3)), by_list([1, 2]), "2 ranks given; the net has 1 layers", id="count"),
    ],
)
def test_what_does_not_fit(weight: np.ndarray, criterion, message: str) -> None:
    file = parse_net(INPUT + convolution(CONVOLUTIONS["plain"]))
    with pytest.raises(ForceregError, match=message):
        decompose(file, {"c": {0: weight.astype(np.float32)}}, criterion)


@pytest.mark.parametrize("error", [-0.1, 1.1, float("nan")])
def test_error_bounds_out_of_range(error: float) -> None:
    with pytest.raises(UsageError, match="expected 0 to 1"):
        by_error(error)


@pytest.mark.parametrize(
    ("size", "rank", "speedup"),
    [
        pytest.param((384, 256, 3, 3, 1), 184, 1.79, id="conv3"),
        pytest.param((384, 192, 3, 3, 2), 201, 1.72, id="conv4"),
        pytest.param((256, 192, 3, 3, 2), 146, 1.63, id="conv5"),
        pytest.param((384, 256, 3, 3, 1), 124, 2.65, id="conv3-fine"),
        pytest.param((384, 192, 3, 3, 2), 106, 3.26, id="conv4-fine"),
        pytest.param((256, 192, 3, 3, 2), 129, 1.85, id="conv5-fine"),
    ],
)
def test_speedups_of_the_papers_alexnet(size: tuple[int, int, int, int, int], rank: int, speedup: float) -> None:
    assert round(lowrank_speedup(*size, rank=rank), 2) == speedup


def test_macs_are_per_image() -> None:
    file = parse_net(INPUT + convolution("num_output: 6 kernel_size: 3 stride: 2 group: 2"))
    weights = arrays(load_net(file, seed=5))
    result = decompose(file, weights, by_list([4]), net_shapes(file))
    (layer,) = result.layers
    positions = 4 * 3
    assert layer.macs_before == positions * 6 * 2 * 9
    assert layer.macs_after == positions * (4 * 2 * 9 + 6 * 2)
    assert layer.speedup == result.totals.speedup == layer.macs_before / layer.macs_after


def test_macs_are_unknown_without_shapes() -> None:
    data = 'layer { name: "d" type: "Data" top: "x" data_param { source: "nowhere" batch_size: 2 backend: LMDB } }\n'
    file = parse_net(data + convolution(CONVOLUTIONS["plain"]))
    assert net_shapes(file) is None
    weights = {"c": {0: np.ones((6, 4, 3, 3), np.float32)}}
    result = decompose(file, weights, by_error(0.1), None)
    assert (result.layers[0].macs_before, result.totals.macs_after) == (None, None)
    assert result.layers[0].speedup == pytest.approx(6 * 36 / (36 + 6))
    assert net_shapes(file, {"x": [2, 4, 9, 8]})["y"] == (2, 6, 7, 6)
