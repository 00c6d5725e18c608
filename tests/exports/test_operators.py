"""What single layers become: where Caffe and ONNX differ, each against our own layer, whose numbers are Caffe's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forcereg.errors import ForceregError
from forcereg.exports.dims import batch_axes
from forcereg.exports.graph import Varying
from forcereg.exports.onnx import OPSET
from forcereg.exports.proof import random_inputs, recorded
from forcereg.layers.pooling import Pooling
from forcereg.net.module import Net
from forcereg.registry import layer, onnx_form
from tests.exports.nets import filled, operators, outputs, run, written

pytest.importorskip("onnxruntime")


def net_of(body: str, *shapes: tuple[int, ...], tops: int = 1) -> Net:
    """One layer on inputs a, b, ... of these shapes, with tops y, z, ..."""
    names = "abcd"[: len(shapes)]
    fed = "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ '
        f"{' '.join(f'dim: {size}' for size in shape)} }} }} }}\n"
        for name, shape in zip(names, shapes, strict=True)
    )
    ends = "".join(f'bottom: "{name}" ' for name in names) + "".join(f'top: "{top}" ' for top in "yzw"[:tops])
    return filled(f'{fed}layer {{ name: "l" {ends} {body} }}')


def equal(net: Net, opset: int = OPSET) -> list[str]:
    """Compares the file with the net on random inputs; its operators."""
    model = written(net, opset=opset)
    inputs = random_inputs(net, {name: net.shapes[name] for name in net.inputs}, 0)
    expected = net(inputs)
    for name, values in outputs(net, model, run(model, inputs)):
        found = torch.from_numpy(values.copy())
        torch.testing.assert_close(found, expected[name].detach(), rtol=1e-4, atol=1e-5, equal_nan=True)
    return operators(model)


XAVIER = 'weight_filler { type: "xavier" }'
CONV = f'type: "Convolution" convolution_param {{ num_output: 6 {XAVIER}'
PRODUCT = f'type: "InnerProduct" inner_product_param {{ num_output: 3 {XAVIER}'
ROWS, AROUND = ["Flatten", "Gemm", "Reshape"], ["Reshape", "Conv", "Reshape"]
IMAGE = (2, 4, 7, 9)


@pytest.mark.parametrize(
    ("body", "shapes", "expected"),
    [
        pytest.param(f"{CONV} kernel_size: 3 dilation: 2 group: 2 }}", [IMAGE], ["Conv"], id="dilated-grouped"),
        pytest.param(f"{CONV} kernel_h: 3 kernel_w: 1 pad_h: 1 pad_w: 0 stride: 2 }}", [IMAGE], ["Conv"], id="rect"),
        pytest.param(f"{CONV} kernel_size: 3 axis: 2 }}", [(2, 3, 4, 5, 6)], AROUND, id="axis-2"),
        pytest.param(f"{CONV} kernel_size: 1 axis: 0 }}", [(4, 5)], AROUND, id="axis-0"),
        pytest.param(f"{CONV} kernel_size: 1 axis: 1 }}", [(2, 4, 5)], ["Conv"], id="one-axis"),
        pytest.param(f"{CONV} kernel_size: 3 pad: 1 bias_term: false }}", [(2, 4, 3, 4, 5)], ["Conv"], id="three-axes"),
        pytest.param('type: "Deconvolution" convolution_param { num_output: 6 kernel_size: 3 stride: 2 group: 2 pad: 1 '
                     'weight_filler { type: "xavier" } }', [IMAGE], ["ConvTranspose"], id="deconvolution-groups"),
        pytest.param(f"{PRODUCT} axis: 2 transpose: true }}", [(2, 3, 4, 5)], ROWS, id="product"),
        pytest.param(f"{PRODUCT} axis: 0 bias_term: false }}", [(2, 3)], ROWS, id="product-axis-0"),
        pytest.param('type: "LRN" lrn_param { local_size: 9 alpha: 0.5 }', [IMAGE], ["LRN"], id="lrn-wide"),
        pytest.param('type: "LRN" lrn_param { local_size: 21 alpha: 2 norm_region: WITHIN_CHANNEL }', [IMAGE],
                     ["Mul", "AveragePool", "Mul", "Add", "Pow", "Mul"], id="lrn-within-all"),
        pytest.param('type: "Softmax" softmax_param { axis: -1 }', [IMAGE], ["Softmax"], id="softmax-last"),
        pytest.param('type: "Softmax" softmax_param { axis: 2 }', [IMAGE], ["Softmax"], id="softmax-2"),
        pytest.param('type: "Reshape" reshape_param { shape { dim: 0 dim: -1 dim: 3 } }', [(2, 6, 4)], ["Reshape"],
                     id="reshape-0-and-less"),
        pytest.param('type: "Reshape" reshape_param { shape { dim: -1 dim: 8 } }', [(2, 6, 4)], ["Reshape"],
                     id="reshape-the-batch"),
        pytest.param('type: "Reshape" reshape_param { axis: 1 num_axes: 1 shape { dim: 2 dim: 3 } }', [(2, 6, 4)],
                     ["Reshape"], id="reshape-inside"),
        pytest.param('type: "Flatten" flatten_param { axis: 1 end_axis: 2 }', [IMAGE], ["Reshape"], id="flatten-end"),
        pytest.param('type: "Flatten" flatten_param { axis: 0 end_axis: 1 }', [IMAGE], ["Reshape"], id="flatten-batch"),
        pytest.param('type: "Flatten"', [IMAGE], ["Flatten"], id="flatten"),
        pytest.param('type: "BatchNorm"', [IMAGE], ["BatchNormalization"], id="batch-norm"),
        pytest.param('type: "BatchNorm"', [(5,)], ["Unsqueeze", "BatchNormalization", "Squeeze"], id="batch-norm-1"),
        pytest.param('type: "BatchNorm" batch_norm_param { scale_bias: true }', [IMAGE], ["BatchNormalization"],
                     id="batch-norm-affine"),
        pytest.param('type: "BatchNorm" batch_norm_param { use_global_stats: false }', [IMAGE],
                     ["ReduceMean", "Sub", "Mul", "ReduceMean", "Add", "Sqrt", "Div"], id="batch-norm-of-the-batch"),
        pytest.param('type: "MVN"', [(2, 3)], ["Sub"], id="mvn-of-one-value"),
        pytest.param('type: "Scale" scale_param { axis: 0 num_axes: -1 bias_term: true }', [(2, 3)], ["Mul", "Add"],
                     id="scale-all"),
        pytest.param('type: "Scale" scale_param { axis: 0 }', [IMAGE, (2, 4)], ["Unsqueeze", "Mul"], id="scale-by"),
        pytest.param('type: "Bias" bias_param { axis: 2 }', [IMAGE, (7, 9)], ["Add"], id="bias-by-bottom"),
        pytest.param('type: "Eltwise" eltwise_param { coeff: 0.5 coeff: 1 }', [IMAGE] * 2, ["Mul", "Add"], id="coeff"),
        pytest.param('type: "Eltwise" eltwise_param { operation: MAX }', [IMAGE] * 3, ["Max"], id="max-of-three"),
        pytest.param('type: "Crop" crop_param { axis: 2 offset: 1 offset: 2 }', [IMAGE, (2, 1, 5, 6)], ["Slice"],
                     id="crop"),
        pytest.param('type: "ArgMax" argmax_param { axis: -1 top_k: 3 }', [IMAGE], ["Slice", "TopK", "Sub", "Cast"],
                     id="arg-max"),
        pytest.param('type: "SPP" spp_param { pyramid_height: 3 pool: AVE }', [(2, 3, 9, 11)], None, id="spp-average"),
        pytest.param('type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 3 stride: 2 }', [IMAGE],
                     ["Mul", "AveragePool", "AveragePool", "Greater", "Div", "Where"], id="stochastic"),
        pytest.param('type: "Pooling" pooling_param { pool: AVE global_pooling: true }', [IMAGE], ["GlobalAveragePool"],
                     id="global-average"),
        pytest.param('type: "Power" power_param { power: 0 shift: 2 }', [IMAGE], ["Shape", "Expand"], id="constant"),
        pytest.param('type: "Dropout"', [IMAGE], ["Identity"], id="dropout"),
        pytest.param('type: "Dropout" dropout_param { scale_train: false }', [IMAGE], ["Mul"], id="dropout-scaled"),
        pytest.param('type: "RNN" recurrent_param { num_output: 3 weight_filler { type: "xavier" } }',
                     [(4, 2, 5), (4, 2)], None, id="rnn-cont"),
        pytest.param('type: "LSTM" recurrent_param { num_output: 3 weight_filler { type: "xavier" } }',
                     [(1, 2, 5), (1, 2)], None, id="lstm-one-step"),
    ],
)  # fmt: skip
def test_traps(body: str, shapes: list[tuple[int, ...]], expected: list[str] | None) -> None:
    found = equal(net_of(body, *shapes))
    assert expected is None or found == expected


@settings(max_examples=60)
@given(st.data())
def test_pooling(data: st.DataObject) -> None:
    """Caffe counts padding, clips the last window to it, rounds up, and drops windows that begin beyond it."""
    kernel, stride = (data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4))) for _ in range(2))
    pad = tuple(data.draw(st.integers(0, size - 1)) for size in kernel)
    size = tuple(data.draw(st.integers(max(1, k - 2 * p), 8)) for k, p in zip(kernel, pad, strict=True))
    method, rounding = data.draw(st.sampled_from(["MAX", "AVE"])), data.draw(st.sampled_from(["CEIL", "FLOOR"]))
    mask = method == "MAX" and data.draw(st.booleans())
    net = net_of(
        f'type: "Pooling" pooling_param {{ pool: {method} round_mode: {rounding} kernel_h: {kernel[0]} '
        f"kernel_w: {kernel[1]} stride_h: {stride[0]} stride_w: {stride[1]} pad_h: {pad[0]} pad_w: {pad[1]} }}",
        (2, 3, *size),
        tops=1 + mask,
    )
    assert isinstance(net.module("l"), Pooling)
    equal(net)


@pytest.mark.parametrize("opset", [13, 17, 18, 23])
@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ('type: "Reduction" reduction_param { operation: MEAN axis: 2 coeff: 3 }', IMAGE),
        ('type: "Reduction" reduction_param { operation: ASUM axis: 0 }', (3, 2)),
        ('type: "MVN"', IMAGE),
        ('type: "Slice" slice_param { slice_point: 1 }', IMAGE),
        ('type: "Pooling" pooling_param { pool: AVE kernel_size: 3 stride: 3 pad: 1 }', IMAGE),
    ],
)
def test_older_operators(body: str, shape: tuple[int, ...], opset: int) -> None:
    equal(net_of(body, shape, tops=1 + ("Slice" in body)), opset)


def test_images_of_open_size() -> None:
    """Where ceil_mode has Caffe's rule; where it hasn't, and where weights are for one size, it can't be open."""
    net = net_of('type: "Pooling" pooling_param { kernel_size: 3 stride: 2 pad: 1 }', (1, 2, 7, 8))
    axes = {"a": {0: "batch", 2: "height", 3: "width"}}
    model = written(net, axes)
    assert [dim.dim_param for dim in model.proto.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        "",
        "height",
        "width",
    ]
    for size in ((3, 2, 7, 8), (1, 2, 12, 9), (2, 2, 8, 30)):
        x = torch.randn(size)
        torch.testing.assert_close(torch.from_numpy(run(model, {"a": x})["y"]), net(a=x)["y"])
    for pooling in ("pool: AVE kernel_size: 3 stride: 2 pad: 1", "kernel_size: 1 stride: 2"):
        with pytest.raises(Varying, match=r"^layer 'l' "):
            written(net_of(f'type: "Pooling" pooling_param {{ {pooling} }}', (1, 2, 7, 8)), axes)
    with pytest.raises(Varying, match="whose weights are for one size"):
        written(net_of('type: "InnerProduct" inner_product_param { num_output: 3 }', (1, 2, 7, 8)), axes)


