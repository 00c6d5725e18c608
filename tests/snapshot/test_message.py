"""The net inside a binary model is what Caffe would have put there."""

from __future__ import annotations

from typing import Any

import pytest

from forcereg.schema import NetParameter
from forcereg.schema.rules import net_state
from forcereg.schema.spec import build_spec
from forcereg.schema.text import net_from_message, parse_net, parse_text
from forcereg.snapshot import net_message

HEAD = 'layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 2 dim: 3 } } } '


def written(text: str) -> Any:
    return net_message(build_spec(parse_net(text), net_state(0)))


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        (
            'layer { name: "d" type: "Dropout" bottom: "x" top: "d" include { phase: TRAIN } }'
            'layer { name: "t" type: "TanH" bottom: "y" top: "t" phase: TEST }'
            'layer { name: "e" type: "TanH" bottom: "y" top: "e" include { phase: TEST } }',
            'layer { name: "d" type: "Dropout" bottom: "x" top: "d" phase: TRAIN include { phase: TRAIN } }'
            'layer { name: "t" type: "TanH" bottom: "y" top: "t" phase: TEST }',
        ),
        (
            'layer { name: "n" type: "BatchNorm" bottom: "x" top: "n" }'
            'layer { name: "m" type: "BatchNorm" bottom: "y" top: "m" param { name: "a" lr_mult: 3 } }',
            'layer { name: "n" type: "BatchNorm" bottom: "x" top: "n" phase: TRAIN '
            "param { lr_mult: 0 } param { lr_mult: 0 } param { lr_mult: 0 } }"
            'layer { name: "m" type: "BatchNorm" bottom: "y" top: "m" phase: TRAIN '
            'param { name: "a" lr_mult: 0 } param { lr_mult: 0 } param { lr_mult: 0 } }',
        ),
        (
            'layer { name: "l" type: "EuclideanLoss" bottom: "x" bottom: "y" }',
            'layer { name: "l" type: "EuclideanLoss" bottom: "x" bottom: "y" loss_weight: 1 phase: TRAIN }',
        ),
        (
            'layer { name: "l" type: "SoftmaxWithLoss" bottom: "x" bottom: "y" top: "l" top: "p" }',
            'layer { name: "l" type: "SoftmaxWithLoss" bottom: "x" bottom: "y" top: "l" top: "p" '
            "loss_weight: 1 loss_weight: 0 phase: TRAIN }",
        ),
        (
            'layer { name: "l" type: "EuclideanLoss" bottom: "x" bottom: "y" top: "l" loss_weight: 2 }'
            'layer { name: "s" type: "Power" bottom: "l" top: "s" }',
            'layer { name: "l" type: "EuclideanLoss" bottom: "x" bottom: "y" top: "l" loss_weight: 0 phase: TRAIN }'
            'layer { name: "l_l_0_split" type: "Split" bottom: "l" top: "l_l_0_split_0" top: "l_l_0_split_1" '
            "loss_weight: 2 loss_weight: 0 phase: TRAIN }"
            'layer { name: "s" type: "Power" bottom: "l_l_0_split_1" top: "s" phase: TRAIN }',
        ),
    ],
    ids=["phases", "batchnorm", "loss-without-top", "two-tops", "split-takes-the-weight"],
)
def test_layers_are_as_caffe_builds_them(text: str, layers: str) -> None:
    expected = parse_text(f'name: "net" {HEAD.replace("type", "phase: TRAIN type")} {layers}', NetParameter)
    assert written(f'name: "net" {HEAD} {text}') == expected


def test_nothing_but_name_and_layers_is_written() -> None:
    """Splits are there, weights are not, and building it again gives the same net."""
    text = f"""
    force_backward: true debug_info: true state {{ level: 2 }} {HEAD}
    layer {{
      name: "a" type: "InnerProduct" bottom: "x" top: "a" inner_product_param {{ num_output: 3 }} blobs {{ data: 1 }}
    }}
    layer {{ name: "b" type: "Eltwise" bottom: "a" bottom: "a" top: "b" }}
    layer {{ name: "l" type: "EuclideanLoss" bottom: "b" bottom: "y" top: "l" }}
    """
    net = written(text)
    assert [field.name for field, _ in net.ListFields()] == ["layer"]
    assert [layer.name for layer in net.layer] == ["in", "a", "a_a_0_split", "b", "l"]
    assert list(net.layer[3].bottom) == ["a_a_0_split_0", "a_a_0_split_1"]
    assert not any(layer.blobs for layer in net.layer)
    again = build_spec(net_from_message(net, "again"), net_state(0))
    assert net_message(again) == net
