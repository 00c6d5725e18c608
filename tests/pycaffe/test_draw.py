"""caffe.draw."""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from google.protobuf import text_format
from PIL import Image

from forcereg.pycaffe import draw
from forcereg.pycaffe.proto import caffe_pb2

NET = """
name: "small"
layer { name: "data" type: "Data" top: "data" top: "label" data_param { batch_size: 64 } include { phase: TRAIN } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 20 kernel_size: 5 stride: 2 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: AVE kernel_size: 3 pad: 1 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip" inner_product_param { num_output: 10 } }
layer { name: "acc" type: "Accuracy" bottom: "ip" bottom: "label" top: "acc" include { phase: TEST } }
layer { name: "say \\"x\\"" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" exclude { phase: TEST } }
"""


@pytest.fixture
def net() -> Any:
    return text_format.Parse(NET, caffe_pb2.NetParameter())


def test_layers_and_blobs(net: Any) -> None:
    text = draw.draw_net(net, "LR", "dot").decode()
    assert text.startswith('digraph "small" {\n  rankdir="LR";')
    assert '"conv_blob" -> "relu_ReLU"' in text and '"relu_ReLU" -> "conv_blob"' in text
    assert '"data_Data" -> "label_blob" [label="Batch 64"]' in text
    assert '"ip_InnerProduct" -> "ip_blob" [label="10"]' in text
    assert r'"say \"x\"_SoftmaxWithLoss"' in text
    assert 'label=""' in draw.get_pydot_graph(net, "LR", label_edges=False).to_string()


@pytest.mark.parametrize(
    ("phase", "layers"),
    [
        pytest.param(None, {"data", "conv", "relu", "pool", "ip", "acc", 'say "x"'}, id="all"),
        pytest.param(caffe_pb2.TRAIN, {"data", "conv", "relu", "pool", "ip", 'say "x"'}, id="train"),
        pytest.param(caffe_pb2.TEST, {"conv", "relu", "pool", "ip", "acc"}, id="test"),
    ],
)
def test_phases(net: Any, phase: int | None, layers: set[str]) -> None:
    graph = draw.get_pydot_graph(net, "TB", phase=phase)
    assert {layer.name for layer in net.layer if f"{layer.name}_{layer.type}" in graph.nodes} == layers


def test_include_and_exclude(net: Any) -> None:
    net.layer[0].exclude.add()
    with pytest.raises(ValueError, match="both include and exclude"):
        draw.draw_net(net, "LR", "dot", phase=caffe_pb2.TRAIN)


def test_labels(net: Any) -> None:
    conv, pool, ip = net.layer[1], net.layer[3], net.layer[4]
    assert draw.get_layer_label(conv, "TB") == '"conv (Convolution) kernel size: 5 stride: 2 pad: 0"'
    assert draw.get_layer_label(pool, "LR") == r'"pool\n(AVE Pooling)\nkernel size: 3\nstride: 1\npad: 1"'
    assert draw.get_layer_label(ip, "LR", display_lrm=True).startswith(r'"ip\n(InnerProduct)\nlr mult: 1.0, 1.0')
    assert draw.get_edge_label(pool) == '""' and draw.get_pooling_types_dict() == {0: "MAX", 1: "AVE", 2: "STOCHASTIC"}
    assert len({draw.choose_color_by_layertype(one.type) for one in (conv, pool, ip, net.layer[2])}) == 4


def test_rates(net: Any) -> None:
    assert draw.get_layer_lr_mult(net.layer[1]) == (1, 2) and draw.get_layer_lr_mult(net.layer[4]) == (1, 1)
    with pytest.raises(ValueError, match="ReLU"):
        draw.get_layer_lr_mult(net.layer[2])
    net.layer[1].param.add()
    with pytest.raises(ValueError, match="3 params"):
        draw.get_layer_lr_mult(net.layer[1])


def test_by_graphviz(net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program called dot that says what it was asked stands in for graphviz's."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "dot").write_text('#!/bin/sh\necho "$@"\nwhile read line; do echo "$line"; done\n')
    os.chmod(tmp_path / "dot", 0o755)
    draw.draw_net_to_file(net, str(tmp_path / "my.net.png"), "BT", phase=caffe_pb2.TEST)
    drawn = (tmp_path / "my.net.png").read_text()
    assert drawn.startswith("-Tpng\ndigraph") and 'rankdir="BT"' in drawn and "data_Data" not in drawn
    draw.draw_net_to_file(net, tmp_path / "net.dot")
    assert (tmp_path / "net.dot").read_bytes() == draw.draw_net(net, "LR", "dot")
    assert draw.get_pydot_graph(net, "LR").create_png().startswith(b"-Tpng")


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, and no graphviz."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("rankdir", ["LR", "RL", "TB", "BT"])
def test_without_graphviz(rankdir: str, net: Any, bare: Path) -> None:
    draw.draw_net_to_file(net, str(bare / "net.png"), rankdir)
    with Image.open(bare / "net.png") as image:
        assert image.format == "PNG" and (image.width > image.height) is (rankdir in ("LR", "RL"))
        shown = {color for _, color in image.getcolors(1 << 20) or ()}
    assert {(0xFF, 0x50, 0x50), (0x90, 0xEE, 0x90), (0xE0, 0xE0, 0xE0)} <= shown


def test_an_svg_without_graphviz(net: Any, bare: Path) -> None:
    root = ElementTree.fromstring(draw.draw_net(net, "TB", "svg"))
    texts = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "conv (Convolution) kernel size: 5 stride: 2 pad: 0" in texts and 'say "x" (SoftmaxWithLoss)' in texts
    assert "Batch 64" in texts
    boxes = [[float(box.get(key) or 0) for key in ("x", "y", "width", "height")] for box in
             root.iter("{http://www.w3.org/2000/svg}rect")][1:]  # fmt: skip
    for one, other in combinations(boxes, 2):
        apart = [
            one[axis] + one[axis + 2] <= other[axis] or other[axis] + other[axis + 2] <= one[axis] for axis in (0, 1)
        ]
        assert any(apart)


def test_formats_that_need_graphviz(net: Any, bare: Path) -> None:
    with pytest.raises(RuntimeError, match="which draws ps, is not installed"):
        draw.draw_net(net, "LR", "ps")
    assert draw.draw_net(caffe_pb2.NetParameter(), "LR").startswith(b"\x89PNG")
