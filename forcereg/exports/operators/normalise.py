"""Layers that normalise and rescale."""

from __future__ import annotations

import numpy as np

from forcereg.exports.graph import Place, Value, numbers
from forcereg.exports.operators.reduce import reduced
from forcereg.layers import norm
from forcereg.registry import onnx_form


@onnx_form("BatchNorm", "BatchNormalization")
def batch_norm(layer: norm.BatchNorm, g: Place, x: Value) -> Value:
    if layer.global_stats is False:
        return _own_statistics(layer, g, x)
    factor = float(layer.weight_blob("factor"))
    # Caffe keeps sums and what to divide them by, which is 0 before any batch
    factor = 0.0 if factor == 0 else 1 / factor
    mean, variance = (numbers(layer.weight_blob(name)) * np.float32(factor) for name in ("mean", "variance"))
    scale = g.weight(layer, "scale") if layer.affine else g.constant(np.ones(layer.channels), "scale")
    shift = g.weight(layer, "shift") if layer.affine else g.constant(np.zeros(layer.channels), "shift")
    # a bottom of one axis is one channel
    ready = x if len(x.dims) > 1 else g("Unsqueeze", x, g.ints([0, 1], "axes"))
    blobs = scale, shift, g.constant(mean, "mean"), g.constant(variance, "variance")
    y = g("BatchNormalization", ready, *blobs, epsilon=layer.eps)
    return y if ready is x else g("Squeeze", y, g.ints([0, 1], "axes"))


def _own_statistics(layer: norm.BatchNorm, g: Place, x: Value) -> Value:
    """By the batch's own mean and biased variance, as `use_global_stats: false` asks."""
    axes = [axis for axis in range(len(x.dims)) if axis != 1]
    y = g("Sub", x, reduced(g, "ReduceMean", x, axes))
    variance = reduced(g, "ReduceMean", g("Mul", y, y), axes)
    y = g("Div", y, g("Sqrt", g("Add", variance, g.constant(layer.eps, "eps"))))
    if not layer.affine:
        return y
    spread = (layer.channels, *(1,) * max(len(x.dims) - 2, 0))
    return g("Add", g("Mul", y, g.weight(layer, "scale", spread)), g.weight(layer, "shift", spread))


@onnx_form("MVN", "ReduceMean Sub Mul Sqrt Add Div")
def mvn(layer: norm.MVN, g: Place, x: Value) -> Value:
    axes = range(layer.own_axes, len(x.dims))
    # of one value alone that is the mean
    y = g("Sub", x, reduced(g, "ReduceMean", x, axes) if axes else x)
    if not layer.divide or not axes:
        return y
    deviation = g("Sqrt", reduced(g, "ReduceMean", g("Mul", y, y), axes))
    return g("Div", y, g("Add", deviation, g.constant(layer.eps, "eps")))


def operand(layer: norm.Scale | norm.Bias, g: Place, x: Value, given: Value | None, name: str) -> Value:
    """A blob, or what comes from a bottom, with the axes of size 1 behind that spread it from `layer.axis` over x."""
    shape = layer.weight_blob(name).shape if given is None else given.dims
    behind = (1,) * (len(x.dims) - layer.axis - len(shape))
    if given is None:
        return g.weight(layer, name, (*layer.weight_blob(name).shape, *behind))
    axes = range(len(shape), len(shape) + len(behind))
    return g("Unsqueeze", given, g.ints(axes, "axes")) if axes else given


@onnx_form("Scale", "Mul Add")
def scale(layer: norm.Scale, g: Place, x: Value, multiplier: Value | None = None) -> Value:
    y = g("Mul", x, operand(layer, g, x, multiplier, "weight"))
    if layer.blob("bias") is None:
        return y
    return g("Add", y, operand(layer, g, x, None, "bias"))


@onnx_form("Bias", "Add")
def bias(layer: norm.Bias, g: Place, x: Value, given: Value | None = None) -> Value:
    return g("Add", x, operand(layer, g, x, given, "bias"))


@onnx_form("LRN", "LRN Mul AveragePool Add Pow")
def lrn(layer: norm.LRN, g: Place, x: Value) -> Value:
    if not layer.within:
        return g("LRN", x, size=layer.size, alpha=layer.alpha, beta=layer.beta, bias=layer.k)
    # a window cannot hold more than all there is: what a larger one adds are zeros
    window = tuple(norm.reach(layer.size, x.size(axis)) for axis in (2, 3))
    pads = tuple(size // 2 for size in window)
    mean = g("AveragePool", g("Mul", x, x), kernel_shape=window, pads=(*pads, *pads), count_include_pad=1)
    # it divides by the window as it was cut; Caffe always by size^2, and within a channel Caffe ignores k
    alpha = layer.alpha * (window[0] / layer.size) * (window[1] / layer.size)
    sums = g("Add", g("Mul", mean, g.constant(alpha, "alpha")), g.constant(1, "one"))
    return g("Mul", x, g("Pow", sums, g.constant(-layer.beta, "beta")))