@pytest.mark.parametrize(
    ("body", "shape", "why"),
    [
        # the file's axis 0 isn't the net's, though both are open
        ('type: "Deconvolution" convolution_param { num_output: 3 kernel_size: 2 axis: 2 }', (2, 3, 4, 5),
         "layer 'l' makes a shape in which two sizes would have to be found out"),
        (f"{CONV} kernel_size: 1 axis: 0 }}", (2, 3, 4, 5), "weights are for one size"),
    ],
)  # fmt: skip
def test_two_open_sizes_that_a_reshape_cannot_tell_apart(body: str, shape: tuple[int, ...], why: str) -> None:
    with pytest.raises(Varying, match=why):
        written(net_of(body, shape), {"a": {0: "batch", 3: "width"}})


def test_an_open_size_in_front_of_which_channels_lie() -> None:
    net = net_of(f"{CONV} kernel_size: 2 pad: 1 axis: 0 }}", (2, 3, 4, 5))
    model = written(net, {"a": {2: "height"}})
    x = torch.randn(2, 3, 9, 5)
    torch.testing.assert_close(torch.from_numpy(run(model, {"a": x})["y"]), net(a=x)["y"].detach())


def test_only_what_is_as_large_as_an_input_has_its_name() -> None:
    """Runtimes take sizes of one name for equal, and plan memory by that."""
    net = net_of('type: "Tile" tile_param { axis: 0 tiles: 3 }', (2, 4, 7, 9))
    model = written(net, {"a": {0: "batch", 2: "height"}})
    (made,) = model.proto.graph.output
    assert [dim.dim_param or dim.dim_value for dim in made.type.tensor_type.shape.dim] == ["y_0", 4, "height", 9]


