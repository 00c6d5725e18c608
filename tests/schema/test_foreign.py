"""Fields that Caffe's schema lacks: those of own layers are kept and come back, those of forks without effect go."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forcereg.errors import ForceregError
from forcereg.schema import NetParameter, SolverParameter
from forcereg.schema.foreign import layer_options, own_names
from forcereg.schema.text import parse_net, parse_solver, parse_text, read_net, to_text


def own(text: str, kind: str = "Mine") -> dict[str, object]:
    """The options of a layer with these fields."""
    return layer_options(parse_net(f'layer {{ name: "l" type: "{kind}" {text} }}').message.layer[0])


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("permute_param { order: 0 order: 2 order: 3 order: 1 }", {"permute_param": {"order": [0, 2, 3, 1]}}),
        ("permute_param: < order: [0, 2,3] >", {"permute_param": {"order": [0, 2, 3]}}),
        ("a_param { n: 1 m: -1 x: 0.5 y: 1e-3 z: .5f h: 0x10 o: 010 i: -inf }",
         {"a_param": {"n": 1, "m": -1, "x": 0.5, "y": 0.001, "z": 0.5, "h": 16, "o": 8, "i": float("-inf")}}),
        ("a_param { yes: true no: false word: MAX s: 'a' \"b\\n\" t: \"\\303\\251\" }",
         {"a_param": {"yes": True, "no": False, "word": "MAX", "s": "ab\n", "t": "é"}}),
        ("a_param { yes: True no: False }", {"a_param": {"yes": True, "no": False}}),  # protobuf's other forms
        ("a_param { one: [1] none: [] in { x: 1 } in { x: 2 } deep { er { est: 1 } } }",
         {"a_param": {"one": [1], "none": [], "in": [{"x": 1}, {"x": 2}], "deep": {"er": {"est": 1}}}}),
        ("a_param { in: [{ x: 1 }, { x: 2 }] }", {"a_param": {"in": [{"x": 1}, {"x": 2}]}}),
        ("alpha: 0.5; a_param { b: 1, c: 2; } # comment }\n", {"alpha": 0.5, "a_param": {"b": 1, "c": 2}}),
        ("a_param { x: 1 } a_param { x: 2 }", {"a_param": [{"x": 1}, {"x": 2}]}),
        ("convolution_param { num_output: 3 kernel_size: 3 bias_filler { value: 0.1 } }",
         {"convolution_param": {"num_output": 3, "kernel_size": [3], "bias_filler": {"value": 0.1}}}),
        # a message of Caffe's with one more field is kept whole, its other fields as Caffe has them
        ("image_data_param { source: 'x' label_type: PIXEL }",
         {"image_data_param": {"source": "x", "label_type": "PIXEL"}}),
        ("convolution_param { num_output: 3 kernel_size: 3 bias_filler { value: 1 } axes: 1 }",
         {"convolution_param": {"num_output": 3, "kernel_size": [3], "bias_filler": {"value": 1.0}, "axes": 1}}),
        ("pooling_param { pool: MEDIAN }", {"pooling_param": {"pool": "MEDIAN"}}),
        # nor are these options
        ("bottom: 'a' top: 'b' loss_weight: 1 param { lr_mult: 2 } include { phase: TRAIN }", {}),
    ],
)  # fmt: skip
def test_values(text: str, values: dict[str, object]) -> None:
    assert own(text) == values


def test_of_python_layers_too() -> None:
    text = "python_param { module: 'm' layer: 'L' } my_param { x: 1 }"
    assert own(text, "Python") == {"my_param": {"x": 1}}


NET = """name: "net"  # a comment
layer { name: "in" type: "Input" top: "a" input_param { shape { dim: 1 dim: 3 } } }
layer { name: "p" type: "Permute" bottom: "a" top: "p" permute_param { order: 0 order: 1 # one
   note: "{ # }" 'x' } include { phase: TEST } alpha: [1] }
