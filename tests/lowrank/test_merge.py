"""Decomposing what is decomposed already: the factors are composed, the chain gets shorter and not longer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from google.protobuf import text_format

from forcereg.lowrank.decompose import LowrankNet, Selection, decompose
from forcereg.lowrank.merge import find_chains, merge, written_chains
from forcereg.lowrank.ranks import Whole, by_error, by_list
from forcereg.lowrank.rewrite import AXES
from forcereg.net.load import load_net, net_shapes
from forcereg.schema.text import NetFile, parse_net, to_text
from tests.lowrank.test_rewrite import CONVOLUTIONS, FILLERS, INPUT, arrays, convolution, fill, outputs_agree

METHODS = ("pca", "svd", "vh", "tucker2", "cp", "kmeans")
WINDOWS = {name: CONVOLUTIONS[name] for name in ("plain", "stride_pad", "rectangular", "dilation", "group", "no_bias")}
FC = 'layer { name: "c" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 5 %s %s } }'


def net_of(result: LowrankNet) -> NetFile:
    return parse_net(to_text(result.net))


def names(file: NetFile) -> list[str]:
    return [layer.name for layer in file.message.layer]


@pytest.mark.parametrize("body", WINDOWS.values(), ids=list(WINDOWS))
@pytest.mark.parametrize("method", METHODS)
def test_a_chain_at_full_rank_equals_its_layer_and_merges_to_it(method: str, body: str) -> None:
    specs = "param { lr_mult: 3 decay_mult: 2 force_mult: 1 force_view: BOTH }"
    specs += "" if "bias_term: false" in body else " param { lr_mult: 4 decay_mult: 0 }"
    file = parse_net(INPUT + convolution(f"{body} {FILLERS}", specs))
    weights = arrays(load_net(file, seed=1))
    result = decompose(file, weights, by_error(0), selection=Selection(method))
    split = load_net(to_text(result.net))
    fill(split, result.weights)
    outputs_agree(load_net(file, seed=1), split)
    chain = find_chains(result.net, result.weights)
    assert [one.name for one in chain] == ["c"] and written_chains(result.net) == chain
    net, whole = merge(result.net, result.weights, chain)
    assert net.layer[0] == file.message.layer[0]
    again, first = net.layer[1], file.message.layer[1]
    assert list(again.param) == list(first.param)
    assert list(again.bottom) == list(first.bottom) and list(again.top) == list(first.top)
    assert np.abs(whole["c"][0] - weights["c"][0]).max() <= 1e-6
    assert sorted(whole["c"]) == sorted(weights["c"])
    old, new = load_net(file), load_net(to_text(net))
    fill(old, weights)
    fill(new, whole)
    outputs_agree(old, new)


@pytest.mark.parametrize("second", METHODS)
@pytest.mark.parametrize("first", METHODS)
def test_again_with_any_method_gives_one_chain(first: str, second: str) -> None:
    file = parse_net(INPUT + convolution(f"{WINDOWS['stride_pad']} {FILLERS}"))
    once = decompose(file, arrays(load_net(file, seed=1)), by_list([3]), selection=Selection(first))
    twice = decompose(net_of(once), once.weights, by_error(0), selection=Selection(second))
    alone = decompose(file, arrays(load_net(file, seed=1)), by_error(0), selection=Selection(second))
    assert names(net_of(twice)) == names(net_of(alone))
    old, new = load_net(to_text(once.net)), load_net(to_text(twice.net))
    fill(old, once.weights)
    fill(new, twice.weights)
    outputs_agree(old, new)


@pytest.mark.parametrize("method", ["pca", "svd"])
def test_a_pair_is_never_wider_than_it_was(method: str) -> None:
    file = parse_net(INPUT + convolution(f"{WINDOWS['group']} {FILLERS}"))
    once = decompose(file, arrays(load_net(file, seed=1)), by_list([4]), selection=Selection(method))
    (layer,) = decompose(net_of(once), once.weights, by_error(0), net_shapes(file), Selection(method)).layers
    assert (layer.full_rank, layer.rank) == (4, 4)
    assert layer.macs_before == layer.macs_after == once_macs(once, file)


def once_macs(once: LowrankNet, file: NetFile) -> int | None:
    shapes = net_shapes(file)
    weights = once.weights
    _, channels, height, width = (shapes or {})["y"]
    assert channels == 6
    return height * width * (weights["c_lowrank"][0].size + weights["c_linear"][0].size)


def test_the_error_of_the_second_time_is_the_composed_weights_own() -> None:
    file = parse_net(INPUT + convolution(f"{WINDOWS['plain']} {FILLERS}"))
    weights = arrays(load_net(file, seed=1))
    once = decompose(file, weights, by_list([4]))
    twice = decompose(net_of(once), once.weights, by_list([2]))
    _, composed = merge(once.net, once.weights, find_chains(once.net, once.weights))
    singular = np.linalg.svd(composed["c"][0].reshape(6, -1))[1] ** 2
    assert twice.layers[0].error == pytest.approx(singular[2:].sum() / singular.sum(), rel=1e-6)


def test_a_chain_that_stays_whole_stays_a_chain() -> None:
    file = parse_net(INPUT + convolution(f"{WINDOWS['plain']} {FILLERS}"))
    once = decompose(file, arrays(load_net(file, seed=1)), by_list([4]))
    twice = decompose(net_of(once), once.weights, lambda candidates: {"c": Whole("as asked")})
    assert twice.net == net_of(once).message and twice.skipped == {"c": "as asked"}
    assert set(twice.weights) == set(once.weights)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("axis", [1, 2, -1, -2])
def test_fully_connected_layers(axis: int, transpose: bool) -> None:
    file = parse_net(INPUT + FC % (f"axis: {axis}", f"transpose: {str(transpose).lower()} {FILLERS}"))
    old = load_net(file, seed=1)
    result = decompose(file, arrays(old), by_error(0), net_shapes(file), Selection(fc=True))
    new = load_net(to_text(result.net))
    fill(new, result.weights)
    outputs_agree(old, new)
    assert [one.parts for one in written_chains(result.net)] == [("c_lowrank", "c_linear")]
    assert result.layers[0].macs_before == old.built[-1][1].macs // 2  # type: ignore[union-attr]
    macs = sum(module.macs for spec, module in new.built if spec.type == "InnerProduct" and module is not None)
    assert result.layers[0].macs_after == macs // 2
    again = decompose(net_of(result), result.weights, by_error(0), selection=Selection(fc=True))
    assert names(net_of(again)) == names(net_of(result))
    fill(new, again.weights)
    outputs_agree(old, new)


def relu(bottom: str, top: str, name: str = "r") -> str:
    return f'layer {{ name: "{name}" type: "ReLU" bottom: "{bottom}" top: "{top}" }}\n'


BODY = f"num_output: 4 kernel_size: 3 {FILLERS}"
LINEAR = f"num_output: 6 kernel_size: 1 {FILLERS}"
PLAIN = {"name": "c_lowrank", "top": "m"}
NEXT = {"name": "c_linear", "bottom": "m", "top": "y"}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            convolution(BODY + " bias_term: false", **PLAIN) + relu("m", "m") + convolution(LINEAR, **NEXT), id="relu"
        ),
        pytest.param(convolution(BODY, **PLAIN) + convolution(LINEAR, **NEXT), id="bias"),
        pytest.param(
            convolution(BODY + " bias_term: false", **PLAIN) + convolution(LINEAR, **NEXT) + relu("m", "z"), id="read"
        ),
        pytest.param(
            convolution(BODY + " bias_term: false", **PLAIN) + convolution("num_output: 6 kernel_size: 3", **NEXT),
            id="two-windows",
        ),
        pytest.param(
            convolution(BODY + " bias_term: false", **PLAIN)
            + convolution(LINEAR, **NEXT)
            + convolution(BODY, name="c", bottom="y", top="z"),
            id="name-taken",
        ),
    ],
)
def test_layers_that_only_look_like_a_chain_are_left(text: str) -> None:
    file = parse_net(INPUT + text)
    assert not find_chains(file.message, arrays(load_net(file, seed=1)))
    assert not written_chains(file.message)


@pytest.mark.parametrize(
    "window", ["kernel_size: 3 kernel_size: 3 pad: 1 pad: 1 pad: 1", "kernel_h: 3 stride: [1, 1, 1]"]
)
def test_windows_of_no_number_of_axes_are_no_chain(window: str) -> None:
    text = convolution(f"num_output: 4 {window} bias_term: false", **PLAIN) + convolution(LINEAR, **NEXT)
    assert not written_chains(parse_net(INPUT + text).message)


def test_three_axes() -> None:
    body = "num_output: 4 kernel_size: [3, 1, 1] pad: 1 bias_term: false"
    text = convolution(body, **PLAIN) + convolution(LINEAR, **NEXT)
    assert [one.name for one in written_chains(parse_net(INPUT + text).message)] == ["c"]


def test_both_phases_of_a_chain() -> None:
    two = [convolution(f"{WINDOWS['plain']} {FILLERS}", f"include {{ phase: {phase} }}") for phase in ("TRAIN", "TEST")]
    file = parse_net(INPUT + "".join(two))
    once = decompose(file, arrays(load_net(file, seed=1)), by_list([4]))
    net, _ = merge(once.net, once.weights, find_chains(once.net, once.weights))
    assert [layer.name for layer in net.layer] == ["in", "c", "c"]
    assert [layer.include[0].phase for layer in net.layer[1:]] == [0, 1]
    for phase in ("TRAIN", "TEST"):
        load_net(to_text(net), phase=phase)


def test_the_merged_layer_reads_as_it_was_written() -> None:
    body = "num_output: 6 kernel_h: 3 kernel_w: 2 stride: 2 pad: 1 group: 2"
    file = parse_net(INPUT + convolution(body))
    once = decompose(file, arrays(load_net(file)), by_list([4]), selection=Selection("vh"))
    net, _ = merge(once.net, once.weights, find_chains(once.net, once.weights))
    param = net.layer[1].convolution_param
    assert param == text_format.Parse(body, type(param)())


@pytest.mark.parametrize("body", WINDOWS.values(), ids=list(WINDOWS))
@pytest.mark.parametrize("method", ["vh", "cp", "tucker2"])
def test_chains_written_with_a_value_for_each_axis_are_known_too(method: str, body: str) -> None:
    """As earlier versions wrote them: kernel_size, pad and stride several times."""
    file = parse_net(INPUT + convolution(f"{body} {FILLERS}"))
    result = decompose(file, arrays(load_net(file, seed=1)), by_error(0), selection=Selection(method))
    old = type(result.net)()
    old.CopyFrom(result.net)
    for layer in old.layer[1:]:
        param = layer.convolution_param
        for field, names in AXES.items():
            if values := [getattr(param, name) for name in names if param.HasField(name)]:
                getattr(param, field)[:] = values
                for name in names:
                    param.ClearField(name)
    assert load_net(to_text(old)).shapes == load_net(to_text(result.net)).shapes
    merged, _ = merge(old, result.weights, find_chains(old, result.weights))
    assert merged == merge(result.net, result.weights, find_chains(result.net, result.weights))[0]
    assert [layer.name for layer in merged.layer] == ["in", "c"]


def test_composed_in_float64() -> None:
    """A direction a thousand times smaller than the rest survives composing."""
    file = parse_net(INPUT + convolution(f"{WINDOWS['no_bias']} {FILLERS}"))
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)).numpy()
    weight[5] *= 1e-4
    once = decompose(file, {"c": {0: weight}}, by_error(0))
    _, whole = merge(once.net, once.weights, find_chains(once.net, once.weights))
    assert np.abs(whole["c"][0][5] - weight[5]).max() <= 1e-3 * np.abs(weight[5]).max()
