"""Nets as pictures, blobs and layers in turn: `caffe.draw`.

Graphviz's command `dot` makes the picture; without it one is made here, plainer, with straight lines. No Python package
is needed. `forcereg draw` is the same for people: shapes instead of settings, no blobs, and a text tree.
"""

from __future__ import annotations

import os
from typing import Any

from forcereg.errors import printable
from forcereg.net.draw import LEARNING, escaped, has_graphviz, picture
from forcereg.pycaffe.picture import picture as plain_picture
from forcereg.pycaffe.proto import caffe_pb2
from forcereg.system.files import write_bytes

LAYER_STYLE_DEFAULT = {"shape": "record", "fillcolor": "#6495ED", "style": "filled"}
NEURON_LAYER_STYLE = {"shape": "record", "fillcolor": "#90EE90", "style": "filled"}
BLOB_STYLE = {"shape": "octagon", "fillcolor": "#E0E0E0", "style": "filled"}
COLORS = {"Convolution": "#FF5050", "Deconvolution": "#FF5050", "Pooling": "#FF9900", "InnerProduct": "#CC33FF"}
PLAIN = ("dot", "gv")
"""Formats that are the graph's own text."""


class Graph:
    """A graph in graphviz's language; `write` and `create` are those of pydot's graphs."""

    def __init__(self, name: str, rankdir: str) -> None:
        self.name, self.rankdir = name, rankdir
        self.nodes: dict[str, dict[str, str]] = {}
        self.edges: list[tuple[str, str, str]] = []

    def to_string(self) -> str:
        """The graph's text."""
        lines = [f"digraph {quoted(self.name)} {{", f"  rankdir={quoted(self.rankdir)};"]
        for name, settings in self.nodes.items():
            given = ", ".join(f"{key}={value}" for key, value in settings.items())
            lines.append(f"  {quoted(name)} [{given}];")
        lines += [f"  {quoted(source)} -> {quoted(target)} [label={label}];" for source, target, label in self.edges]
        return "\n".join([*lines, "}", ""])

    def create(self, prog: str | None = None, format: str = "ps") -> bytes:
        """The picture, by `dot`. Raises RuntimeError for a format that needs it, ForceregError where it fails."""
        if format in PLAIN:
            return self.to_string().encode()
        if has_graphviz():
            return picture(self.to_string(), format)
        drawn = plain_picture(self.nodes, self.edges, self.rankdir, format)
        if drawn is None:
            raise RuntimeError(f"graphviz's `dot`, which draws {format}, is not installed; install it, or draw png")
        return drawn

    def write(self, path: str | os.PathLike[str], prog: str | None = None, format: str = "dot") -> bool:
        """Writes the picture. Raises as `create`, and ForceregError where it can't be written."""
        write_bytes(os.fspath(path), self.create(prog, format))
        return True

    def create_png(self) -> bytes:
        """The picture as png."""
        return self.create(format="png")

    def write_png(self, path: str | os.PathLike[str]) -> bool:
        """Writes the picture as png."""
        return self.write(path, format="png")


def get_pooling_types_dict() -> dict[int, str]:
    """Number -> name of each way to pool."""
    return {number: name for name, number in caffe_pb2.PoolingParameter.PoolMethod.items()}


def get_edge_label(layer: Any) -> str:
    """What stands at a layer's tops: the batch size of Data, num_output of what has one, else nothing, in quotes."""
    if layer.type == "Data":
        return quoted(f"Batch {layer.data_param.batch_size}")
    if layer.type in ("Convolution", "Deconvolution"):
        return quoted(str(layer.convolution_param.num_output))
    if layer.type == "InnerProduct":
        return quoted(str(layer.inner_product_param.num_output))
    return '""'


def get_layer_lr_mult(layer: Any) -> tuple[float, float]:
    """`lr_mult` of weights and bias. Raises ValueError for types that don't learn so, and for more than two."""
    if layer.type not in LEARNING:
        raise ValueError(f"{layer.type} layers do not have a learning rate multiplier")
    if len(layer.param) > 2:
        raise ValueError(f"layer {layer.name} has {len(layer.param)} params; expected weights and bias")
    given = [float(param.lr_mult) for param in layer.param]
    weights, bias = given + [1.0] * (2 - len(given))
    return weights, bias