SEGMENT = """
layer { name: "a" type: "Input" top: "a" input_param { shape { dim: 1 dim: 2 dim: 9 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "a" top: "conv"
  convolution_param { num_output: 3 kernel_size: 3 stride: 2 pad: 2 weight_filler { type: "xavier" } } }
layer { name: "up" type: "Deconvolution" bottom: "conv" top: "up"
  convolution_param { num_output: 2 kernel_size: 4 stride: 2 weight_filler { type: "xavier" } } }
layer { name: "crop" type: "Crop" bottom: "up" bottom: "a" top: "crop" crop_param { axis: 2 offset: 1 } }
layer { name: "flat" type: "Flatten" bottom: "crop" top: "flat" flatten_param { axis: 2 } }
"""


def test_a_crop_to_images_of_open_size() -> None:
    net = filled(SEGMENT)
    model = written(net, {"a": {0: "batch", 2: "height", 3: "width"}})
    assert operators(model) == ["Conv", "ConvTranspose", "Shape", "Slice", "Add", "Slice", "Reshape"]
    for size in ((1, 2, 9, 8), (3, 2, 12, 17)):
        x = torch.randn(size)
        found = torch.from_numpy(run(model, {"a": x})["flat"])
        torch.testing.assert_close(found, net(a=x)["flat"].detach(), rtol=1e-4, atol=1e-5)


