"""A net as an ONNX model, layer by layer, under Caffe's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import forcereg.exports.operators  # noqa: F401  (registers what each type becomes)
from forcereg.errors import ForceregError
from forcereg.exports.dims import Open, Sizes
from forcereg.exports.graph import FLOAT, Dims, Free, Graph, Place, Value, Varying, free_name
from forcereg.exports.pixels import Pixels
from forcereg.exports.wire import Constant, pieces
from forcereg.layers import Layer
from forcereg.net.module import Net
from forcereg.registry import onnx_form
from forcereg.schema.spec import LayerSpec
from forcereg.version import __version__

MISSING = 'an .onnx file needs onnx and onnxruntime; install them with pip install "forcereg[export]"'


@dataclass(frozen=True)
class Written:
    """`proto` is the ModelProto, but for its `constants`, which `pieces` puts into the file.

    `tops`: by a layer's title and a top's index what it is called there, of `layers`.
    """

    proto: Any
    constants: Sequence[Constant]
    tops: dict[tuple[str, int], str]
    layers: tuple[LayerSpec, ...]
    nodes: int

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The file, piece by piece."""
        return pieces(self.proto, self.constants)


def check_types(net: Net) -> None:
    """Raises ForceregError for a layer of a type that has no form in ONNX."""
    for spec, module in net.built:
        if module is not None and spec.type != "Input" and spec.type not in onnx_form:
            raise spec.fail(
                f"type {spec.type} has no form in ONNX; end in blobs in front of it (--outputs), or register what it "
                f'becomes by forcereg.registry.onnx_form("{spec.type}")'
            )


def titles(layers: Sequence[LayerSpec]) -> dict[int, str]:
    """id(layer) -> its name, or one by which no other is called: several may have one name, or none."""
    found: dict[int, str] = {}
    taken: set[str] = set()
    for spec in sorted(layers, key=lambda spec: not spec.name):
        found[id(spec)] = free_name(spec.name or spec.type, taken)
    return found


class Writer:
    """The graph of a net whose tops have `sizes`; `env` has what each blob is at the layer that comes next.

    `pixels`: input -> what comes first. `ends`: the blobs to give.
    """

    def __init__(self, net: Net, sizes: Sizes, opset: int, pixels: Mapping[str, Pixels], ends: Sequence[str]) -> None:
        self.net, self.graph, self.ends = net, Graph(opset), ends
        self.env: dict[str, Value] = {}
        self.inputs: list[Value] = []
        self.tops: list[tuple[LayerSpec, int, Value]] = []
        self.titles = titles(net.spec.layers)
        # before any other value may take one of these
        for name in dict.fromkeys((*net.inputs, *ends)):
            self.graph.take(name)
        for (spec, module), dims in zip(net.built, sizes.tops, strict=True):
            if module is None or spec.type == "Input":
                for top, size in zip(spec.tops, dims, strict=True):
                    self.inputs.append(Value(size, top))
                    self.env[top] = self._prepared(top, pixels) if top in pixels else self.inputs[-1]
            elif spec.type == "Split":
                # its copies are one value, which any number of nodes may read
                self.env.update(dict.fromkeys(spec.tops, self.env[spec.bottoms[0]]))
            else:
                self._layer(spec, module, dims)
        self.outputs: list[Value] = []
        for name in ends:
            self.outputs.append(self._output(name, self.outputs))
        self._name()

    def _prepared(self, top: str, pixels: Mapping[str, Pixels]) -> Value:
        """What becomes of the input that was added last."""
        place, given = Place(self.graph, f"{top}_prepared"), self.inputs[-1]
        value = pixels[top].nodes(place, given)
        value.dims = given.dims
        place.name_nodes()
        return value

    def _layer(self, spec: LayerSpec, module: Layer, dims: Sequence[Dims]) -> None:
        place = Place(self.graph, self.titles[id(spec)], dims)
        bottoms = [self.env[name] for name in spec.bottoms]
        before = len(self.graph.nodes)
        try:
            made = onnx_form.get(spec.type, spec.where)(module, place, *bottoms)
        except Varying as error:
            raise Varying(f"layer '{spec.name}' {error}") from None
        own = {id(value) for node in self.graph.nodes[before:] for value in node.outputs}
        for index, (top, value, size) in enumerate(
            zip(spec.tops, made if isinstance(made, tuple) else (made,), dims, strict=True)
        ):
            # what does nothing in place is no node
            if id(value) not in own and self.env.get(top) is not value:
                value = place("Identity", value)
            own.discard(id(value))
            value.dims = size
            self.env[top] = value
            self.tops.append((spec, index, value))
        place.name_nodes()

    def _output(self, name: str, before: Sequence[Value]) -> Value:
        """The value of an output; `before`: those of other outputs."""
        value = self.env[name]
        if not any(value is one for one in (*self.inputs, *before)):
            return value
        # what has another name already: an input, or an output that a Split made twice
        place = Place(self.graph, f"{name}_out")
        made = place("Identity", value)
        made.dims = value.dims
        place.name_nodes()
        return made

    def _name(self) -> None:
        """Names all values: outputs by their blobs, then what writes a blob first, then what works on it in place."""
        for value, name in zip(self.outputs, self.ends, strict=True):
            value.name = self.graph.take(f"{name}_out") if name in self.net.inputs else name
        begun = {*self.ends, *self.net.inputs}
        for spec, index, value in self.tops:
            top = spec.tops[index]
            if not value.name:
                title = self.titles[id(spec)]
                own = title if title.startswith(top) and title != top else f"{top}_{title}"
                value.name = self.graph.take(own if top in begun else top)
            begun.add(top)
        for node in self.graph.nodes:
            for value in node.outputs:
                value.name = value.name or self.graph.take(node.name)


