"""An ONNX graph while it is written: values, the nodes that make them, constants, and names for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.layers import Layer
from forcereg.layers.base import count

FLOAT, INT64, BOOL = 1, 7, 9
"""ONNX's numbers for types of values."""


class Free:
    """A size that the caller chooses, or that follows from such a one; equal ones are one object."""


Dims = tuple[int | Free, ...]
"""A shape."""


class Varying(ForceregError):
    """A layer whose nodes need a size that was to stay open."""


@dataclass(eq=False)
class Value:
    """What flows between nodes; `name` is empty until all is there. `dims`: of bottoms, which operators read."""

    dims: Dims = ()
    name: str = ""

    def size(self, axis: int) -> int:
        """The size of an axis. Raises Varying for one that is open."""
        found = self.dims[axis]
        if isinstance(found, Free):
            raise Varying(f"needs axis {axis} of its bottom to be of one size")
        return found


@dataclass(eq=False)
class Node:
    """One operation; `name` is the layer's, with the operator's behind it where a layer takes several."""

    op: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attributes: dict[str, Any]
    name: str = ""


@dataclass(eq=False)
class Graph:
    """Nodes in the order in which they run, and constants; for operators of version `opset` of ONNX."""

    opset: int
    nodes: list[Node] = field(default_factory=list)
    constants: list[tuple[Value, np.ndarray]] = field(default_factory=list)
    _weights: dict[tuple[int, tuple[int, ...]], Value] = field(default_factory=dict)
    _values: set[str] = field(default_factory=set)
    _nodes: set[str] = field(default_factory=set)

    def take(self, name: str) -> str:
        """The name for a value, with a number behind it if it is taken already."""
        return free_name(name, self._values)

    def node_name(self, name: str) -> str:
        """The same for a node."""
        return free_name(name, self._nodes)


def free_name(name: str, taken: set[str]) -> str:
    """The name, with a number behind it if it is one of `taken`, to which it goes."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found


class Place:
    """Where the nodes of one layer go: what an operator function of `exports.operators` is handed as `g`.

    `g("Relu", x)` adds a node and gives its output; `constant`, `ints`, `weight` add what nodes read. `top_dims`: the
    shapes of the layer's tops.
    """

    def __init__(self, graph: Graph, layer: str, top_dims: Sequence[Dims] = ()) -> None:
        self.graph, self.layer = graph, layer
        self.top_dims = tuple(top_dims)
        self._first = len(graph.nodes)

    @property
    def opset(self) -> int:
        """The version of ONNX's operators."""
        return self.graph.opset

    def __call__(self, op: str, *inputs: Value | None, **attributes: Any) -> Value:
        """The output of a new node; None stands for an optional input that is left out."""
        return self.several(op, 1, *inputs, **attributes)[0]

    def several(self, op: str, outputs: int, *inputs: Value | None, **attributes: Any) -> tuple[Value, ...]:
        """The outputs of a new node that has so many."""
        made = tuple(Value() for _ in range(outputs))
        self.graph.nodes.append(Node(op, inputs, made, attributes))
        return made

    def constant(self, values: Any, name: str, kind: Any = np.float32) -> Value:
        """A constant called `<layer>/<name>`."""
        array = np.asarray(values, kind)
        value = Value(array.shape, self.graph.take(f"{self.layer}/{name}"))
        self.graph.constants.append((value, array))
        return value

    def ints(self, values: Sequence[int], name: str) -> Value:
        """A constant of whole numbers: axes, sizes, positions."""
        return self.constant(values, name, np.int64)

    def weight(self, layer: Layer, name: str = "weight", shape: Sequence[int] | None = None) -> Value:
        """A blob of the layer's as a constant, in another `shape` if that is given: once for layers that share it."""
        blob = layer.weight_blob(name)
        shape = tuple(blob.shape if shape is None else shape)
        key = (blob.data_ptr() if blob.numel() else id(blob), shape)
        if key not in self.graph._weights:
            self.graph._weights[key] = self.constant(numbers(blob).reshape(shape), name)
        return self.graph._weights[key]

    def reshaped(self, x: Value, dims: Dims) -> Value:
        """x in another shape, of which one size may be open; further ones are x's own if all in front of them are."""
        left = sum(isinstance(size, Free) for size in dims)
        sizes = []
        for axis, size in enumerate(dims):
            kept = isinstance(size, Free) and left > 1 and x.dims[: axis + 1] == dims[: axis + 1]
            left -= kept
            sizes.append(size if not isinstance(size, Free) else 0 if kept else -1)
        if left > 1:
            raise Varying("makes a shape in which two sizes would have to be found out")
        return self("Reshape", x, self.ints(sizes, "shape"))

    def items(self, x: Value) -> Value:
        """x as (N, all values of an item)."""
        if len(x.dims) == 2:
            return x
        y = self("Flatten", x, axis=1)
        y.dims = (x.dims[0], joined(x.dims[1:]))
        return y

    def name_nodes(self) -> None:
        """Names this layer's nodes: the last by the layer alone."""
        made = self.graph.nodes[self._first :]
        for node in made:
            node.name = self.graph.node_name(self.layer if node is made[-1] else f"{self.layer}/{node.op}")


def fixed(dims: Dims) -> tuple[int, ...]:
    """Sizes, of those that aren't free."""
    return tuple(size for size in dims if not isinstance(size, Free))


def joined(dims: Dims) -> int | Free:
    """The size of several axes as one."""
    sizes = fixed(dims)
    return count(sizes) if len(sizes) == len(dims) else Free()


def numbers(blob: Tensor) -> np.ndarray:
    """A blob's values, in float32."""
    found: np.ndarray = blob.detach().cpu().contiguous().float().numpy()
    return found