def get_layer_label(layer: Any, rankdir: str, display_lrm: bool = False) -> str:
    """What stands in a layer's box, in quotes: name, type, its window's sizes, with `display_lrm` its `lr_mult`s."""
    # side by side where data flows downwards, else one below the other
    separator = " " if rankdir in ("TB", "BT") else "\\n"
    parts = [layer.name, f"({layer.type})"]
    if layer.type in ("Convolution", "Deconvolution"):
        own = layer.convolution_param
        parts += [f"kernel size: {_first(own.kernel_size, 1)}", f"stride: {_first(own.stride, 1)}",
                  f"pad: {_first(own.pad, 0)}"]  # fmt: skip
    elif layer.type == "Pooling":
        own = layer.pooling_param
        parts[1] = f"({get_pooling_types_dict()[own.pool]} {layer.type})"
        parts += [f"kernel size: {own.kernel_size}", f"stride: {own.stride}", f"pad: {own.pad}"]
    if display_lrm and layer.type in LEARNING:
        weights, bias = get_layer_lr_mult(layer)
        parts.append(f"lr mult: {weights:.1f}, {bias:.1f}")
    return f'"{separator.join(escaped(printable(part)) for part in parts)}"'


def choose_color_by_layertype(layertype: str) -> str:
    """The colour of a type's boxes."""
    return COLORS.get(layertype, LAYER_STYLE_DEFAULT["fillcolor"])


def get_pydot_graph(
    caffe_net: Any, rankdir: str, label_edges: bool = True, phase: int | None = None, display_lrm: bool = False
) -> Graph:
    """The graph of a NetParameter's layers and blobs. `rankdir`: LR, TB, BT or RL; `phase`: leave out other phases'.

    Only `layer` is read, not the `layers` of old nets. Raises ValueError for a layer that has both include and exclude,
    and as `get_layer_lr_mult`.
    """
    graph = Graph(printable(caffe_net.name) or "Net", rankdir)
    for layer in caffe_net.layer:
        if not _in_phase(layer, phase):
            continue
        node = f"{layer.name}_{layer.type}"
        style = dict(LAYER_STYLE_DEFAULT, fillcolor=choose_color_by_layertype(layer.type))
        if list(layer.bottom) == list(layer.top) and len(layer.top) == 1:
            style = NEURON_LAYER_STYLE
        graph.nodes[node] = _node(get_layer_label(layer, rankdir, display_lrm), style)
        for bottom in layer.bottom:
            graph.nodes[f"{bottom}_blob"] = _node(quoted(bottom), BLOB_STYLE)
            graph.edges.append((f"{bottom}_blob", node, '""'))
        for top in layer.top:
            graph.nodes[f"{top}_blob"] = _node(quoted(top), BLOB_STYLE)
            graph.edges.append((node, f"{top}_blob", get_edge_label(layer) if label_edges else '""'))
    return graph


def draw_net(
    caffe_net: Any, rankdir: str, ext: str = "png", phase: int | None = None, display_lrm: bool = False
) -> bytes:
    """The picture of a NetParameter in the format `ext`: png, svg, pdf, dot, ... Raises as `get_pydot_graph`
    and `Graph.create`."""
    return get_pydot_graph(caffe_net, rankdir, phase=phase, display_lrm=display_lrm).create(format=ext)


def draw_net_to_file(
    caffe_net: Any, filename: str, rankdir: str = "LR", phase: int | None = None, display_lrm: bool = False
) -> None:
    """Writes the picture of a NetParameter; its format is what `filename` ends in. Raises as `draw_net`."""
    ext = os.fspath(filename).rpartition(".")[2]
    write_bytes(filename, draw_net(caffe_net, rankdir, ext, phase, display_lrm))


def quoted(text: str) -> str:
    """Any text as a string of graphviz's language."""
    return f'"{escaped(printable(text))}"'


def _node(label: str, style: dict[str, str]) -> dict[str, str]:
    return {"label": label} | {key: quoted(value) for key, value in style.items()}


def _first(sizes: Any, default: int) -> int:
    return int(sizes[0]) if len(sizes) else default


def _in_phase(layer: Any, phase: int | None) -> bool:
    """Whether the layer is in a net of this phase; None: of any."""
    if phase is None or not (layer.include or layer.exclude):
        return True
    if layer.include and layer.exclude:
        raise ValueError(f"layer {layer.name} has both include and exclude; expected one of them")
    if layer.include:
        return any(rule.phase == phase for rule in layer.include)
    return all(rule.phase != phase for rule in layer.exclude)
