"""Older forms of nets and solvers become what Caffe makes of them."""

from __future__ import annotations

import os
from typing import Any

import pytest

from forcereg.errors import ForceregError
from forcereg.schema import LayerParameter, NetParameter, SolverParameter, V0LayerParameter, V1LayerParameter
from forcereg.schema.text import parse_net, parse_solver, parse_text
from forcereg.schema.upgrade import _V0_KEPT, _V0_RENAMED, V0_TYPES, V1_TYPES, upgrade_net, upgrade_solver


def net(text: str) -> Any:
    return parse_text(text, NetParameter)


def solver(text: str) -> Any:
    return parse_text(text, SolverParameter)


def error_of(upgrade: Any, *args: Any) -> str:
    with pytest.raises(ForceregError) as caught:
        upgrade(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


V1 = """
name: "v1"
force_backward: true
state { level: 2 }
layers {
  name: "data" type: DATA top: "data" top: "label" include { phase: TRAIN }
  data_param { source: "lmdb" scale: 0.5 mean_file: "m" crop_size: 7 mirror: true batch_size: 4 }
  transform_param { force_gray: true }
}
layers {
  name: "conv" type: CONVOLUTION bottom: "data" top: "conv" blobs_lr: 1 blobs_lr: 2 weight_decay: 3
  param: "" param: "shared" blob_share_mode: STRICT blob_share_mode: PERMISSIVE
  convolution_param { num_output: 4 kernel_size: 3 } blobs { num: 1 data: [1, 2] }
}
layers { type: NONE name: "n" }
layers {
  name: "loss" type: SOFTMAX_LOSS bottom: "conv" bottom: "label" loss_weight: 2 loss_param { ignore_label: 1 }
  exclude { stage: "deploy" }
}
"""
V1_UPGRADED = """
name: "v1"
force_backward: true
state { level: 2 }
layer {
  name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  data_param { source: "lmdb" batch_size: 4 }
  transform_param { force_gray: true scale: 0.5 mean_file: "m" crop_size: 7 mirror: true }
}
layer {
  name: "conv" type: "Convolution" bottom: "data" top: "conv"
  param { lr_mult: 1 decay_mult: 3 share_mode: STRICT }
  param { name: "shared" lr_mult: 2 share_mode: PERMISSIVE }
  convolution_param { num_output: 4 kernel_size: 3 } blobs { num: 1 data: [1, 2] }
}
layer { name: "n" }
layer {
  name: "loss" type: "SoftmaxWithLoss" bottom: "conv" bottom: "label" loss_weight: 2 loss_param { ignore_label: 1 }
  exclude { stage: "deploy" }
}
"""
V0 = """
name: "v0"
input: "data" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 8
force_backward: true
layers { layer { name: "pad1" type: "padding" pad: 2 } bottom: "data" top: "pad1" }
layers {
  layer {
    name: "conv1" type: "conv" num_output: 4 biasterm: false kernelsize: 5 stride: 2 group: 2
    weight_filler { type: "xavier" } blobs_lr: 1 weight_decay: 0.5
  }
  bottom: "pad1" top: "conv1"
}
layers { layer { name: "pool1" type: "pool" pool: AVE kernelsize: 3 stride: 2 pad: 1 } bottom: "conv1" top: "pool1" }
layers { layer { name: "norm" type: "lrn" local_size: 3 alpha: 2 beta: 0.5 k: 4 } bottom: "pool1" top: "norm" }
layers { layer { name: "cat" type: "concat" concat_dim: 0 } bottom: "norm" bottom: "norm" top: "cat" }
layers { layer { name: "drop" type: "dropout" dropout_ratio: 0.25 } bottom: "cat" top: "cat" }
layers {
  layer {
    name: "img" type: "images" source: "list" batchsize: 3 shuffle_images: true new_height: 4 new_width: 5
    rand_skip: 6 meanfile: "m" cropsize: 2 mirror: true scale: 0.5
  }
  top: "img"
}
layers {
  layer {
    name: "win" type: "window_data" source: "w" det_fg_threshold: 0.6 det_bg_threshold: 0.4
    det_fg_fraction: 0.3 det_context_pad: 1 det_crop_mode: "square" scale: 2
  }
  top: "win"
}
layers { layer { name: "out" type: "hdf5_output" hdf5_output_param { file_name: "o" } } bottom: "cat" bottom: "img" }
layers { layer { name: "loss" type: "softmax_loss" } bottom: "cat" bottom: "win" }
"""
V0_UPGRADED = """
name: "v0"
force_backward: true
layer { name: "input" type: "Input" top: "data" input_param { shape { dim: [1, 3, 8, 8] } } }
layer {
  name: "conv1" type: "Convolution" bottom: "data" top: "conv1" param { lr_mult: 1 decay_mult: 0.5 }
  convolution_param {
    num_output: 4 bias_term: false kernel_size: 5 stride: 2 group: 2 pad: 2 weight_filler { type: "xavier" }
  }
}
layer {
  name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
  pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }
}
layer {
  name: "norm" type: "LRN" bottom: "pool1" top: "norm" lrn_param { local_size: 3 alpha: 2 beta: 0.5 k: 4 }
}
layer { name: "cat" type: "Concat" bottom: "norm" bottom: "norm" top: "cat" concat_param { concat_dim: 0 } }
layer { name: "drop" type: "Dropout" bottom: "cat" top: "cat" dropout_param { dropout_ratio: 0.25 } }
layer {
  name: "img" type: "ImageData" top: "img"
  image_data_param { source: "list" batch_size: 3 shuffle: true new_height: 4 new_width: 5 rand_skip: 6 }
  transform_param { mean_file: "m" crop_size: 2 mirror: true scale: 0.5 }
}
layer {
  name: "win" type: "WindowData" top: "win"
  window_data_param {
    source: "w" fg_threshold: 0.6 bg_threshold: 0.4 fg_fraction: 0.3 context_pad: 1 crop_mode: "square"
  }
  transform_param { scale: 2 }
}
layer { name: "out" type: "HDF5Output" bottom: "cat" bottom: "img" hdf5_output_param { file_name: "o" } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "cat" bottom: "win" }
"""


@pytest.mark.parametrize(("old", "new"), [(V0, V0_UPGRADED), (V1, V1_UPGRADED)], ids=["V0", "V1"])
def test_layers_of_older_forms(old: str, new: str) -> None:
    message = net(old)
    before = message.SerializeToString()
    assert upgrade_net(message)[0] == net(new)
    assert message.SerializeToString() == before


@pytest.mark.parametrize("text", [V0_UPGRADED, V1_UPGRADED], ids=["V0", "V1"])
def test_todays_form_stays(text: str) -> None:
    assert upgrade_net(net(text))[0] == net(text)


def test_lines_follow_the_layers_through_an_upgrade() -> None:
    upgraded = parse_net(V0, "v0.prototxt")
    lines = {layer.name: line for layer, line in zip(upgraded.message.layer, upgraded.lines, strict=True)}
    assert lines == {"input": 3, "conv1": 6, "pool1": 13, "norm": 14, "cat": 15, "drop": 16} | {
        "img": 17,
        "win": 24,
        "out": 31,
        "loss": 32,
    }
    assert upgraded.where(0) == "v0.prototxt:3: layer 'input'"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ABSVAL", "AbsVal"),
        ("ARGMAX", "ArgMax"),
        ("BNLL", "BNLL"),
        ("HDF5_DATA", "HDF5Data"),
        ("HDF5_OUTPUT", "HDF5Output"),
        ("IM2COL", "Im2col"),
        ("INNER_PRODUCT", "InnerProduct"),
        ("LRN", "LRN"),
        ("MULTINOMIAL_LOGISTIC_LOSS", "MultinomialLogisticLoss"),
        ("MVN", "MVN"),
        ("NONE", ""),
        ("RELU", "ReLU"),
        ("SIGMOID_CROSS_ENTROPY_LOSS", "SigmoidCrossEntropyLoss"),
        ("SOFTMAX_LOSS", "SoftmaxWithLoss"),
        ("TANH", "TanH"),
        ("WINDOW_DATA", "WindowData"),
    ],
)
def test_v1_type_names(old: str, new: str) -> None:
    assert V1_TYPES[old] == new


