"""Grouped convolutions and parallel layers compute the same, and turn into each other."""

from __future__ import annotations

import pytest

from forcereg.lowrank.groups import merge_groups, split_groups
from forcereg.net.load import load_net
from forcereg.schema.text import parse_net, to_text
from tests.lowrank.test_rewrite import FILLERS, INPUT, arrays, convolution, fill, outputs_agree

BODY = f"num_output: 8 kernel_size: 3 {FILLERS}"
RELU = 'layer { name: "r" type: "ReLU" bottom: "y" top: "y" }\n'
CASES = {
    "two": convolution(f"{BODY} group: 2 stride: 2 pad: 1") + RELU,
    "four": convolution(f"{BODY} group: 4") + RELU,
    "no-bias": convolution(f"{BODY} group: 2 bias_term: false"),
    "kept-fields": convolution(
        f"{BODY} group: 2",
        "param { lr_mult: 3 force_mult: 1 force_view: BOTH } param { lr_mult: 4 } include { phase: TEST }",
    ),
    "two-layers": convolution(f"{BODY} group: 2") + convolution(f"{BODY} group: 4", name="d", bottom="y", top="z"),
}


@pytest.mark.parametrize("text", CASES.values(), ids=list(CASES))
def test_split_and_merged_again(text: str) -> None:
    file = parse_net(INPUT + text)
    old = load_net(file, seed=1)
    net, blobs, names = split_groups(file.message, arrays(old))
    assert names[0] == "c"
    assert all(layer.convolution_param.group == 1 for layer in net.layer if layer.type == "Convolution")
    new = load_net(to_text(net))
    assert {name for name, values in blobs.items() if values} == {name for name, values in new.params.items() if values}
    fill(new, blobs)
    outputs_agree(old, new)
    again, weights, merged = merge_groups(net, blobs)
    assert merged == names
    assert again == file.message
    back = load_net(to_text(again))
    fill(back, weights)
    outputs_agree(old, back)
    kept = [(weights[name][index], blob) for name, blobs_of in arrays(old).items() for index, blob in blobs_of.items()]
    assert kept and all((found == blob).all() for found, blob in kept)


def test_only_the_layers_asked_for() -> None:
    file = parse_net(INPUT + CASES["two-layers"])
    net, _, names = split_groups(file.message, arrays(load_net(file)), only=["d"])
    assert names == ["d"] and net.layer[1] == file.message.layer[1]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(convolution(BODY), id="one-group"),
        pytest.param(
            convolution(f"{BODY} group: 2", 'param { name: "w" }')
            + convolution(f"{BODY} group: 2", 'param { name: "w" }', name="d", top="z"),
            id="shared",
        ),
        pytest.param(convolution(f"{BODY} group: 2") + convolution(BODY, name="c_group0", top="z"), id="name-taken"),
    ],
)
def test_what_cannot_be_split_stays(text: str) -> None:
    file = parse_net(INPUT + text)
    net, _, names = split_groups(file.message, arrays(load_net(file)))
    assert not names and net == file.message


def parallel(second: str = BODY, slices: str = "", order: str = 'bottom: "a" bottom: "b"', more: str = "") -> str:
    return (
        f'layer {{ name: "s" type: "Slice" bottom: "x" top: "p" top: "q" slice_param {{ axis: 1 {slices} }} }}\n'
        + convolution(BODY, name="left", bottom="p", top="a")
        + convolution(second, name="right", bottom="q", top="b")
        + f'layer {{ name: "j" type: "Concat" {order} top: "y" }}\n{more}'
    )


def test_parallel_layers_of_any_name_merge() -> None:
    file = parse_net(INPUT + parallel())
    old = load_net(file, seed=1)
    net, blobs, names = merge_groups(file.message, arrays(old))
    assert names == ["y"]
    assert (net.layer[1].convolution_param.num_output, net.layer[1].convolution_param.group) == (16, 2)
    new = load_net(to_text(net))
    fill(new, blobs)
    outputs_agree(old, new)


def test_layers_of_one_name_for_each_phase_do_not_hinder() -> None:
    """As the data layers of a net for training and testing."""
    seen = "".join(
        f'layer {{ name: "seen" type: "Silence" bottom: "y" include {{ phase: {phase} }} }}\n'
        for phase in ("TRAIN", "TEST")
    )
    file = parse_net(INPUT + CASES["two"] + seen)
    net, blobs, names = split_groups(file.message, arrays(load_net(file)))
    again, _, merged = merge_groups(net, blobs)
    assert merged == names == ["c"] and again == file.message


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(parallel(BODY + " pad: 1").replace("pad: 1", "stride: 1 dilation: 1"), id="other-fields"),
        pytest.param(parallel(BODY.replace("8", "4", 1)), id="other-size"),
        pytest.param(parallel(slices="slice_point: 2"), id="slice-point"),
        pytest.param(parallel(order='bottom: "b" bottom: "a"'), id="order"),
        pytest.param(parallel(more='layer { name: "r" type: "ReLU" bottom: "a" top: "z" }'), id="read-elsewhere"),
        pytest.param(parallel().replace('bottom: "q"', 'bottom: "p"'), id="same-slice"),
        pytest.param(
            parallel(more=convolution(BODY, "include { phase: TRAIN }", name="left", top="z")), id="one-name-twice"
        ),
    ],
)
def test_what_only_looks_parallel_stays(text: str) -> None:
    file = parse_net(INPUT + text)
    net, _, names = merge_groups(file.message, arrays(load_net(file)))
    assert not names and net == file.message
