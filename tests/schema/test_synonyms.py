"""Fields of forks that say what Caffe says by another name: DeepLab's hole, ceil_mode, torch_pooling."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from forcereg.errors import ForceregError
from forcereg.net.load import load_net, shape_net
from forcereg.schema import LayerParameter, V1LayerParameter
from forcereg.schema.text import parse_net, parse_text, read_net
from forcereg.schema.upgrade import V1_TYPES
from tests.conftest import RunCli
from tests.layers.nets import layer_error, layer_net, noise, run

SAME = [
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 pad: 2 hole: 2 }", "dilation: 2"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 hole_h: 2 hole_w: 1 }", "dilation: [2, 1]"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 hole: [1, 3] }", "dilation: [1, 3]"),
    ("Deconvolution", "convolution_param { num_output: 4 kernel_size: 3 hole: 2 }", "dilation: 2"),
    ("Im2col", "convolution_param { kernel_size: 3 hole: 2 }", "dilation: 2"),
    ("Pooling", "pooling_param { kernel_size: 3 stride: 2 ceil_mode: false }", "round_mode: FLOOR"),
    ("Pooling", "pooling_param { kernel_size: 3 stride: 2 ceil_mode: true }", "round_mode: CEIL"),
    ("Pooling", "pooling_param { kernel_size: 3 stride: 2 torch_pooling: true }", "round_mode: FLOOR"),
    ("Pooling", "pooling_param { kernel_size: 3 stride: 2 torch_pooling: false }", "round_mode: CEIL"),
    ("Pooling", "pooling_param { kernel_size: 3 stride: 2 round_mode: FLOOR ceil_mode: false }", "round_mode: FLOOR"),
]
"""Layer type, its parameters in a fork's words, and what Caffe says instead of the fork's fields."""
V1 = {new: old for old, new in V1_TYPES.items()}


def caffes(param: str, words: str) -> str:
    """`param` with `words` in place of the fork's fields."""
    left = re.sub(r"(hole\w*|ceil_mode|torch_pooling|round_mode): (\[.*?\]|\w+)", "", param)
    return f"{left.removesuffix('}')} {words} }}"


@pytest.mark.parametrize(("kind", "param", "words"), SAME)
def test_text_in_either_form_and_binary_nets_hold_caffes_words(
    kind: str, param: str, words: str, tmp_path: Path
) -> None:
    wanted = parse_text(f'type: "{kind}" {caffes(param, words)}', LayerParameter)
    text = f'layer {{ type: "{kind}" {param} }}'
    file = parse_net(text)
    assert list(file.message.layer) == [wanted]
    assert file.text == text
    assert list(parse_net(f"layers {{ type: {V1[kind]} {param} }}").message.layer) == [wanted]
    old = parse_text(f"type: {V1[kind]} {param}", V1LayerParameter).SerializeToString()
    new = parse_text(f'type: "{kind}" {param}', LayerParameter).SerializeToString()
    for tag, layer in ((b"\x12", old), (b"\xa2\x06", new)):  # the fields `layers` and `layer`
        (tmp_path / "net").write_bytes(tag + bytes([len(layer)]) + layer)
        assert list(read_net(tmp_path / "net").message.layer) == [wanted]


@pytest.mark.parametrize(("kind", "param", "words"), SAME)
def test_outputs_are_those_of_caffes_words(kind: str, param: str, words: str) -> None:
    x = noise(2, 3, 8, 9).float()
    found, wanted = (run(layer_net(kind, text, x.shape), x)[0] for text in (param, caffes(param, words)))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution", "Im2col"])
@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ("hole: 2 dilation: 2", "gives hole and dilation, which mean the same; give dilation alone"),
        ("hole_h: 2 hole_w: 2 dilation: 1", "gives hole_h and hole_w and dilation, which mean the same"),
        ("hole: 2 hole_h: 2 hole_w: 2", "gives hole and hole_h and hole_w; use one form"),
        ("hole_w: 2", "gives hole_w alone; give dilation: H dilation: W"),
        ("hole: 0", "dilation [0, 0] must be >= 1"),
        ("hole: [1, 2, 3]", "has 3 dilation entries; give 1 or one per spatial axis (2)"),
    ],
)
def test_holes_that_contradict_are_refused(kind: str, fields: str, error: str) -> None:
    text = layer_error(kind, f"convolution_param {{ num_output: 4 kernel_size: 3 {fields} }}", (2, 3, 8, 9))
    assert text.startswith(error)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ("round_mode: FLOOR ceil_mode: true", "round_mode FLOOR and ceil_mode true contradict each other"),
        ("round_mode: CEIL torch_pooling: true", "round_mode CEIL and torch_pooling true contradict each other"),
        ("ceil_mode: true torch_pooling: true", "ceil_mode true and torch_pooling true contradict each other"),
    ],
)
def test_roundings_that_contradict_are_refused(fields: str, error: str) -> None:
    text = layer_error("Pooling", f"pooling_param {{ kernel_size: 3 {fields} }}", (2, 3, 8, 9))
    assert text == f"{error}; give round_mode alone"


def test_the_faults_that_were_reported(run_cli: RunCli, tmp_path: Path) -> None:
    deeplab = """input: "data" input_dim: 1 input_dim: 3 input_dim: 16 input_dim: 16
        layers { name: "c" type: CONVOLUTION bottom: "data" top: "c"
          convolution_param { num_output: 4 kernel_size: 3 pad: 2 hole: 2 } }"""
    assert shape_net(deeplab).shapes["c"] == (1, 4, 16, 16)
    v0 = """name: "v0"
        input: "data" input_dim: 2 input_dim: 3 input_dim: 4 input_dim: 4
        layers { layer { name: "ip" type: "innerproduct" num_output: 2 det_fg_threshold: 0.5 }
                 bottom: "data" top: "ip" }"""
    (tmp_path / "v0.prototxt").write_text(v0)
    warning = "v0.prototxt:3: layer 'ip': 'det_fg_threshold' is no option of a 'innerproduct' layer; left out, as Caffe"
    for command in ("summary", "time", "check"):
        arguments = ["--model", "v0.prototxt", "--iterations", "1"] if command == "time" else ["v0.prototxt"]
        done = run_cli(command, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (done.stdout + done.stderr).count(warning) == 1
    with pytest.warns(UserWarning, match="det_fg_threshold"):
        load_net(tmp_path / "v0.prototxt")
    with pytest.raises(ForceregError, match="no such file"):
        load_net(tmp_path / "v1.prototxt")