def test_every_v1_option_has_a_place_today() -> None:
    gathered = {"param", "blob_share_mode", "blobs_lr", "weight_decay", "layer", "type"}
    today = LayerParameter.DESCRIPTOR.fields_by_name
    for field in V1LayerParameter.DESCRIPTOR.fields:
        if field.name not in gathered:
            assert today[field.name].message_type is field.message_type, field.name


def test_every_v0_option_has_a_place_in_v1() -> None:
    v1 = V1LayerParameter.DESCRIPTOR.fields_by_name
    placed = {"name", "type", *_V0_KEPT}
    for kind, param, options in V0_TYPES.values():
        assert kind in V1_TYPES
        for option in options.split():
            renamed = _V0_RENAMED.get(option, option.removeprefix("det_"))
            assert renamed in v1[param].message_type.fields_by_name, (kind, option)
            placed.add(option)
    # Caffe has no place for these two either
    assert set(V0LayerParameter.DESCRIPTOR.fields_by_name) - placed == {"new_num", "new_channels"}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('layers { layer { name: "a" type: "convv" } }', "unknown layer type 'convv'; did you mean \"conv\"?"),
        (
            'layers { layer { name: "p" type: "padding" pad: 1 } bottom: "x" top: "p" }\n'
            'layers { layer { name: "a" type: "relu" } bottom: "p" top: "p" }',
            "only a conv or pool layer with one bottom can follow a padding layer",
        ),
        (
            'layers { layer { name: "a" type: "padding" pad: 1 } bottom: "x" }',
            "a padding layer has one bottom and one top",
        ),
        (
            'layers { layer { name: "b" type: "relu" } }\nlayers { name: "a" type: RELU }',
            "has no `layer` block inside, unlike others; two old forms are mixed",
        ),
    ],
    ids=["type", "padding into relu", "padding without top", "mixed"],
)
def test_v0_errors_name_the_layer(text: str, error: str) -> None:
    line = text.count("\n") + 1
    assert error_of(parse_net, text, "n.prototxt") == f"n.prototxt:{line}: layer 'a': {error}"