def to_model(
    net: Net,
    sizes: Sizes,
    open_axes: Open,
    opset: int,
    about: Mapping[str, str] | None = None,
    pixels: Mapping[str, Pixels] | None = None,
    outputs: Sequence[str] | None = None,
) -> Written:
    """The net, which has its weights, as a ModelProto; `about` are its metadata. Raises Varying, ForceregError.

    `outputs`: the blobs to give, None for those that no layer reads.
    """
    try:
        from onnx import TensorProto, helper
    except ImportError:
        raise ForceregError(MISSING) from None
    writer = Writer(net, sizes, opset, pixels or {}, net.spec.outputs if outputs is None else outputs)
    graph = writer.graph

    names = {value.dims[axis]: name for value in writer.inputs for axis, name in open_axes.get(value.name, {}).items()}

    def info(value: Value) -> Any:
        dims = [names.get(size, f"{value.name}_{axis}") if isinstance(size, Free) else size
                for axis, size in enumerate(value.dims)]  # fmt: skip
        return helper.make_tensor_value_info(value.name, FLOAT, dims)

    ends = {id(value) for value in (*writer.inputs, *writer.outputs)}
    between = {id(value): value for _, _, value in writer.tops if id(value) not in ends}
    nodes = [
        helper.make_node(
            node.op,
            [value.name if value is not None else "" for value in node.inputs],
            [value.name for value in node.outputs],
            node.name,
            **node.attributes,
        )
        for node in graph.nodes
    ]
    made = helper.make_graph(
        nodes,
        net.spec.name or "net",
        [info(value) for value in writer.inputs],
        [info(value) for value in writer.outputs],
        value_info=[info(value) for value in between.values()],
    )
    opsets = [helper.make_opsetid("", opset)]
    proto = helper.make_model(
        made, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="forcereg", producer_version=__version__,
    )  # fmt: skip
    constants = [
        Constant(
            TensorProto(name=value.name, dims=values.shape, data_type=helper.np_dtype_to_tensor_dtype(values.dtype)),
            values,
        )
        for value, values in graph.constants
    ]
    helper.set_model_props(proto, dict(about or {}))
    tops = {(writer.titles[id(spec)], index): value.name for spec, index, value in writer.tops}
    return Written(proto, constants, tops, tuple(net.spec.layers), len(nodes))