def test_rows_are_such_as_all_readers_have() -> None:
    body = 'type: "BatchReindex" }} layer {{ name: "{0}" bottom: "{1}" bottom: "i" top: "{0}" type: "BatchReindex"'
    text = """layer { name: "in" type: "Input" top: "x" top: "i"
          input_param { shape { dim: 3 dim: 2 } shape { dim: 3 } } }
        layer { name: "one" type: "Reduction" bottom: "x" top: "one" reduction_param { axis: 0 } }
        layer { name: "row" type: "Reshape" bottom: "one" top: "row" reshape_param { shape { dim: 1 } } }
        layer { name: "p" bottom: "row" bottom: "i" top: "p" """
    net = filled(text + body.format("q", "x") + "}")
    for batch in (1, 3):
        fed = random_inputs(net, {"x": (batch, 2), "i": (batch,)}, 0)
        assert not fed["i"].any()
    alone = filled(
        text[: text.index('layer { name: "p')]
        + 'layer { name: "q" bottom: "x" bottom: "i" top: "q" type: "BatchReindex" }'
    )
    assert {*random_inputs(alone, {"x": (30, 2), "i": (30,)}, 0)["i"].tolist()} == {0, 1, 2}


def test_layers_without_names() -> None:
    """Each is compared, and its nodes and values have names."""
    net = filled(
        """layer { name: "TanH" type: "Input" top: "a" input_param { shape { dim: 2 dim: 3 } } }
        layer { type: "Sigmoid" bottom: "a" top: "y" } layer { type: "TanH" bottom: "y" top: "y" }
        layer { type: "TanH" bottom: "y" top: "z" } layer { name: "x" type: "TanH" bottom: "z" top: "w" }"""
    )
    model = written(net)
    assert len(model.tops) == 4 and model.tops.keys() == recorded(net, {"a": torch.ones(2, 3)}).keys()
    assert [(node.name, *node.output) for node in model.proto.graph.node] == [
        ("Sigmoid", "y"), ("TanH_2", "y_TanH_2"), ("TanH_3", "z"), ("x", "w"),
    ]  # fmt: skip


