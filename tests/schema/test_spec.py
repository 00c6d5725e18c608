"""From a parsed net to the layers that will be built: rules, in-place blobs, splits, outputs, loss weights."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from forcereg.errors import ForceregError
from forcereg.schema import TEST, TRAIN, NetState
from forcereg.schema.rules import net_state, phase_number
from forcereg.schema.spec import NetSpec, build_spec
from forcereg.schema.text import parse_net

INPUT = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }'


def layer(name: str, kind: str, bottoms: str, tops: str, more: str = "") -> str:
    """One layer; bottoms and tops as space-separated names."""
    blobs = [f'bottom: "{b}"' for b in bottoms.split()] + [f'top: "{t}"' for t in tops.split()]
    return f'layer {{ name: "{name}" type: "{kind}" {" ".join(blobs)} {more} }}'


def spec_of(*layers: str, state: Any = None, phase: int = TRAIN) -> NetSpec:
    return build_spec(parse_net("\n".join(layers), "net.prototxt"), state or net_state(phase))


def fails(*layers: str) -> str:
    with pytest.raises(ForceregError) as info:
        spec_of(*layers)
    assert "\n" not in str(info.value)
    return str(info.value)


def shown(spec: NetSpec) -> list[str]:
    return [f"{s.name}: {','.join(s.bottoms)} -> {','.join(s.tops)}" for s in spec.layers]


# -- include and exclude rules

RULES = [
    ("", {}, True),
    ("include {}", {}, True),
    ("exclude {}", {}, False),
    ("include { phase: TRAIN }", {}, True),
    ("include { phase: TEST }", {}, False),
    ("exclude { phase: TRAIN }", {}, False),
    ("exclude { phase: TEST }", {}, True),
    ("include { phase: TEST } include { phase: TRAIN }", {}, True),
    ("exclude { phase: TEST } exclude { phase: TRAIN }", {}, False),
    ("include { min_level: 2 }", {"level": 1}, False),
    ("include { min_level: 2 }", {"level": 2}, True),
    ("include { max_level: 2 }", {"level": 2}, True),
    ("include { max_level: 2 }", {"level": 3}, False),
    ("include { min_level: 1 max_level: 2 }", {"level": 2}, True),
    ("include { min_level: 0 }", {"level": -1}, False),
    ('include { stage: "a" }', {}, False),
    ('include { stage: "a" }', {"stage": ["b", "a"]}, True),
    ('include { stage: "a" stage: "b" }', {"stage": ["a"]}, False),
    ('include { stage: "a" stage: "b" }', {"stage": ["a", "b"]}, True),
    ('include { stage: "a" } include { stage: "b" }', {"stage": ["b"]}, True),
    ('include { not_stage: "a" }', {"stage": ["a"]}, False),
    ('include { not_stage: "a" }', {"stage": ["b"]}, True),
    ('include { not_stage: "a" not_stage: "b" }', {"stage": ["b"]}, False),
    ('include { phase: TRAIN stage: "a" not_stage: "b" }', {"stage": ["a", "b"]}, False),
    ('exclude { stage: "a" }', {"stage": ["a"]}, False),
    ("exclude { min_level: 3 }", {"level": 2}, True),
]


@pytest.mark.parametrize(("rules", "state", "kept"), RULES, ids=[f"{r or 'none'} | {s}" for r, s, _ in RULES])
def test_rules(rules: str, state: dict[str, Any], kept: bool) -> None:
    spec = spec_of(INPUT, layer("x", "ReLU", "data", "x", rules), state=NetState(phase=TRAIN, **state))
    assert ("x" in {s.name for s in spec.layers}) == kept


def test_both_kinds_of_rules_are_an_error_with_file_and_line() -> None:
    text = fails(INPUT, layer("x", "ReLU", "data", "x", "include { phase: TEST } exclude { phase: TEST }"))
    assert text.startswith("net.prototxt:2: layer 'x': ") and "include and exclude" in text


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(ForceregError, match=r"net\.prototxt: no layer is left in phase TEST"):
        spec_of(layer("x", "Input", "", "x", "include { phase: TRAIN }"), phase=TEST)


def test_state_merges_low_to_high() -> None:
    own = NetState(phase=TEST, level=1, stage=["net"])
    state = net_state(TRAIN, own, None, NetState(stage=["solver", ""]))
    assert (state.phase, state.level, list(state.stage)) == (TEST, 1, ["net", "solver"])
    state = net_state(TRAIN, own, NetState(phase=TRAIN, level=0))
    assert (state.phase, state.level, list(state.stage)) == (TRAIN, 0, ["net"])
    assert list(own.stage) == ["net"] and own.level == 1


@pytest.mark.parametrize("phase", ["TRAIN", "train", TRAIN])
def test_phase_names(phase: str | int) -> None:
    assert phase_number(phase) == TRAIN


def test_unknown_phase() -> None:
    with pytest.raises(ForceregError, match="unknown phase 'dev'; expected TRAIN or TEST"):
        phase_number("dev")


def test_a_layers_own_phase_wins_over_the_nets() -> None:
    spec = spec_of(INPUT, layer("a", "ReLU", "data", "a"), layer("b", "ReLU", "a", "b", "phase: TEST"))
    assert [s.phase for s in spec.layers] == [TRAIN, TRAIN, TEST]


# -- blobs


def test_in_place_layers_follow_each_other() -> None:
    spec = spec_of(
        INPUT,
        layer("ip", "InnerProduct", "data", "ip"),
        layer("relu", "ReLU", "ip", "ip"),
        layer("drop", "Dropout", "ip", "ip"),
        layer("out", "Sigmoid", "ip", "out"),
    )
    assert [s.type for s in spec.layers] == ["Input", "InnerProduct", "ReLU", "Dropout", "Sigmoid"]
    assert spec.outputs == ("out",)


def test_in_place_means_the_bottom_of_the_same_index() -> None:
    two = layer("in", "Input", "", "a b")
    assert spec_of(two, layer("both", "Test", "a b", "a b")).outputs == ("a", "b")
    text = fails(two, layer("crossed", "Test", "a b", "b a"))
    assert text.startswith("net.prototxt:2: layer 'crossed': top blob 'b' is already written by layer 'in'")


@pytest.mark.parametrize("tops", ["data", "x x"])
def test_a_blob_is_written_once(tops: str) -> None:
    text = fails(INPUT, layer("x", "Test", "", tops))
    assert "already written by layer" in text and text.startswith("net.prototxt:2: layer 'x'")


def test_a_blob_that_others_read_is_not_changed_in_place() -> None:
    text = fails(INPUT, layer("a", "Sigmoid", "data", "a"), layer("r", "ReLU", "data", "data"))
    assert text.startswith("net.prototxt:3: layer 'r': changes blob 'data' in place")


@pytest.mark.parametrize(
    ("bottom", "hint"),
    [("dat", 'did you mean "data"?'), ("late", "written only further down"), ("qqq", "known here are data")],
)
def test_unknown_bottom(bottom: str, hint: str) -> None:
    text = fails(INPUT, layer("x", "ReLU", bottom, "x"), layer("l", "ReLU", "data", "late"))
    assert text.startswith(f"net.prototxt:2: layer 'x': unknown bottom blob '{bottom}'") and hint in text


def test_a_layer_does_not_read_its_own_new_top() -> None:
    assert "unknown bottom blob 'x'" in fails(INPUT, layer("x", "ReLU", "x", "x"))


def test_outputs_are_sorted_by_name() -> None:
    spec = spec_of(
        layer("in", "Input", "", "z a m"),
        layer("c", "ReLU", "m", "Zz"),
        layer("b", "ReLU", "Zz", "b"),
    )
    assert spec.outputs == ("a", "b", "z")


def test_anonymous_loss_is_no_output() -> None:
    spec = spec_of(layer("in", "Input", "", "a b"), layer("l", "EuclideanLoss", "a b", ""))
    assert spec.outputs == ()
    assert spec.layers[-1].loss_weights == (1.0,) and len(spec.layers[-1].tops) == 1


def test_anonymous_losses_may_share_a_layer_name() -> None:
    losses = [layer("l", "EuclideanLoss", "a b", "") for _ in range(3)]
    spec = spec_of(layer("in", "Input", "", "a b"), *losses)
    assert spec.outputs == () and len({top for one in spec.layers[-3:] for top in one.tops}) == 3


def test_a_blob_in_parentheses_is_an_output() -> None:
    assert spec_of(layer("in", "Input", "", "a"), layer("l", "ReLU", "a", "(a)")).outputs == ("(a)",)


# -- splits


def test_split_names_order_and_consumers() -> None:
    spec = spec_of(
        INPUT,
        layer("ip", "InnerProduct", "data", "ip"),
        layer("relu", "ReLU", "ip", "ip"),
        layer("a", "ReLU", "ip", "a"),
        layer("b", "Eltwise", "ip ip", "b"),
    )
    assert shown(spec) == [
        "data:  -> data",
        "ip: data -> ip",
        "relu: ip -> ip",
        "ip_relu_0_split: ip -> ip_relu_0_split_0,ip_relu_0_split_1,ip_relu_0_split_2",
        "a: ip_relu_0_split_0 -> a",
        "b: ip_relu_0_split_1,ip_relu_0_split_2 -> b",
    ]
    assert spec.layers[3].type == "Split" and spec.layers[3].message.type == "Split"


def test_split_of_a_later_top_carries_its_index() -> None:
    spec = spec_of(
        layer("data", "Input", "", "data label"),
        layer("ip", "InnerProduct", "data", "ip"),
        layer("acc", "Accuracy", "ip label", "acc"),
        layer("loss", "SoftmaxWithLoss", "ip label", "loss"),
    )
    assert shown(spec)[1] == "label_data_1_split: label -> label_data_1_split_0,label_data_1_split_1"
    assert shown(spec)[3] == "ip_ip_0_split: ip -> ip_ip_0_split_0,ip_ip_0_split_1"
    assert spec.layers[-1].bottoms == ("ip_ip_0_split_1", "label_data_1_split_1")


def test_one_consumer_needs_no_split() -> None:
    spec = spec_of(INPUT, layer("a", "ReLU", "data", "a"), layer("b", "ReLU", "a", "b"))
    assert all(s.type != "Split" for s in spec.layers)


def test_explicit_weight_of_a_consumed_blob_moves_to_the_splits_first_top() -> None:
    spec = spec_of(
        INPUT,
        layer("ip", "InnerProduct", "data", "ip", "loss_weight: 0.5"),
        layer("out", "Sigmoid", "ip", "out"),
    )
    split, out = spec.layers[2:]
    assert spec.layers[1].loss_weights == (0.0,)
    assert split.tops == ("ip_ip_0_split_0", "ip_ip_0_split_1") and split.loss_weights == (0.5, 0.0)
    assert out.bottoms == ("ip_ip_0_split_1",)
    assert spec.outputs == ("ip_ip_0_split_0", "out")
    assert spec.warnings == ()


def test_explicit_zero_weight_is_no_use() -> None:
    spec = spec_of(INPUT, layer("ip", "InnerProduct", "data", "ip", "loss_weight: 0"), layer("o", "ReLU", "ip", "o"))
    assert [s.type for s in spec.layers] == ["Input", "InnerProduct", "ReLU"]


def test_weight_of_an_unconsumed_blob_stays() -> None:
    spec = spec_of(INPUT, layer("ip", "InnerProduct", "data", "ip", "loss_weight: 2"))
    assert spec.layers[-1].loss_weights == (2.0,) and spec.outputs == ("ip",)


# -- losses

TWO = layer("in", "Input", "", "a b")


@pytest.mark.parametrize(
    ("kind", "tops", "more", "weights"),
    [
        ("SoftmaxWithLoss", "l", "", (1.0,)),
        ("SoftmaxWithLoss", "l p", "", (1.0, 0.0)),
        ("SoftmaxWithLoss", "l p", "loss_weight: 3 loss_weight: 0", (3.0, 0.0)),
        ("EuclideanLoss", "l", "loss_weight: 0", (0.0,)),
        ("Accuracy", "l p", "", (0.0, 0.0)),
        ("Eltwise", "l", "loss_weight: 0.25", (0.25,)),
    ],
)
def test_loss_weights(kind: str, tops: str, more: str, weights: tuple[float, ...]) -> None:
    assert spec_of(TWO, layer("l", kind, "a b", tops, more)).layers[-1].loss_weights == weights


def test_wrong_number_of_loss_weights() -> None:
    text = fails(TWO, layer("l", "SoftmaxWithLoss", "a b", "l p", "loss_weight: 1"))
    assert text == "net.prototxt:2: layer 'l': has 1 loss_weight entries for 2 tops; give one per top"


def test_wrong_number_of_propagate_down() -> None:
    text = fails(TWO, layer("l", "Eltwise", "a b", "l", "propagate_down: true"))
    assert text.startswith("net.prototxt:2: layer 'l': has 1 propagate_down entries for 2 bottoms")


@pytest.mark.parametrize("weight", ["", "loss_weight: 1"], ids=["implicit", "explicit"])
def test_consumed_loss_warns(weight: str) -> None:
    spec = spec_of(TWO, layer("l", "EuclideanLoss", "a b", "l", weight), layer("p", "Sigmoid", "l", "p"))
    (warning,) = spec.warnings
    assert warning.startswith("net.prototxt:2: layer 'l': loss blob 'l' is read by another layer too")
    total = sum(weight for s in spec.layers for weight in s.loss_weights)
    assert total == 1


# -- the value


def test_spec_survives_pickle_and_deepcopy() -> None:
    more = "inner_product_param { num_output: 5 } loss_weight: 2"
    spec = spec_of(INPUT, layer("ip", "InnerProduct", "data", "ip", more), layer("r", "ReLU", "ip", "r"))
    for again in (pickle.loads(pickle.dumps(spec)), copy.deepcopy(spec)):
        assert again == spec
        assert again.layers[1].message.inner_product_param.num_output == 5


def test_spec_keeps_where_it_came_from() -> None:
    text = f"{INPUT}\n\n{layer('r', 'ReLU', 'data', 'r', 'include { phase: TRAIN }')}"
    spec = build_spec(parse_net(text, "dir/net.prototxt"), net_state(TEST))
    assert (spec.text, spec.filename, spec.phase) == (text, "dir/net.prototxt", TEST)
    assert str(spec.layers[0].fail("wrong")) == "dir/net.prototxt:1: layer 'data': wrong"
