"""Layers that join, cut, copy or reshape blobs."""

from __future__ import annotations

from forcereg.exports.graph import BOOL, INT64, Place, Value, fixed
from forcereg.layers import Layer, loss, select, shape
from forcereg.registry import onnx_form


@onnx_form("Parameter", "")
def parameter(layer: shape.Parameter, g: Place) -> Value:
    return g.weight(layer)


@onnx_form("Split", "")
def split(layer: shape.Split, g: Place, x: Value) -> tuple[Value, ...]:
    return (x,) * layer.copies


@onnx_form("Silence", "")
def silence(layer: Layer, g: Place, *bottoms: Value) -> tuple[Value, ...]:
    return ()


@onnx_form("Concat", "Concat")
def concat(layer: shape.Concat, g: Place, *bottoms: Value) -> Value:
    return bottoms[0] if len(bottoms) == 1 else g("Concat", *bottoms, axis=layer.axis)


@onnx_form("Eltwise", "Add Sum Mul Max")
def eltwise(layer: shape.Eltwise, g: Place, *bottoms: Value) -> Value:
    if layer.operation == "MAX":
        return g("Max", *bottoms)
    if layer.operation == "PROD":
        y, *others = bottoms
        for x in others:
            y = g("Mul", y, x)
        return y
    terms = [
        x if coeff == 1 else g("Mul", x, g.constant(coeff, "coeff"))
        for x, coeff in zip(bottoms, layer.coeff or (1,) * len(bottoms), strict=True)
    ]
    return g("Add" if len(terms) == 2 else "Sum", *terms)


@onnx_form("Softmax", "Softmax")
def softmax(layer: loss.Softmax, g: Place, x: Value) -> Value:
    return g("Softmax", x, axis=layer.axis)


@onnx_form("Flatten", "Flatten Reshape")
def flatten(layer: shape.Flatten, g: Place, x: Value) -> Value:
    # ONNX's makes two axes, whatever is there
    if layer.start == 1 and layer.end == len(x.dims) - 1:
        return g("Flatten", x, axis=1)
    return g.reshaped(x, g.top_dims[0])


@onnx_form("Reshape", "Reshape")
def reshape(layer: shape.Reshape, g: Place, x: Value) -> Value:
    return g.reshaped(x, g.top_dims[0])


@onnx_form("Tile", "Tile")
def tile(layer: shape.Tile, g: Place, x: Value) -> Value:
    return g("Tile", x, g.ints(layer.repeats, "repeats"))


@onnx_form("Slice", "Split")
def cut(layer: select.Slice, g: Place, x: Value) -> tuple[Value, ...]:
    sizes = [layer_shape[layer.axis] for layer_shape in layer.out_shapes]
    x.size(layer.axis)
    return (x,) if len(sizes) == 1 else g.several("Split", len(sizes), x, g.ints(sizes, "sizes"), axis=layer.axis)


@onnx_form("Crop", "Slice Shape Add")
def crop(layer: select.Crop, g: Place, x: Value, reference: Value) -> Value:
    axes = range(layer.axis, len(x.dims))
    start = g.ints(layer.offsets, "start")
    if len(fixed(reference.dims[layer.axis : len(x.dims)])) < len(axes):
        # behind the last axis of x the reference may have more
        sizes = g("Slice", g("Shape", reference), g.ints(axes[:1], "first"), g.ints([len(x.dims)], "last"))
        return g("Slice", x, start, g("Add", start, sizes), g.ints(axes, "axes"))
    ends = [offset + reference.size(axis) for offset, axis in zip(layer.offsets, axes, strict=True)]
    return g("Slice", x, start, g.ints(ends, "end"), g.ints(axes, "axes"))


@onnx_form("Filter", "Reshape Cast Compress")
def rows_kept(layer: select.Filter, g: Place, *bottoms: Value) -> tuple[Value, ...]:
    selector = g("Cast", g("Reshape", bottoms[-1], g.ints([-1], "flat")), to=BOOL)
    return tuple(g("Compress", x, selector, axis=0) for x in bottoms[:-1])


@onnx_form("BatchReindex", "Cast Gather")
def batch_reindex(layer: select.BatchReindex, g: Place, x: Value, rows: Value) -> Value:
    return g("Gather", x, g("Cast", rows, to=INT64), axis=0)
