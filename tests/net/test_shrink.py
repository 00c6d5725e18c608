"""Shrunk nets compute what they did, and have no channel left that adds nothing."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forcereg.net.deploy.make import unread
from forcereg.net.shrink.windows import Axis, window
from forcereg.schema.text import net_from_message, parse_net, read_net
from tests.conftest import TOP
from tests.long_forms import Rounds
from tests.net.shrinking import Blobs, agrees, conv, inputs, ip, layer, shrunk, sizes, trained, with_zeros, zeroed

X = inputs(x=(2, 4, 9, 8))
K3, PAD = "kernel_size: 3", "kernel_size: 3 pad: 1"
A = conv("a", "x", "a", 6, PAD) + layer("ReLU", "ra", "a", "a")
END_ = conv("z", "e", "z", 4, K3) + ip("f", "z", "f", 3)
BN = "scale_param { bias_term: true }"


def relu(blob: str) -> str:
    return layer("ReLU", f"relu_{blob}", blob, blob)


def norm(blob: str, more: str = "") -> str:
    scale = layer("Scale", f"scale_{blob}", blob, blob, BN)
    return layer("BatchNorm", f"bn_{blob}", blob, blob, more) + ("" if "scale_bias" in more else scale)


NETS = {
    "chain": A
    + layer("Pooling", "p", "a", "p", "pooling_param { kernel_size: 2 stride: 2 }")
    + conv("b", "p", "e", 7, PAD)
    + relu("e")
    + END_,
    "batch-norm": conv("a", "x", "a", 6, "kernel_size: 5 pad: 2 bias_term: false")
    + norm("a")
    + layer("PReLU", "p", "a", "a")
    + conv("b", "a", "e", 7, "kernel_size: 1 bias_term: false")
    + norm("e", "batch_norm_param { scale_bias: true }")
    + layer("Dropout", "d", "e", "e")
    + END_,
    "residual": A
    + conv("b1", "a", "b1", 6, PAD)
    + norm("b1")
    + relu("b1")
    + conv("b2", "b1", "b2", 6, PAD)
    + layer("Eltwise", "s", "a b2", "s")
    + relu("s")
    + conv("c1", "s", "c1", 6, "kernel_size: 3 pad: 1 bias_term: false")
    + norm("c1")
    + layer("Eltwise", "e", "s c1", "e", "eltwise_param { coeff: 0.5 coeff: 2 }")
    + END_,
    "groups": conv("a", "x", "a", 8, PAD)
    + relu("a")
    + conv("g", "a", "g", 12, "kernel_size: 3 pad: 1 group: 4")
    + relu("g")
    + conv("d", "g", "d", 12, "kernel_size: 3 group: 12")
    + relu("d")
    + conv("m", "d", "e", 24, "kernel_size: 1 group: 12")
    + END_,
    "lrn": conv("a", "x", "a", 14, PAD)
    + relu("a")
    + layer("LRN", "l", "a", "l", "lrn_param { local_size: 5 alpha: 0.5 }")
    + layer("LRN", "w", "l", "e", "lrn_param { local_size: 3 alpha: 0.5 norm_region: WITHIN_CHANNEL }")
    + END_,
    "joined": A
    + conv("b", "x", "b", 5, PAD)
    + layer("Concat", "c", "a b", "c")
    + layer("Sigmoid", "sc", "c", "c")
    + layer("Slice", "s", "c", "s1 s2 s3", "slice_param { slice_point: 2 slice_point: 5 }")
    + conv("d", "s1", "d", 3, K3)
    + conv("g", "s2", "g", 3, K3)
    + conv("h", "s3", "h", 3, K3)
    + layer("Eltwise", "m", "d g h", "m", "eltwise_param { operation: MAX }")
    + layer("Flatten", "fl", "m", "fl")
    + layer("Slice", "s2", "x", "x1 x2", "slice_param { axis: 2 slice_point: 3 }")
    + layer("Silence", "si", "x1", "")
    + ip("i", "fl", "i", 5, "transpose: true bias_term: false")
    + layer("TanH", "t", "i", "i")
    + ip("j", "i", "j", 3)
    + layer("Softmax", "sm", "x2", "sm"),
    "deconvolution": A
    + conv("b", "a", "b", 6, "kernel_size: 4 stride: 2 pad: 1 group: 2", "Deconvolution")
    + layer("Crop", "cr", "b x", "cr", "crop_param { axis: 2 offset: 1 }")
    + layer("Tile", "ti", "cr", "ti", "tile_param { axis: 3 tiles: 2 }")
    + layer("Pooling", "p", "ti", "e", "pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }")
    + conv("c", "e", "c", 3, "kernel_size: 5 stride: 3 pad: 2"),
    "excite": A
    + layer("Pooling", "p", "a", "p", "pooling_param { pool: AVE global_pooling: true }")
    + ip("q", "p", "q", 3)
    + relu("q")
    + ip("u", "q", "u", 6)
    + layer("Sigmoid", "sg", "u", "u")
    + layer("Scale", "sc", "a u", "e", "scale_param { axis: 0 }")
    + END_,
    "reshaped": A
    + layer("Reshape", "r1", "a", "r1", "reshape_param { shape { dim: 0 dim: 0 dim: -1 } }")
    + layer("Bias", "b", "r1", "b")
    + layer("Reshape", "r2", "b", "r2", "reshape_param { shape { dim: 0 dim: -1 } }")
    + ip("f", "r2", "f", 5)
    + layer("Power", "pw", "f", "f", "power_param { power: 2 shift: 1 }")
    + ip("g", "f", "g", 3),
    "two-outputs": A
    + conv("b", "a", "e", 5, K3)
    + layer("Split", "sp", "e", "e1 e2")
    + ip("f", "e1", "f", 3)
    + relu("e2"),
    "shared": inputs(x=(2, 4, 9, 8), y=(2, 4, 9, 8))
    + "".join(
        conv(f"a{n}", b, f"a{n}", 6, PAD, more='param { name: "w" } param { name: "b" }')
        + relu(f"a{n}")
        + ip(f"f{n}", f"a{n}", f"f{n}", 4)
        for n, b in ((1, "x"), (2, "y"))
    )
    + layer("Concat", "c", "f1 f2", "c"),
    "both-phases": A
    + layer("Dropout", "d", "a", "e", "include { phase: TRAIN }")
    + layer("ELU", "d", "a", "e", "include { phase: TEST }")
    + conv("aux", "e", "aux", 5, "kernel_size: 2", more="include { phase: TRAIN }")
    + END_,
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_outputs_are_equal(name: str, rounds: Rounds) -> None:
    file, done = parse_net(X + NETS[name] if name != "shared" else NETS[name]), 0
    for chance in rounds(6, 500):
        made = agrees(file, zeroed(file, trained(file, chance), chance))
        done += bool(made.changes)
    assert done


@st.composite
def wirings(draw: st.DrawFn) -> str:
    """A net of a few layers, each of which reads what any earlier ones have made."""
    text, blobs = X, [("x", 4)]
    for at in range(draw(st.integers(2, 7))):
        name, (bottom, count) = f"l{at}", draw(st.sampled_from(blobs))
        kind = draw(st.sampled_from(("conv", "conv", "depthwise", "groups", "norm", "alone", "sum", "concat", "slice")))
        if kind == "conv":
            outputs = draw(st.sampled_from((2, 4, 6)))
            body = draw(st.sampled_from(("kernel_size: 1", PAD, PAD + " bias_term: false", "kernel_size: 5 pad: 2")))
            text, made = text + conv(name, bottom, name, outputs, body), [(name, outputs)]
        elif kind in ("depthwise", "groups"):
            groups = count if kind == "depthwise" else 2 - count % 2
            text, made = text + conv(name, bottom, name, count, f"{PAD} group: {groups}"), [(name, count)]
        elif kind == "norm":
            text += layer("BatchNorm", name, bottom, name) + layer("Scale", f"{name}s", name, name, BN)
            made = [(name, count)]
        elif kind == "alone":
            one = draw(st.sampled_from(("ReLU", "Sigmoid", "AbsVal", "LRN", "Split")))
            text, made = text + layer(one, name, bottom, name), [(name, count)]
        elif kind in ("sum", "concat"):
            same = [one for one in blobs if kind == "concat" or one[1] == count]
            others = draw(st.lists(st.sampled_from(same), min_size=1, max_size=2))
            operation = draw(st.sampled_from(("SUM", "SUM", "PROD", "MAX")))
            more = f"eltwise_param {{ operation: {operation} }}" if kind == "sum" else ""
            bottoms = " ".join((bottom, *(one for one, _ in others)))
            text += layer("Eltwise" if more else "Concat", name, bottoms, name, more)
            made = [(name, count if more else count + sum(size for _, size in others))]
        else:
            cut = draw(st.integers(1, count - 1)) if count > 1 else 0
            made = [(f"{name}a", cut), (f"{name}b", count - cut)] if cut else []
            tops = " ".join(one for one, _ in made)
            text += layer("Slice", name, bottom, tops, f"slice_param {{ slice_point: {cut} }}") if cut else ""
        blobs += made
    text += ip("end", blobs[-1][0], "end", 3)
    spare = [name for name in unread(parse_net(text).message) if name != "end"]
    # else they are outputs, which stay whole
    return text + layer("Silence", "silence", " ".join(spare), "") if spare and draw(st.booleans()) else text


@settings(max_examples=25)
@given(wirings(), st.integers(0, 1 << 16))
def test_any_wiring(text: str, seed: int) -> None:
    file, chance = parse_net(text), random.Random(seed)
    agrees(file, zeroed(file, trained(file, chance), chance))


SHIPPED = {
    "examples/mnist/lenet.prototxt": (1, 28, 28),
    "examples/mnist/lenet_train_test_force.prototxt": (1, 28, 28),
    "examples/cifar10/cifar10_full_train_test.prototxt": (3, 32, 32),
    "examples/cifar10/cifar10_resnet20_train_test.prototxt": (3, 16, 16),
    "models/alexnet/train_val.prototxt": (3, 67, 67),
    "models/caffenet/deploy.prototxt": (3, 67, 67),
    "models/vgg16/deploy.prototxt": (3, 32, 32),
    "models/googlenet/train_val.prototxt": (3, 224, 224),
    "models/resnet50/train_val.prototxt": (3, 224, 224),
}
LARGE = ("vgg16", "googlenet", "resnet50")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_nets(name: str, long_form: bool) -> None:
    if any(one in name for one in LARGE) and not long_form:
        pytest.skip("with --long")
    file, chance = read_net(str(TOP / "configs" / name)), random.Random(name)
    for one in file.message.layer:
        # fully connected layers of 4,096 neurons make no difference but time
        if one.inner_product_param.num_output > 100:
            one.inner_product_param.num_output = 20
    shapes: dict[str, tuple[int, ...]] = {"data": (2, *SHIPPED[name])}
    if any("label" in one.top for one in file.message.layer):
        shapes["label"] = (2,)
    made = agrees(file, zeroed(file, trained(file, chance, **shapes), chance, 0.3, **shapes), **shapes)
    assert made.changes and not made.whole


# -- what goes


def shapes_of(text: str, change: Callable[[Blobs], None]) -> dict[str, tuple[int, ...]]:
    """Layer -> shape of its first blob in the shrunk net, which gives what the net did."""
    return sizes(agrees(X + text, with_zeros(X + text, random.Random(1), change)))


def zero_filters(weights: Blobs, name: str, *rows: int, bias: float = 0) -> None:
    weights[name][0][list(rows)] = 0
    if 1 in weights[name]:
        weights[name][1][list(rows)] = bias


CHAIN = A + conv("b", "a", "e", 5, PAD) + relu("e") + END_


def test_zero_filters_go_with_their_readers_channels() -> None:
    found = shapes_of(CHAIN, lambda w: zero_filters(w, "a", 0, 2, 5))
    assert found == {"a": (3, 4, 3, 3), "b": (5, 3, 3, 3), "z": (4, 5, 3, 3), "f": (3, 168)}


def test_channels_that_nobody_reads_go_with_all_before_them() -> None:
    def change(weights: Blobs) -> None:
        weights["f"][0].reshape(3, 4, -1)[:, 1:] = 0
        weights["z"][0][0, 1:] = 0

    assert shapes_of(CHAIN, change) == {"a": (6, 4, 3, 3), "b": (1, 6, 3, 3), "z": (1, 1, 3, 3), "f": (3, 42)}


@pytest.mark.parametrize(
    ("bias", "reader", "left"),
    [
        pytest.param(-1.0, PAD, 4, id="nothing-behind-relu"),
        pytest.param(0.7, K3, 4, id="no-border"),
        pytest.param(0.7, PAD, 5, id="a-border-sees-it"),
        pytest.param(0.7, "kernel_size: 3 bias_term: false", 4, id="a-bias-is-made"),
        pytest.param(0.7, "kernel_size: 3 dilation: 2", 4, id="dilation"),
    ],
)
def test_a_constant_goes_into_the_readers_bias(bias: float, reader: str, left: int) -> None:
    text = A + conv("b", "a", "e", 5, reader) + ip("f", "e", "f", 3)
    found = shapes_of(text, lambda w: zero_filters(w, "a", 1, 4, bias=bias))
    assert (found["a"][0], found["b"][1]) == (left, left)


def test_a_border_that_the_weights_do_not_see() -> None:
    def change(weights: Blobs) -> None:
        zero_filters(weights, "a", 1, 4, bias=0.7)
        # of these channels the middle tap alone, of one all
        weights["b"][0][:, 1] *= np.eye(3)[1, :, None] * np.eye(3)[1]

    assert shapes_of(CHAIN, change)["a"] == (5, 4, 3, 3)


def test_a_branch_of_zeros_goes() -> None:
    def change(weights: Blobs) -> None:
        zero_filters(weights, "b2", *range(6))

    text = X + NETS["residual"]
    made = agrees(text, with_zeros(text, random.Random(1), change))
    assert made.gone == ("b1", "bn_b1", "scale_b1", "relu_b1", "b2", "s")
    assert [(one.name, one.bottom[0], one.top[0]) for one in made.net.layer if one.name == "relu_s"] == [
        ("relu_s", "a", "s")
    ]


@pytest.mark.parametrize(("coeff", "kind"), [("", "Bias"), ("eltwise_param { coeff: 0.5 coeff: 2 }", "Scale")])
def test_a_constant_branch_is_a_bias(coeff: str, kind: str) -> None:
    text = X + A + conv("b", "a", "b", 6, PAD) + layer("Eltwise", "e", "a b", "e", coeff) + END_
    made = agrees(text, with_zeros(text, random.Random(1), lambda w: zero_filters(w, "b", *range(6), bias=0.3)))
    assert made.gone == ("b",)
    assert [one.type for one in made.net.layer if one.name == "e"] == [kind]


def test_a_sum_that_is_an_output_keeps_its_name() -> None:
    text = X + A + conv("b", "a", "b", 6, PAD) + layer("Eltwise", "e", "a b", "e")
    made = agrees(text, with_zeros(text, random.Random(1), lambda w: zero_filters(w, "b", *range(6))))
    assert made.gone == ("b",) and made.net.layer[-1].type == "Power"


def test_a_sum_keeps_what_either_branch_has() -> None:
    def change(weights: Blobs) -> None:
        zero_filters(weights, "a", 0, 1, 2)
        zero_filters(weights, "b", 1, 2, 3)

    text = A + conv("b", "x", "b", 6, PAD) + layer("Eltwise", "e", "a b", "e") + END_
    found = shapes_of(text, change)
    assert (found["a"][0], found["b"][0], found["z"][1]) == (4, 4, 4)


def test_across_channels_no_neighbour_comes_nearer() -> None:
    """local_size 5 reaches two channels: of gaps two stay, at the ends none."""
    text = conv("a", "x", "a", 14, PAD) + layer("LRN", "l", "a", "e", "lrn_param { local_size: 5 alpha: 2 }") + END_
    found = shapes_of(text, lambda w: zero_filters(w, "a", 0, 1, 2, 5, 6, 7, 8, 10, 13))
    # 3 4 | 5 6 | 9 | 10 | 11 12
    assert found["a"] == (8, 4, 3, 3)


def test_a_group_goes_whole() -> None:
    text = conv("a", "x", "a", 8, PAD) + conv("g", "a", "e", 12, "kernel_size: 3 group: 4") + END_

    def change(weights: Blobs) -> None:
        zero_filters(weights, "a", 2, 3)
        zero_filters(weights, "g", 3, 4, 5)
        # a channel of each other group is read by nobody
        weights["g"][0][[*range(3), *range(6, 12)], 1] = 0

    found = shapes_of(text, change)
    assert found["a"][0] == 3 and found["g"][:2] == (9, 1) and found["z"][1] == 9


def test_a_depthwise_filter_goes_with_its_input() -> None:
    text = A + conv("d", "a", "d", 6, "kernel_size: 3 group: 6") + conv("p", "d", "e", 5, "kernel_size: 1") + END_
    found = shapes_of(text, lambda w: zero_filters(w, "d", 0, 5))
    assert (found["a"], found["d"], found["p"]) == ((4, 4, 3, 3), (4, 1, 3, 3), (5, 4, 1, 1))


def test_a_rank_that_vanishes_is_rank_reduction() -> None:
    """What decompose makes of a layer is layers like others."""
    text = conv("a_lowrank", "x", "t", 5, PAD) + conv("a_linear", "t", "e", 6, "kernel_size: 1") + END_

    def change(weights: Blobs) -> None:
        zero_filters(weights, "a_lowrank", 1)
        weights["a_linear"][0][:, 3] = 0

    found = shapes_of(text, change)
    assert (found["a_lowrank"][0], found["a_linear"][1]) == (3, 3)


def test_kernels_shrink_to_what_is_not_zero() -> None:
    def change(weights: Blobs) -> None:
        weights["a"][0][:, :, [0, 4]] = 0
        weights["a"][0][..., [0, 1, 3, 4]] = 0

    text = X + conv("a", "x", "e", 6, "kernel_size: 5 pad: 2") + END_
    made = agrees(text, with_zeros(text, random.Random(1), change))
    assert sizes(made)["a"] == (6, 4, 3, 1)
    param = next(one.convolution_param for one in made.net.layer if one.name == "a")
    assert (param.kernel_h, param.kernel_w, param.pad_h, param.pad_w) == (3, 1, 1, 0)


@given(
    st.lists(st.booleans(), min_size=1, max_size=7),
    st.integers(1, 3),
    st.integers(0, 4),
    st.integers(1, 2),
    st.booleans(),
    st.lists(st.integers(20, 27), min_size=1, max_size=2),
)
def test_a_window_gives_the_same_values(
    taps: list[bool], stride: int, pad: int, dilation: int, transposed: bool, lengths: list[int]
) -> None:
    axis = Axis(len(taps), stride, pad, dilation, transposed)
    before, behind = window(np.array(taps), axis, lengths)
    cut = axis.cut(before, behind)
    assert cut.kernel >= 1 and cut.pad >= 0 and not any([*taps[:before], *taps[len(taps) - behind :]])
    for length in lengths:
        assert cut.out(length) == axis.out(length)
        # where the first output's first tap lies, and each one behind it
        assert cut.pad == pad - before * dilation
    # what could go at both ends alike has gone
    spare = min(taps.index(True), taps[::-1].index(True)) if any(taps) else (len(taps) - 1) // 2
    assert before + behind >= 2 * min(spare, pad // dilation)


def test_shrinking_again_changes_nothing() -> None:
    text = X + NETS["batch-norm"]
    made = agrees(text, with_zeros(text, random.Random(5)))
    again = agrees(net_from_message(made.net), made.weights)
    assert not again.changes and not again.gone and again.net == made.net


def test_blocks_of_group_lasso_fit_again() -> None:
    """All columns, a kernel, all rows; pairs of rows fit 4 filters, triples don't."""
    blocks = ("xdimen: 36", "xdimen: 9", "ydimen: 6", "xdimen: 9 ydimen: 2", "ydimen: 3")
    specs = " ".join(f"block_group_lasso {{ {one} block_decay_mult: 2 }}" for one in blocks)
    text = X + conv("a", "x", "a", 6, PAD, more=f"param {{ {specs} decay_proto: 'w.bin' }}") + ip("f", "a", "f", 3)

    def change(weights: Blobs) -> None:
        zero_filters(weights, "a", 0, 3)
        weights["a"][0][..., [0, 2]] = 0

    made = agrees(text, with_zeros(text, random.Random(1), change))
    param = next(one.param[0] for one in made.net.layer if one.name == "a")
    assert sizes(made)["a"] == (4, 4, 3, 1) and not param.decay_proto
    found = [(one.xdimen, one.ydimen, one.block_decay_mult) for one in param.block_group_lasso]
    assert found == [(12, 1, 2), (3, 1, 2), (1, 4, 2), (3, 2, 2)]
    assert made.remarks == (
        "a: blocks of 3x1 don't tile its [4, 4, 3, 1] any more; its block_group_lasso is left out",
        "a: decay_proto w.bin is of another shape now, and is left out",
    )