layer { name: "d" type: "ImageSegData" top: "d" image_data_param { source: "s" label_type: NONE batch_size: 2 } }
layer { name: "r" type: "ReLU" bottom: "p" top: "r" }
"""


def test_kept_by_message_and_text() -> None:
    file = parse_net(NET, "n")
    assert file.lines == (2, 3, 5, 6) and file.text == NET
    text = to_text(file.message)
    assert "own_fields" not in text and "  permute_param {\n    order: 0\n    order: 1\n" in text
    again = parse_net(text).message
    assert again == file.message and to_text(again) == text
    assert layer_options(again.layer[1]) == {"permute_param": {"order": [0, 1], "note": "{ # }x"}, "alpha": [1]}
    assert pickle.loads(pickle.dumps(file.message)) == file.message
    assert NetParameter.FromString(file.message.SerializeToString()) == file.message
    assert own_names(again.layer[2]) == ["image_data_param.label_type"] and not own_names(again.layer[3])


def test_of_nets_in_solvers() -> None:
    solver = parse_text(f"base_lr: 0.1 net_param {{ {NET} }} test_net_param {{ {NET} }}", SolverParameter)
    text = to_text(solver)
    assert parse_text(text, SolverParameter) == solver and "own_fields" not in text
    for net in (solver.net_param, solver.test_net_param[0]):
        assert layer_options(net.layer[1])["alpha"] == [1]
    upgraded = parse_solver(text).message
    assert layer_options(upgraded.test_net_param[0].layer[1])["alpha"] == [1]


NAMES = st.sampled_from(("alpha", "order", "x", "word_", "in", "my_param", "convolution_param"))
SCALARS = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.floats(allow_nan=False).map(repr),
    st.sampled_from(("true", "MAX", "'a' \"b\"", '"\\"{\\n"', "0x1F", "-inf")),
)
FIELDS = st.recursive(
    st.tuples(NAMES, SCALARS).map(lambda pair: f"{pair[0]}: {pair[1]}"),
    lambda inner: st.one_of(
        st.tuples(NAMES, st.lists(inner, max_size=3)).map(lambda pair: f"{pair[0]} {{ {' '.join(pair[1])} }}"),
        st.tuples(NAMES, st.lists(SCALARS, max_size=3)).map(lambda pair: f"{pair[0]}: [{', '.join(pair[1])}]"),
    ),
    max_leaves=8,
)


@given(st.lists(FIELDS, min_size=1, max_size=4))
def test_any_fields_come_back(fields: list[str]) -> None:
    text = f'layer {{ name: "l" type: "Mine" mine_param {{ {" ".join(fields)} }} }} layer {{ name: "after" }}'
    net = parse_net(text).message
    again = parse_net(to_text(net)).message
    assert again == net and layer_options(again.layer[0]) == layer_options(net.layer[0])
    assert [layer.name for layer in again.layer] == ["l", "after"]


# -- what forks have without effect here


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("default_forward_type: FLOAT16 layer { forward_type: FLOAT backward_math: FLOAT16 }",
         "default_forward_type, forward_type, backward_math (NVCaffe)"),
        ("layer { type: 'Data' data_param { source: 'x' cache: true threads: 2 } }", "cache, threads (NVCaffe)"),
        ("layer { type: 'Data' data_param { shuffle: false } }", "shuffle (NVCaffe)"),
        ("layer { type: 'ReLU' relu_param { engine: MKL2017 } }", "engine (Intel's Caffe)"),
        ("layer { type: 'Dropout' dropout_param { engine: CUDNN } } engine: 'MKLDNN:CPU'",
         "engine (NVCaffe); engine (Intel's Caffe)"),
        ("layer { type: 'InnerProduct' inner_product_param { dump_parameter: true spmdm_transpose_in: false } }",
         "dump_parameter, spmdm_transpose_in (SkimCaffe)"),
        ("layer { type: 'Split' split_param { engine: MKL2017 } }", "split_param (Intel's Caffe)"),
        ("layer { type: 'ReLU' engine: 'CAFFE' }", "engine (Intel's Caffe)"),
        ("layer { type: 'Concat' concat_param { engine: MKLDNN axis: 1 } }", "engine (Intel's Caffe)"),
        ("layer { type: 'Convolution' quantization_param { bw_params: 8 } }", "quantization_param (Ristretto)"),
        ("layers { type: CONVOLUTION forward_type: FLOAT convolution_param { engine: MKL2017 } }",
         "forward_type (NVCaffe); engine (Intel's Caffe)"),
    ],
)  # fmt: skip
def test_skipped(text: str, told: str) -> None:
    with pytest.warns(UserWarning) as caught:
        file = parse_net(text, "n")
    (warning,) = caught
    assert str(warning.message) == f"n: fields of forks that change no results here are skipped: {told}"
    again = to_text(file.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parse_net(again).message == file.message  # nothing of them is left


def test_skipped_in_solvers() -> None:
    with pytest.warns(UserWarning, match=r"eval_type, show_per_class_result \(SSD\); min_lr, larc \(NVCaffe\)"):
        file = parse_solver('eval_type: "detection" show_per_class_result: true min_lr: 0. larc: false base_lr: 1', "s")
    assert file.message.base_lr == 1


def test_skipped_in_own_layers() -> None:
    with pytest.warns(UserWarning, match=r"engine \(Intel's Caffe\)"):
        net = parse_net("layer { type: 'Mine' convolution_param { num_output: 3 engine: MKL2017 axes: 2 } }").message
    assert layer_options(net.layer[0]) == {"convolution_param": {"num_output": 3, "axes": 2}}


# -- what stays an error


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mine_param { x: $ }", "46: found '$', expected a value"),
        ("mine_param { x: 1.2.3 }", "46: found '1.2.3', expected a value"),
        ("mine_param { x 1 }", "45: found '1', expected \":\" or \"{\""),
        ("mine_param { x: [1 2] }", "49: found '2', expected \",\" or \"]\""),
        ("mine_param { x: [1,] }", "49: found ']' after a comma, expected a value; remove the comma"),
        ("mine_param { x = 1 }", "45: found '='; write x: VALUE"),
        ('mine_param { x: "a }', "46: found '\"a } }', expected a value"),
        ("mine_param { x: 1 ", "25: the block opened in line 1 is never closed; add a }"),
        ("botom: 'x'", "30: 'botom' is no field of LayerParameter; did you mean \"bottom\"?"),
        ("loss_weigth: 1", "30: 'loss_weigth' is no field of LayerParameter; did you mean \"loss_weight\"?"),
        ("param { lr: 1 }", "38: 'lr' is no field of ParamSpec"),
        ("layer { }", "30: 'layer' is no field of LayerParameter; is the block above closed? a } may be missing"),
        ("own_fields: 'x: 1'", "30: 'own_fields' is no field of LayerParameter"),
        ("blobs_lr: 1", "30: 'blobs_lr' is no field of LayerParameter but of the old format `layers`; write param"),
        ("a: " + "9" * 500, "33: found '9999999999999999999999999999999999999...', expected a value"),
    ],
)  # fmt: skip
def test_errors_in_own_layers(text: str, told: str) -> None:
    with pytest.raises(ForceregError) as caught:
        parse_net(f'layer {{ name: "l" type: "My" {text} }}', "n")
    assert str(caught.value).startswith(f"n:1:{told}"), str(caught.value)


# -- binary nets


def test_many_fields_take_memory_once() -> None:
    """Each write of a string stays in its message's memory: a write for each field took 22 GB for 200,000."""
    before = getrusage(RUSAGE_SELF).ru_maxrss
    assert own("a: 1 " * 20_000)["a"] == [1] * 20_000
    assert getrusage(RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_of_binary_nets(tmp_path: Path) -> None:
    path, net = tmp_path / "n.caffemodel", parse_net(NET).message
    path.write_bytes(net.SerializeToString())
    again = read_net(path)
    assert layer_options(again.message.layer[1])["alpha"] == [1] and "permute_param {" in again.text
    net.layer[1].own_fields = "permute_param { order: "
    path.write_bytes(net.SerializeToString())
    with pytest.raises(ForceregError, match="layer 'p': own_fields is no prototxt; it may be damaged"):
        read_net(path)


def test_of_forks_binary_nets(tmp_path: Path) -> None:
    """Fields in numbers of another schema are kept as they are, and the user is told that nobody reads them."""
    path, net = tmp_path / "n.caffemodel", NetParameter()
    own = b"\xd2\x0c\x02\x08\x05"  # field 202, a message
    net.layer.add().MergeFromString(b"\x0a\x01p\x12\x07Permute" + own)
    net.layer.add().MergeFromString(b"\x0a\x01r\x12\x04ReLU" + own)
    path.write_bytes(net.SerializeToString())
    with pytest.warns(
        UserWarning, match="parameters of the own types of 'p' are not read: a binary net holds no names"
    ):
        file = read_net(path)
    assert own in file.message.layer[0].SerializeToString()