@pytest.mark.parametrize(
    ("text", "kept", "lost"),
    [
        (
            'layers { layer { name: "a" type: "innerproduct" num_output: 2 det_fg_threshold: 0.5 kernelsize: 3 } }',
            'layer { name: "a" type: "InnerProduct" inner_product_param { num_output: 2 } }',
            [
                "n.prototxt:1: layer 'a': 'kernelsize' is no option of a 'innerproduct' layer",
                "n.prototxt:1: layer 'a': 'det_fg_threshold' is no option of a 'innerproduct' layer",
            ],
        ),
        (
            'layers { layer { name: "a" type: "relu" new_num: 2 } loss_weight: 1 include { phase: TEST } }',
            'layer { name: "a" type: "ReLU" }',
            [
                "n.prototxt:1: layer 'a': 'include' stands beside `layer`, not in it",
                "n.prototxt:1: layer 'a': 'loss_weight' stands beside `layer`, not in it",
                "n.prototxt:1: layer 'a': 'new_num' is no option of a 'relu' layer",
            ],
        ),
        (
            'layers { layer { name: "p" type: "padding" pad: 1 stride: 2 } bottom: "x" top: "p" }\n'
            'layers { layer { name: "a" type: "conv" kernelsize: 3 } bottom: "p" top: "a" }',
            'layer { name: "a" type: "Convolution" bottom: "x" top: "a" convolution_param { kernel_size: 3 pad: 1 } }',
            ["n.prototxt:1: layer 'p': 'stride' is no option of a 'padding' layer"],
        ),
        (
            'debug_info: true layers { layer { name: "a" type: "relu" } }',
            'layer { name: "a" type: "ReLU" }',
            ["n.prototxt: 'debug_info' is no field of a net in this old form"],
        ),
    ],
    ids=["option", "beside", "padding", "net"],
)
def test_what_v0_has_no_place_for_is_left_out_with_a_warning(text: str, kept: str, lost: list[str]) -> None:
    file = parse_net(text, "n.prototxt")
    assert file.message == net(kept)
    assert [line.removesuffix("; left out, as Caffe does; remove it") for line in file.warnings] == lost


def test_inline_nets_of_a_solver_tell_it_too() -> None:
    text = 'net_param { layers { layer { name: "a" type: "relu" group: 2 } } }'
    with pytest.warns(UserWarning, match="s: net_param: layer 'a': 'group' is no option of a 'relu' layer; left out"):
        file = parse_solver(text, "s")
    assert file.message.net_param == net('layer { name: "a" type: "ReLU" }')


def test_padding_ends_where_its_blob_is_written_again() -> None:
    text = """
    layers { layer { name: "p" type: "padding" pad: 1 } bottom: "x" top: "y" }
    layers { layer { name: "c" type: "conv" kernelsize: 3 pad: 7 } bottom: "y" top: "y" }
    layers { layer { name: "r" type: "relu" } bottom: "y" top: "y" }
    """
    conv, relu = upgrade_net(net(text))[0].layer
    assert (list(conv.bottom), list(conv.convolution_param.pad)) == (["x"], [1])
    assert list(relu.bottom) == ["y"]


LAYER = 'layer { name: "r" type: "ReLU" bottom: "a" top: "r" }'


@pytest.mark.parametrize(
    "shapes",
    [
        "input_dim: [1, 2, 3, 4] input_dim: [5, 6, 7, 8]",
        "input_shape { dim: [1, 2, 3, 4] } input_shape { dim: [5, 6, 7, 8] }",
    ],
    ids=["input_dim", "input_shape"],
)
def test_inputs_become_the_first_layer(shapes: str) -> None:
    upgraded, lines, _ = upgrade_net(net(f'input: "a" input: "b" {shapes} {LAYER}'), "n", [9])
    new = f"""
    layer {{
      name: "input" type: "Input" top: "a" top: "b"
      input_param {{ shape {{ dim: [1, 2, 3, 4] }} shape {{ dim: [5, 6, 7, 8] }} }}
    }} {LAYER}"""
    assert upgraded == net(new)
    assert lines == (None, 9)