def test_indices_and_marks_are_such_as_layers_take() -> None:
    """Also where several layers read them, or in another shape."""
    net = filled(
        """layer { name: "i" type: "Input" top: "i" top: "rows"
          input_param { shape { dim: 4 dim: 2 } shape { dim: 3 dim: 1 } } }
        layer { name: "e" type: "Embed" bottom: "i" top: "e" embed_param { num_output: 3 input_dim: 5 } }
        layer { name: "f" type: "Embed" bottom: "i" top: "f" embed_param { num_output: 2 input_dim: 5 } }
        layer { name: "flat" type: "Flatten" bottom: "rows" top: "flat" flatten_param { axis: 0 } }
        layer { name: "b" type: "BatchReindex" bottom: "e" bottom: "flat" top: "b" }"""
    )
    inputs = random_inputs(net, {name: net.shapes[name] for name in net.inputs}, 0)
    assert {*inputs["i"].flatten().tolist()} <= {*range(5)} and {*inputs["rows"].flatten().tolist()} <= {*range(4)}
    equal(net)


@pytest.mark.parametrize(
    ("body", "shapes", "why"),
    [
        ('type: "Slice" slice_param { axis: 0 }', [(4, 3)], "doesn't divide into 2 equal tops"),
        ('type: "LSTM" recurrent_param { num_output: 3 }', [(4, 2, 5), (4, 2)], "layer 'l' needs axis 0"),
        ('type: "Concat" concat_param { axis: 0 }', [(4, 3), (2, 3)], "inputs of several sizes along axis 0"),
    ],
)
def test_a_batch_that_is_fixed(body: str, shapes: list[tuple[int, ...]], why: str) -> None:
    net = net_of(body, *shapes, tops=1 + ("Slice" in body))
    with pytest.raises(Varying, match=why):
        written(net, batch_axes(net))
    equal(net)


def test_lrn_of_even_size_is_no_net() -> None:
    with pytest.raises(ForceregError, match="local_size is 4; expected an odd number"):
        net_of('type: "LRN" lrn_param { local_size: 4 }', IMAGE)


def test_four_axes_are_refused() -> None:
    net = net_of(f"{CONV} kernel_size: 2 }}", (1, 2, 3, 3, 3, 3))
    with pytest.raises(ForceregError, match="layer 'l': convolves over 4 axes, for which ONNX's runtimes have nothing"):
        written(net)


def test_a_type_of_one_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (layer, onnx_form):
        for table in ("_known", "_about"):
            monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    import forcereg

    forcereg.layer("Mish")(torch.nn.Mish)
    net = net_of('type: "Mish"', IMAGE)
    with pytest.raises(ForceregError, match=r"layer 'l': type Mish has no form in ONNX; .*onnx_form\(\"Mish\"\)"):
        written(net)
    onnx_form("Mish", "Mish")(lambda layer, g, x: g("Mish", x))
    assert equal(net) == ["Mish"]
