"""Layers with learned weights."""

from __future__ import annotations

import numpy as np

from forcereg.exports.graph import INT64, Place, Value, joined
from forcereg.layers import weighted
from forcereg.layers.base import count
from forcereg.layers.convolve import Geometry
from forcereg.registry import onnx_form

MOST_AXES = 3
"""Spatial axes that runtimes convolve over."""


def attributes(geometry: Geometry, group: int) -> dict[str, object]:
    """A convolution's, those that are ONNX's defaults left out."""
    found: dict[str, object] = {"kernel_shape": geometry.kernel}
    if any(geometry.pad):
        found["pads"] = (*geometry.pad, *geometry.pad)
    if set(geometry.stride) != {1}:
        found["strides"] = geometry.stride
    if set(geometry.dilation) != {1}:
        found["dilations"] = geometry.dilation
    return {**found, "group": group} if group != 1 else found


def _convolution(
    layer: weighted.Convolution | weighted.Deconvolution, g: Place, op: str, bottoms: tuple[Value, ...]
) -> tuple[Value, ...]:
    if len(layer.geometry.kernel) > MOST_AXES:
        raise layer.spec.fail(
            f"convolves over {len(layer.geometry.kernel)} axes, for which ONNX's runtimes have nothing; they end at "
            f"{MOST_AXES}, split it into layers over fewer axes"
        )
    # one axis of size 1 in place of none
    plain = layer.geometry.kernel != ()
    geometry = layer.geometry if plain else Geometry((1,), (1,), (0,), (1,))
    weight = layer.weight_blob()
    blobs = [g.weight(layer, "weight", weight.shape if plain else (*weight.shape, 1))]
    if layer.blob("bias") is not None:
        blobs.append(g.weight(layer, "bias"))
    tops = []
    for x in bottoms:
        # one batch axis is all there is
        before, behind = x.dims[: layer.axis], x.dims[layer.axis :]
        own = g.top_dims[0][layer.axis :]
        ready = x if layer.axis == 1 and plain else g.reshaped(x, (joined(before), *behind, *(() if plain else (1,))))
        y = g(op, ready, *blobs, **attributes(geometry, layer.group))
        y.dims = (joined(before), *own, *(() if plain else (1,)))
        tops.append(y if ready is x else g.reshaped(y, (*before, *own)))
    return tuple(tops)


@onnx_form("Convolution", "Conv")
def convolution(layer: weighted.Convolution, g: Place, *bottoms: Value) -> tuple[Value, ...]:
    return _convolution(layer, g, "Conv", bottoms)


@onnx_form("Deconvolution", "ConvTranspose")
def deconvolution(layer: weighted.Deconvolution, g: Place, *bottoms: Value) -> tuple[Value, ...]:
    return _convolution(layer, g, "ConvTranspose", bottoms)


@onnx_form("Im2col", "Conv")
def im2col(layer: weighted.Im2col, g: Place, x: Value) -> Value:
    """A convolution with a kernel for each of its own positions, which is 1 there: nothing else copies less."""
    kernel, channels = layer.geometry.kernel, x.size(layer.axis)
    if layer.axis != 1 or len(kernel) > MOST_AXES:
        raise layer.spec.fail(f"has axis {layer.axis} and {len(kernel)} spatial axes; ONNX takes axis 1 and at most 3")
    positions = np.eye(count(kernel), dtype=np.float32).reshape(-1, 1, *kernel)
    weight = g.constant(np.tile(positions, (channels, *(1,) * (1 + len(kernel)))), "positions")
    return g("Conv", x, weight, **attributes(layer.geometry, channels))


@onnx_form("InnerProduct", "Flatten Gemm")
def inner_product(layer: weighted.InnerProduct, g: Place, x: Value) -> Value:
    rows = x if len(x.dims) == 2 and layer.axis == 1 else g("Flatten", x, axis=layer.axis)
    blobs = [g.weight(layer), *([g.weight(layer, "bias")] if layer.blob("bias") is not None else [])]
    y = g("Gemm", rows, *blobs, **({} if layer.transpose else {"transB": 1}))
    before = x.dims[: layer.axis]
    if layer.axis == 1:
        return y
    y.dims = (joined(before), layer.out_shapes[0][-1])
    return g.reshaped(y, (*before, layer.out_shapes[0][-1]))


@onnx_form("Embed", "Cast Gather Add")
def embed(layer: weighted.Embed, g: Place, x: Value) -> Value:
    y = g("Gather", g.weight(layer), g("Cast", x, to=INT64))
    return y if layer.blob("bias") is None else g("Add", y, g.weight(layer, "bias"))
