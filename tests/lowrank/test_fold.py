"""BatchNorm folded into the layer before it: equal outputs in the test phase, and what can't be folded stays."""

from __future__ import annotations

import numpy as np
import pytest

from forcereg.lowrank.decompose import Selection, decompose
from forcereg.lowrank.fold import fold_bn
from forcereg.lowrank.ranks import by_error
from forcereg.net.load import load_net
from forcereg.net.module import Net
from forcereg.schema.text import parse_net, to_text
from tests.lowrank.test_rewrite import FILLERS, INPUT, arrays, convolution, fill, outputs_agree

Blobs = dict[str, dict[int, np.ndarray]]
BODY = f"num_output: 6 kernel_size: 3 {FILLERS}"


def norm(bottom: str, top: str, more: str = "", name: str = "bn") -> str:
    return f'layer {{ name: "{name}" type: "BatchNorm" bottom: "{bottom}" top: "{top}" {more} }}\n'


def scale(bottom: str, top: str, more: str = "bias_term: true", name: str = "sc") -> str:
    return f'layer {{ name: "{name}" type: "Scale" bottom: "{bottom}" top: "{top}" scale_param {{ {more} }} }}\n'


def relu(bottom: str, top: str, name: str = "relu") -> str:
    return f'layer {{ name: "{name}" type: "ReLU" bottom: "{bottom}" top: "{top}" }}\n'


def gathered(net: Net, seed: int = 0, factor: float = 7.5) -> Blobs:
    """The net's blobs with statistics and scales as training leaves them."""
    generator, weights = np.random.default_rng(seed), arrays(net)
    for spec in net.spec.layers:
        if spec.type == "BatchNorm":
            size = weights[spec.name][0].shape
            mean, variance = generator.normal(size=size), generator.uniform(0.05, 2, size)
            own = generator.normal(size=(len(weights[spec.name]) - 3, *size)) if len(weights[spec.name]) > 3 else ()
            values = (mean * factor, variance * factor, np.array([factor]), *own)
            weights[spec.name] = {index: value.astype(np.float32) for index, value in enumerate(values)}
        elif spec.type == "Scale":
            blobs = weights[spec.name]
            weights[spec.name] = {i: generator.normal(size=blob.shape).astype(np.float32) for i, blob in blobs.items()}
    return weights


SELF = "batch_norm_param { scale_bias: true eps: 0.1 }"
NETS = {
    "in-place": convolution(BODY) + norm("y", "y") + scale("y", "y") + relu("y", "y"),
    "new-tops": convolution(BODY) + norm("y", "n") + scale("n", "s") + relu("s", "s") + relu("s", "z", "again"),
    "no-scale": convolution(BODY) + norm("y", "y") + relu("y", "z"),
    "scale-without-bias": convolution(BODY) + norm("y", "y") + scale("y", "y", ""),
    "no-bias": convolution(BODY + " bias_term: false") + norm("y", "y") + scale("y", "y"),
    "eps": convolution(BODY) + norm("y", "y", "batch_norm_param { eps: 0.5 }") + scale("y", "y"),
    "group": convolution(BODY + " group: 2 stride: 2 pad: 1") + norm("y", "y") + scale("y", "y"),
    "scales-itself": convolution(BODY + " bias_term: false") + norm("y", "y", SELF) + relu("y", "y"),
    "scaled-twice": convolution(BODY) + norm("y", "y", SELF) + scale("y", "y"),
    "two": convolution(BODY)
    + norm("y", "y")
    + scale("y", "y")
    + convolution(BODY, name="d", bottom="y", top="z")
    + norm("z", "z", name="bn2")
    + scale("z", "z", name="sc2"),
    "fc": 'layer { name: "c" type: "InnerProduct" bottom: "x" top: "y" '
    f"inner_product_param {{ num_output: 5 {FILLERS} }} }}" + norm("y", "y") + scale("y", "y"),
    "fc-transposed": 'layer { name: "c" type: "InnerProduct" bottom: "x" top: "y" '
    f"inner_product_param {{ num_output: 5 transpose: true bias_term: false {FILLERS} }} }}" + norm("y", "y"),
}


@pytest.mark.parametrize("text", NETS.values(), ids=list(NETS))
def test_outputs_are_equal(text: str) -> None:
    file = parse_net(INPUT + text)
    old = load_net(file, seed=1)
    weights = gathered(old)
    fill(old, weights)
    net, blobs, folded = fold_bn(file.message, weights)
    assert not [layer.name for layer in net.layer if layer.type in ("BatchNorm", "Scale")]
    assert folded["c"][0] == "bn"
    new = load_net(to_text(net))
    assert set(blobs) == set(new.params)
    fill(new, blobs)
    outputs_agree(old, new)


def test_statistics_that_were_never_gathered() -> None:
    file = parse_net(INPUT + NETS["in-place"])
    old = load_net(file, seed=1)
    weights = gathered(old, factor=0)
    fill(old, weights)
    net, blobs, _ = fold_bn(file.message, weights)
    new = load_net(to_text(net))
    fill(new, blobs)
    outputs_agree(old, new)


