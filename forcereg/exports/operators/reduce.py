"""Layers that reduce axes."""

from __future__ import annotations

from collections.abc import Sequence

from forcereg.exports.graph import Place, Value
from forcereg.exports.operators.elementwise import floats, scaled
from forcereg.layers import reduce
from forcereg.registry import onnx_form

BY_INPUT = 18
"""The version from which all reductions read their axes as an input, as ReduceSum has done since 13."""


def reduced(g: Place, op: str, x: Value, axes: Sequence[int], keep: bool = True) -> Value:
    """x reduced over axes, which stay as 1 with `keep`."""
    if op == "ReduceSum" or g.opset >= BY_INPUT:
        return g(op, x, g.ints(axes, "axes"), keepdims=int(keep))
    return g(op, x, axes=tuple(axes), keepdims=int(keep))


OPERATORS = {"SUM": "ReduceSum", "ASUM": "ReduceL1", "SUMSQ": "ReduceSumSquare", "MEAN": "ReduceMean"}


@onnx_form("Reduction", " ".join([*OPERATORS.values(), "Mul"]))
def reduction(layer: reduce.Reduction, g: Place, x: Value) -> Value:
    return scaled(g, reduced(g, OPERATORS[layer.operation], x, layer.axes, keep=False), layer.coeff, 0)


@onnx_form("ArgMax", "ArgMax Slice TopK Sub Cast")
def arg_max(layer: reduce.ArgMax, g: Place, x: Value) -> Value:
    if layer.axis is not None:
        values, places = largest(layer, g, x, layer.axis)
        return values if layer.out_max_val else places
    values, places = largest(layer, g, g.items(x), 1)
    y = places if not layer.out_max_val else g("Concat", places, values, axis=1)
    y.dims = (x.dims[0], (1 + layer.out_max_val) * layer.top_k)
    return g.reshaped(y, (x.dims[0], *layer.out_shapes[0][1:]))


def largest(layer: reduce.ArgMax, g: Place, x: Value, axis: int) -> tuple[Value, Value]:
    """The top_k values along `axis` and their places; of equal ones the last comes first."""
    if layer.top_k == 1 and not layer.out_max_val:
        place = floats(g, g("ArgMax", x, axis=axis, select_last_index=1))
        return place, place
    # TopK prefers the first of equal ones, so it gets them in reverse
    size = x.size(axis)
    span = (("start", -1), ("end", -size - 1), ("axis", axis), ("step", -1))
    turned = g("Slice", x, *(g.ints([number], name) for name, number in span))
    values, places = g.several("TopK", 2, turned, g.ints([layer.top_k], "k"), axis=axis)
    return values, floats(g, g("Sub", g.ints([size - 1], "last"), places))