def test_input_names_without_shapes_are_dropped() -> None:
    assert upgrade_net(net(f'input: "a" {LAYER}'))[0] == net(LAYER)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('input: "a" input: "b" input_shape { dim: 1 }', "2 input, but 1 input_shape"),
        ('input: "a" input_shape { } input_shape { }', "1 input, but 2 input_shape"),
        ('input: "a" input_dim: [1, 2, 3]', "1 input, but 3 input_dim"),
        ('input: "a" input: "b" input_dim: [1, 2, 3, 4]', "2 input, but 4 input_dim"),
    ],
)
def test_inputs_and_shapes_must_pair(text: str, found: str) -> None:
    assert error_of(upgrade_net, net(text), "n") == f"n: {found}; expected one input_shape or four input_dim per input"


@pytest.mark.parametrize(
    ("kind", "param"),
    [("DATA", "data_param"), ("IMAGE_DATA", "image_data_param"), ("WINDOW_DATA", "window_data_param")],
)
@pytest.mark.parametrize("option", ["scale: 2", 'mean_file: "m"', "crop_size: 3", "mirror: true"])
def test_v1_transform_options_move(kind: str, param: str, option: str) -> None:
    layer = upgrade_net(net(f'layers {{ type: {kind} {param} {{ source: "s" {option} }} }}'))[0].layer[0]
    wanted = f'type: "{V1_TYPES[kind]}" {param} {{ source: "s" }} transform_param {{ {option} }}'
    assert layer == parse_text(wanted, LayerParameter)


def test_three_batch_norm_params_are_frozen_and_keep_their_names() -> None:
    text = 'layer { type: "BatchNorm" param { name: "m" lr_mult: 1 } param { force_mult: 1 } param { } }'
    specs = upgrade_net(net(text))[0].layer[0].param
    assert [(spec.lr_mult, spec.decay_mult) for spec in specs] == [(0, 0)] * 3
    assert (specs[0].name, specs[1].force_mult) == ("m", 1)


@pytest.mark.parametrize(
    "text", ['type: "BatchNorm" param { } param { }', 'type: "Scale" param { } param { } param { }']
)
def test_other_params_stay(text: str) -> None:
    layer = upgrade_net(net(f"layer {{ {text} }}"))[0].layer[0]
    assert not any(spec.HasField("lr_mult") for spec in layer.param)


# ---- solvers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SGD", "SGD"),
        ("NESTEROV", "Nesterov"),
        ("ADAGRAD", "AdaGrad"),
        ("RMSPROP", "RMSProp"),
        ("ADADELTA", "AdaDelta"),
        ("ADAM", "Adam"),
    ],
)
def test_solver_type(old: str, new: str) -> None:
    message = solver(f"solver_type: {old}")
    assert upgrade_solver(message) == solver(f'type: "{new}"')
    assert message == solver(f"solver_type: {old}")


def test_both_solver_types() -> None:
    text = error_of(upgrade_solver, solver('type: "SGD" solver_type: ADAM'), "s")
    assert text == 's: solver_type ADAM and type "SGD" are both set; remove solver_type'


@pytest.mark.parametrize(
    ("prefix", "name", "upgraded"),
    [
        ("", "dir/lenet_solver.prototxt", os.path.abspath("dir/lenet_solver")),
        ("", "/dir/v1.2/solver", "/dir/v1.2/solver"),
        ("", "<text>", ""),
        ("out/lenet", "dir/solver.prototxt", "out/lenet"),
    ],
)
def test_snapshot_prefix(prefix: str, name: str, upgraded: str) -> None:
    assert upgrade_solver(SolverParameter(snapshot_prefix=prefix), name).snapshot_prefix == upgraded


@pytest.mark.parametrize("field", ["net_param", "train_net_param", "test_net_param"])
def test_inline_nets_are_upgraded(field: str) -> None:
    upgraded = upgrade_solver(solver(f"{field} {{ {V1} }}"))
    assert upgraded == solver(f"{field} {{ {V1_UPGRADED} }}")


@pytest.mark.parametrize(("field", "where"), [("net_param", "net_param"), ("test_net_param", "test_net_param 0")])
def test_inline_net_without_layers(field: str, where: str) -> None:
    assert error_of(upgrade_solver, solver(f"{field} {{ }}"), "s") == f"s: {where}: the net has no layers"