STAY = {
    "read-elsewhere": convolution(BODY) + norm("y", "n") + relu("y", "z"),
    "relu-between": convolution(BODY) + relu("y", "y") + norm("y", "y"),
    "shared-weights": convolution(BODY, 'param { name: "w" }')
    + norm("y", "y")
    + convolution(BODY, 'param { name: "w" }', name="d", top="z"),
    "behind-pooling": convolution(BODY)
    + 'layer { name: "p" type: "Pooling" bottom: "y" top: "p" pooling_param { kernel_size: 2 } }'
    + norm("p", "p"),
    "of-the-batch": convolution(BODY) + norm("y", "y", "batch_norm_param { use_global_stats: false }"),
    "other-axis": 'layer { name: "c" type: "InnerProduct" bottom: "x" top: "y" '
    "inner_product_param { num_output: 5 axis: 2 } }" + norm("y", "y"),
}


@pytest.mark.parametrize("text", STAY.values(), ids=list(STAY))
def test_what_cannot_be_folded_stays(text: str) -> None:
    file = parse_net(INPUT + text)
    weights = gathered(load_net(file, seed=1))
    net, blobs, folded = fold_bn(file.message, weights)
    assert net == file.message and not folded
    assert set(blobs) == set(weights)


def test_what_makes_a_blob_that_is_kept_stays() -> None:
    file = parse_net(INPUT + NETS["new-tops"])
    weights = gathered(load_net(file, seed=1))
    folds = {kept: fold_bn(file.message, weights, (kept,))[2] for kept in ("y", "n", "s", "z")}
    assert folds == {"y": {}, "n": {"c": ["bn"]}, "s": {"c": ["bn", "sc"]}, "z": {"c": ["bn", "sc"]}}
    in_place = parse_net(INPUT + NETS["in-place"])
    assert fold_bn(in_place.message, gathered(load_net(in_place, seed=1)), ("y",))[2] == {"c": ["bn", "sc"]}


@pytest.mark.parametrize("more", ["axis: 0", "axis: 1 num_axes: 2"], ids=["axis", "num-axes"])
def test_a_scale_that_is_not_per_channel_stays(more: str) -> None:
    file = parse_net(INPUT + convolution(BODY) + norm("y", "y") + scale("y", "y", more))
    old = load_net(file, seed=1)
    weights = gathered(old)
    fill(old, weights)
    net, blobs, folded = fold_bn(file.message, weights)
    assert folded == {"c": ["bn"]}
    new = load_net(to_text(net))
    fill(new, blobs)
    outputs_agree(old, new)


def test_multipliers_of_the_new_bias_are_the_scales() -> None:
    text = convolution(BODY + " bias_term: false", "param { lr_mult: 3 }") + norm("y", "y")
    sc = scale("y", "y").replace("scale_param", "param { lr_mult: 5 } param { lr_mult: 7 decay_mult: 0 } scale_param")
    file = parse_net(INPUT + text + sc)
    net, _, _ = fold_bn(file.message, gathered(load_net(file, seed=1)))
    assert [spec.lr_mult for spec in net.layer[1].param] == [3, 7]


def test_multipliers_of_the_new_bias_are_the_shifts() -> None:
    entries = "".join(f"param {{ lr_mult: {lr} }} " for lr in (0, 0, 0, 5, 7))
    text = convolution(BODY + " bias_term: false", "param { lr_mult: 3 }") + norm("y", "y", entries + SELF)
    file = parse_net(INPUT + text)
    net, _, _ = fold_bn(file.message, gathered(load_net(file, seed=1)))
    assert [spec.lr_mult for spec in net.layer[1].param] == [3, 7]


def test_a_batch_norm_given_per_phase() -> None:
    two = "".join(
        norm("y", "y", f"include {{ phase: {phase} }} batch_norm_param {{ use_global_stats: {use} }}")
        for phase, use in (("TRAIN", "false"), ("TEST", "true"))
    )
    file = parse_net(INPUT + convolution(BODY) + two + scale("y", "y"))
    old = load_net(file, seed=1)
    weights = gathered(old)
    fill(old, weights)
    net, blobs, _ = fold_bn(file.message, weights)
    assert [layer.name for layer in net.layer] == ["in", "c"]
    new = load_net(to_text(net))
    fill(new, blobs)
    outputs_agree(old, new)


def test_folded_and_decomposed_at_once() -> None:
    file = parse_net(INPUT + NETS["two"])
    old = load_net(file, seed=1)
    weights = gathered(old)
    fill(old, weights)
    result = decompose(file, weights, by_error(0), selection=Selection(fold_bn=True))
    assert [layer.name for layer in result.net.layer[1:]] == ["c_lowrank", "c_linear", "d_lowrank", "d_linear"]
    new = load_net(to_text(result.net))
    fill(new, result.weights)
    outputs_agree(old, new)
