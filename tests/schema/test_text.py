"""Reading and writing net and solver files: what is accepted, and the line that says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forcereg.errors import ForceregError
from forcereg.schema import (
    BlobProto,
    LayerParameter,
    NetParameter,
    NetState,
    SolverParameter,
    V1LayerParameter,
)
from forcereg.schema.text import (
    net_from_message,
    parse_net,
    parse_solver,
    parse_text,
    read_net,
    read_solver,
    to_text,
)

SOLVER = """\
# the solver of the fork's README
net: "examples/mnist/lenet_train_test_force.prototxt"
base_lr: 0.01
momentum: 0.9
force_type: "Constant"
force_decay: 0.001
lr_policy: "multistep"
stepvalue: 5000
stepvalue: 7000
solver_mode: GPU
"""
NET = """\
name: "net"  # layer { in a comment
layer {
  name: "data" type: "Input" top: "data"
  input_param { shape { dim: [2, 3, 4, 4] } }
}

layer < name: "layer {" type: 'Convolution' bottom: "data" top: "conv"
  param { lr_mult: 1 force_mult: 1.5e-1 }
  convolution_param: { num_output: 20; kernel_size: 3, pad: 1 }
>
layer: [
  { name: "a" type: "ReLU" bottom: "conv" top: "conv" },
  { name: "b" type: "Silence" bottom: "conv" }
]
"""


def error_of(read: Any, *args: Any) -> str:
    """The message of the ForceregError that the call raises, checked to be one line."""
    with pytest.raises(ForceregError) as caught:
        read(*args)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 300
    return text


def test_solver_of_the_readme() -> None:
    solver = parse_solver(SOLVER, "<text>").message
    assert (solver.force_type, solver.force_decay) == ("Constant", pytest.approx(0.001))
    assert (solver.force_decay_type, solver.force_direction, solver.force_iter) == ("fixed", "all", -1)
    assert list(solver.stepvalue) == [5000, 7000]
    assert solver.HasField("solver_mode") and solver.solver_mode == SolverParameter.GPU


def test_net_and_the_lines_of_its_layers() -> None:
    net = parse_net(NET, "net.prototxt")
    assert [layer.name for layer in net.message.layer] == ["data", "layer {", "a", "b"]
    assert net.lines == (2, 7, 11, 13)
    assert net.where(1) == "net.prototxt:7: layer 'layer {'"
    assert net.text == NET
    assert list(net.message.layer[1].convolution_param.kernel_size) == [3]


def test_force_mult_is_zero_unless_written() -> None:
    layer = parse_net('layer { name: "c" type: "ReLU" param { } }').message.layer[0]
    assert (layer.param[0].force_mult, layer.param[0].lr_mult) == (0, 1)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("force_decoy: 1", "1:1: 'force_decoy' is no field of SolverParameter; did you mean \"force_decay\"?"),
        ("\n  Net: 3", "2:3: 'Net' is no field of SolverParameter; did you mean \"net\"?"),
        ("qqqqqq: 3", "1:1: 'qqqqqq' is no field of SolverParameter"),
        ("layer { }", "1:1: 'layer' is no field of SolverParameter; is this a net file?"),
        (
            "[foo.bar]: 3",
            "1:6: found 'bar' after '[', expected a field name; no field of Caffe's is written in brackets",
        ),
        ("solver_mode: GPUU", "1:14: 'GPUU' is no value of SolverMode; did you mean \"GPU\"?"),
        ("solver_mode: 7", "1:14: '7' is no value of SolverMode; known are CPU, GPU"),
        ('solver_mode: "GPU"', '1:14: found "GPU", expected GPU, without quotes'),
        ("base_lr: abc", "1:10: found 'abc', expected a number for 'base_lr'"),
        ("base_lr 0.1", "1:9: found '0.1', expected \":\" for 'base_lr'; write base_lr: 0.1"),
        ("base_lr", "1:8: found the end of the file, expected \":\" for 'base_lr'"),
        ("base_lr: 1\nbase_lr: 2", "2:10: 'base_lr' is set twice in one SolverParameter; remove one"),
        ("display: 1e3", "1:10: found '1e3', expected an integer for 'display'; write 1000"),
        (
            "max_iter: 99999999999",
            "1:11: found '99999999999', expected an integer from -2147483648 to 2147483647 for 'max_iter'",
        ),
        ("test_iter: [1, 2", '1:17: found the end of the file, expected "," or "]" for \'test_iter\''),
        ("test_initialization: maybe", "1:22: found 'maybe', expected true or false for 'test_initialization'"),
        ("net: foo", "1:6: found 'foo', expected a string in quotes for 'net'; write \"foo\""),
        ('net: "foo\n"', "1:6: found '\"foo', expected a closing quote on the same line for 'net'"),
        ('net: "C:\\data"', '1:9: "\\d" is no escape sequence; write "\\\\" for a backslash'),
        ('net: "\\777"', '1:7: "\\777" is no escape sequence; write "\\\\" for a backslash'),
        ('net: "\\377"', "1:6: found \"\\377\", which is not UTF-8, expected a string in UTF-8 for 'net'"),
        ("net: '\udc80'", "1:7: a character that is not UTF-8"),
        ("net_param: 3", "1:12: found '3', expected \"{\" for 'net_param'"),
        ("}", "1:1: found '}', expected a field name"),
        ("@", "1:1: found '@', expected a field name"),
    ],
)
def test_solver_errors(text: str, error: str) -> None:
    assert error_of(parse_solver, text, "s.prototxt") == f"s.prototxt:{error}"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("base_lr: 1", "1:1: 'base_lr' is no field of NetParameter; is this a solver file?"),
        ('type: "ReLU"', "1:1: 'type' is no field of NetParameter; it belongs in layer"),
        (
            "layer {\n  num_output: 3 }",
            "2:3: 'num_output' is no field of LayerParameter; it belongs in "
            "convolution_param, embed_param, inner_product_param, recurrent_param",
        ),
        (
            'layer { name: "a"\nlayer { name: "b" }',
            "2:1: 'layer' is no field of LayerParameter; is the block above closed? a } may be missing",
        ),
        (
            "layer { convolution_param { kernelsize: 3 } }",
            "1:29: 'kernelsize' is no field of ConvolutionParameter; did you mean \"kernel_size\"?",
        ),
        (
            "layer { pooling_param { pool: AVG } }",
            "1:31: 'AVG' is no value of PoolMethod; did you mean \"AVE\"?",
        ),
        (
            "layer { type: INNER_PRODUCT }",
            "1:15: found 'INNER_PRODUCT', expected a string in quotes for 'type'; write \"InnerProduct\"",
        ),
        (
            'layers { type: "Convolution" }',
            '1:16: found "Convolution", a type of the new format; `layers` is the old format; write `layer {`',
        ),
        (
            'layer {\n  name: "a"\n  include {\n    phase: TEST\n  # }\n}\n',
            "6:1: the block opened in line 1 is never closed; add a }",
        ),
        ("layer { } }", "1:11: found '}', expected a field name"),
        (
            "layer {} layers {}",
            "1: `layer` (line 1) and `layers` in one net; `layers` is the old format, make all of them `layer { ... }`",
        ),
        ("# nothing", " the net has no layers"),
    ],
)
def test_net_errors(text: str, error: str) -> None:
    assert error_of(parse_net, text, "n.prototxt") == f"n.prototxt:{error}"


@pytest.mark.parametrize("text", ["{" * 10**7, "layer{" * 10**6, "layer{param{" * 10**5, "input_dim:[" * 10**5])
def test_deep_nesting_is_one_line(text: str) -> None:
    assert error_of(parse_net, text, "deep.prototxt").startswith("deep.prototxt:1:")


@pytest.mark.parametrize("length", [10**2, 10**6])
def test_long_tokens_are_cut(length: int) -> None:
    assert "aaa...'" in error_of(parse_net, "a" * length)


scalars: dict[str, st.SearchStrategy[Any]] = {
    "string": st.text(max_size=20),
    # not up to the largest float: protobuf 4.25 in pure Python prints that one rounded up, and reads it back as inf
    "float": st.floats(-(2.0**127), 2.0**127, width=32) | st.sampled_from([float("inf"), -float("inf")]),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "bool": st.booleans(),
}
SOLVER_FIELDS = {
    "net": "string",
    "snapshot_prefix": "string",
    "force_type": "string",
    "base_lr": "float",
    "force_decay": "float",
    "delta": "float",
    "max_iter": "int32",
    "random_seed": "int64",
    "snapshot_diff": "bool",
}


@st.composite
def solvers(draw: st.DrawFn) -> Any:
    solver = SolverParameter()
    for field in draw(st.sets(st.sampled_from(sorted(SOLVER_FIELDS)))):
        setattr(solver, field, draw(scalars[SOLVER_FIELDS[field]]))
    solver.stepvalue.extend(draw(st.lists(scalars["int32"], max_size=3)))
    solver.weights.extend(draw(st.lists(scalars["string"], max_size=3)))
    solver.snapshot_format = draw(st.sampled_from(SolverParameter.SnapshotFormat.values()))
    for stages in draw(st.lists(st.lists(scalars["string"], max_size=2), max_size=2)):
        solver.test_state.add(stage=stages, level=draw(scalars["int32"]))
    return solver


@settings(derandomize=True, deadline=None, max_examples=150)
@given(solvers())
def test_text_round_trip(solver: Any) -> None:
    assert parse_text(to_text(solver), SolverParameter) == solver


space = st.sampled_from([" ", "\n", "\t", "\r\n", " # layer { }\n", "#\n", "\n\n"])
name = st.sampled_from(["a", "layer", "layer {", "}", "#", '\\"{', "\\'", "é"])


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(st.tuples(space, space, name, st.sampled_from(["{}", "<>"])), min_size=1, max_size=6))
def test_layer_lines_in_any_formatting(layers: list[tuple[str, str, str, str]]) -> None:
    text, lines = "", []
    for before, inside, value, (start, end) in layers:
        text += before
        lines.append(text.count("\n") + 1)
        text += f'layer{inside}{start}name:{inside}"{value}" include {{ }}{before}{end}'
    assert parse_net(text).lines == tuple(lines)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, len(NET) - 1), st.sampled_from([*"{}<>[]:\"'\\#\n;,0.\0\u2028é\udc80", ""]))))
def test_any_damage_to_a_net_is_one_line_or_none(edits: list[tuple[int, str]]) -> None:
    characters = list(NET)
    for at, character in edits:
        characters[at] = character
    try:
        net = parse_net("".join(characters), "n")
    except ForceregError as error:
        assert str(error).startswith("n:") and len(str(error).splitlines()) == 1
    else:
        assert len(net.lines) == len(net.message.layer)


def test_message_to_net_file_keeps_the_argument() -> None:
    message = NetParameter(input=["data"])
    message.input_shape.add(dim=[1, 2])
    message.layer.add(name="r", type="ReLU").blobs.add(data=[1.5])
    before = message.SerializeToString()
    net = net_from_message(message)
    assert message.SerializeToString() == before
    assert [layer.name for layer in net.message.layer] == ["input", "r"]
    assert net.where(1) == "<message>: layer 'r'"
    assert list(net.message.layer[1].blobs[0].data) == [1.5]
    assert "1.5" not in net.text and parse_net(net.text).message.layer[0] == net.message.layer[0]


# ---- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "first_line"),
    [
        pytest.param(NET.encode(), 2, id="plain"),
        pytest.param(b"\xef\xbb\xbf" + NET.encode(), 2, id="byte order mark"),
        pytest.param(NET.replace("\n", "\r\n").encode(), 2, id="CRLF"),
        pytest.param(b"\f\v" + NET.encode(), 2, id="form feed"),
    ],
)
def test_read_text(tmp_path: Path, data: bytes, first_line: int) -> None:
    path = tmp_path / "net.prototxt"
    path.write_bytes(data)
    net = read_net(path)
    assert net.where(0) == f"{path}:{first_line}: layer 'data'"
    assert net.message == parse_net(NET).message


def v1_net() -> Any:
    net = NetParameter(name="old")
    net.layers.add(name="r", type=V1LayerParameter.RELU, bottom=["x"], top=["y"])
    return net


@pytest.mark.parametrize(
    ("message", "types"),
    [
        pytest.param(parse_net(NET).message, ["Input", "Convolution", "ReLU", "Silence"], id="layer"),
        pytest.param(v1_net(), ["ReLU"], id="layers"),
    ],
)
def test_read_binary(tmp_path: Path, message: Any, types: list[str]) -> None:
    path = tmp_path / "net.caffemodel"
    for layer in message.layer:
        layer.display = True  # as every net of the fork says, whose force_mult it has
    path.write_bytes(message.SerializeToString())
    net = read_net(str(path))
    assert [layer.type for layer in net.message.layer] == types
    assert set(net.lines) == {None}
    assert net.where(0) == f"{path}: layer '{net.message.layer[0].name}'"
    assert parse_net(net.text).message == net.message


def fork_layer(kind: str, number: int, payload: bytes) -> bytes:
    """A binary layer with a message of the fork's under the fork's own field number."""
    layer = LayerParameter(name="x", type=kind, bottom=["b"]).SerializeToString()
    tag = number << 3 | 2
    layer += bytes([tag & 0x7F | 0x80, tag >> 7, len(payload)]) + payload
    return b"\xa2\x06" + bytes([len(layer)]) + layer


def test_sparsify_of_a_binary_fork_net(tmp_path: Path) -> None:
    payload = LayerParameter(sparsify_param={"thre": 0.5, "coef": 2}).sparsify_param.SerializeToString()
    (tmp_path / "x.caffemodel").write_bytes(fork_layer("Sparsify", 147, payload))
    layer = read_net(tmp_path / "x.caffemodel").message.layer[0]
    assert (layer.sparsify_param.thre, layer.sparsify_param.coef) == (0.5, 2)
    assert not layer.HasField("swish_param")


def test_symmetric_rectify_of_a_binary_fork_net(tmp_path: Path) -> None:
    options = {"filler": {"value": 0.25}, "channel_shared": True, "thre_decay": 3}
    payload = LayerParameter(symmetric_rectify_param=options).symmetric_rectify_param.SerializeToString()
    (tmp_path / "x.caffemodel").write_bytes(fork_layer("SymmetricRectify", 148, payload))
    layer = read_net(tmp_path / "x.caffemodel").message.layer[0]
    assert layer.symmetric_rectify_param == LayerParameter(symmetric_rectify_param=options).symmetric_rectify_param
    assert not layer.HasField("clip_param")


def test_swish_and_clip_of_a_binary_caffe_net_stay(tmp_path: Path) -> None:
    net = NetParameter()
    net.layer.add(type="Swish", swish_param={"beta": 2})
    net.layer.add(type="Clip", clip_param={"min": -1, "max": 1})
    (tmp_path / "x.caffemodel").write_bytes(net.SerializeToString())
    assert read_net(tmp_path / "x.caffemodel").message == net


@pytest.mark.parametrize(
    ("data", "error"),
    [
        pytest.param(b"\x89HDF\r\n\x1a\n", "an HDF5 file, expected a net", id="HDF5"),
        pytest.param(bytes(range(256)), "neither prototxt (byte 0 is 0x00) nor a binary net", id="garbage"),
        pytest.param(b"\xa2\x06\x7f" * 1000, "(byte 1 is 0x06) nor a binary net", id="truncated"),
        pytest.param(b"\x0b" * 10**5 + b"\0", "nor a binary net", id="nested groups"),
        pytest.param(NET.encode("utf-16"), "1:1: text in UTF-16, expected UTF-8; save the file", id="UTF-16"),
        pytest.param(NET.encode() + b"\x1b", f"neither prototxt (byte {len(NET)} is 0x1b)", id="control"),
        pytest.param(BlobProto(num=1, data=[1, 2]).SerializeToString(), "nor a binary net", id="a mean image"),
        pytest.param(b'name: "\xe9"', "1:8: byte 0xe9 is not UTF-8; save the file as UTF-8", id="Latin-1"),
        pytest.param(b"", "the net has no layers", id="empty"),
    ],
)
def test_files_that_are_no_nets(tmp_path: Path, data: bytes, error: str) -> None:
    path = tmp_path / "net.prototxt"
    path.write_bytes(data)
    text = error_of(read_net, path)
    assert text.startswith(f"{path}:") and error in text


@pytest.mark.parametrize("read", [read_net, read_solver])
@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("lenet_sovler.prototxt", 'no such file; did you mean "lenet_solver.prototxt"?'),
        ("nowhere/x.prototxt", "no such file"),
        ("folder", "cannot be read: it is a folder, expected a regular file"),
        ("lenet_solver.prototxt/x", "cannot be read: Not a directory"),
        ("nul\0byte", "cannot be read: embedded null byte"),
    ],
)
def test_paths_that_cannot_be_read(tmp_path: Path, read: Any, path: str, error: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "lenet_solver.prototxt").write_text(SOLVER)
    assert error_of(read, tmp_path / path).endswith(error)


def test_read_solver(tmp_path: Path) -> None:
    path = tmp_path / "lenet_solver.prototxt"
    path.write_text(SOLVER)
    solver = read_solver(path)
    assert (solver.name, solver.text) == (str(path), SOLVER)
    assert solver.message.snapshot_prefix == str(tmp_path / "lenet_solver")


def test_binary_solver_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(SolverParameter(max_iter=3, train_state=NetState(level=1)).SerializeToString())
    assert error_of(read_solver, tmp_path / "s").endswith("is 0x03; a solver file is plain text")