# -- what stays


def test_what_shares_a_part_of_its_weights_stays() -> None:
    shared = 'param { name: "w" }'
    text = X + conv("a", "x", "a", 6, PAD, more=shared) + conv("b", "x", "b", 6, PAD, more=shared)
    text += layer("Concat", "c", "a b", "e") + END_
    made = agrees(text, with_zeros(text, random.Random(1), lambda w: zero_filters(w, "a", 0, 1)))
    assert made.whole == {
        "a": "shares a part of its weights with 'b'", "b": "shares a part of its weights with 'a'"
    }  # fmt: skip
    assert sizes(made)["a"] == (6, 4, 3, 3)


def test_layers_without_weights_in_the_snapshot_stay() -> None:
    text = X + CHAIN
    weights = with_zeros(text, random.Random(1), lambda w: zero_filters(w, "a", 0))
    del weights["b"]
    made = shrunk(parse_net(text), weights)
    assert made.whole == {"b": "the snapshot has no weights for it"} and "b" not in made.weights
    assert sizes(made)["a"] == (6, 4, 3, 3)


@pytest.mark.parametrize(
    "reader",
    [
        pytest.param(layer("Softmax", "s", "a", "s"), id="output"),
        pytest.param(layer("MVN", "m", "a", "m", "mvn_param { across_channels: true }"), id="mvn"),
        pytest.param(layer("Reduction", "d", "a", "d", "reduction_param { axis: 1 }"), id="reduction"),
        pytest.param(ip("f", "a", "f", 2, "axis: 2"), id="other-axis"),
    ],
)
def test_what_mixes_channels_keeps_them(reader: str) -> None:
    assert shapes_of(A + reader, lambda w: zero_filters(w, "a", 0, 3))["a"] == (6, 4, 3, 3)


def test_layers_of_stages_that_are_not_looked_at_keep_what_they_read() -> None:
    text = X + CHAIN + layer("InnerProduct", "other", "a", "other", 'include { stage: "s" }')
    weights = with_zeros(text, random.Random(1), lambda w: (zero_filters(w, "a", 0), zero_filters(w, "b", 0)))
    weights["other"] = {0: np.ones((2, 6 * 72), np.float32), 1: np.zeros(2, np.float32)}
    made = agrees(text, weights)
    assert sizes(made) == {"a": (6, 4, 3, 3), "b": (4, 6, 3, 3), "z": (4, 4, 3, 3), "f": (3, 168), "other": (2, 432)}
