"""Layers without blobs that take each value by itself, and rectifiers."""

from __future__ import annotations

import numpy as np

from forcereg.exports.graph import FLOAT, Place, Value
from forcereg.layers import neuron, rectify
from forcereg.registry import onnx_form


def scaled(g: Place, x: Value, scale: float, shift: float) -> Value:
    """scale * x + shift, without the nodes that change nothing."""
    if scale != 1:
        x = g("Mul", x, g.constant(scale, "scale"))
    return x if shift == 0 else g("Add", x, g.constant(shift, "shift"))


@onnx_form("ReLU", "Relu LeakyRelu")
def relu(layer: neuron.ReLU, g: Place, x: Value) -> Value:
    return g("LeakyRelu", x, alpha=layer.slope) if layer.slope else g("Relu", x)


@onnx_form("Sigmoid", "Sigmoid")
def sigmoid(layer: neuron.Sigmoid, g: Place, x: Value) -> Value:
    return g("Sigmoid", x)


@onnx_form("TanH", "Tanh")
def tanh(layer: neuron.TanH, g: Place, x: Value) -> Value:
    return g("Tanh", x)


@onnx_form("AbsVal", "Abs")
def absolute(layer: neuron.AbsVal, g: Place, x: Value) -> Value:
    return g("Abs", x)


@onnx_form("Dropout", "Mul")
def dropout(layer: neuron.Dropout, g: Place, x: Value) -> Value:
    """Nothing, but for the scale of Fast R-CNN's fork."""
    return x if layer.scale_train else scaled(g, x, 1 - layer.ratio, 0)


@onnx_form("BNLL", "Softplus")
def bnll(layer: neuron.BNLL, g: Place, x: Value) -> Value:
    return g("Softplus", x)


@onnx_form("ELU", "Elu")
def elu(layer: neuron.ELU, g: Place, x: Value) -> Value:
    return g("Elu", x, alpha=layer.alpha)


@onnx_form("Exp", "Mul Add Exp")
def exp(layer: neuron.Exp, g: Place, x: Value) -> Value:
    return g("Exp", scaled(g, x, layer.scale, layer.shift))


@onnx_form("Log", "Mul Add Log Div")
def log(layer: neuron.Log, g: Place, x: Value) -> Value:
    y = g("Log", scaled(g, x, layer.scale, layer.shift))
    return y if layer.log_base == 1 else g("Div", y, g.constant(layer.log_base, "base"))


@onnx_form("Power", "Mul Add Pow Expand")
def power(layer: neuron.Power, g: Place, x: Value) -> Value:
    if layer.scale * layer.power == 0:
        # whatever x is, NaN and infinity included
        constant = np.power(np.float32(layer.shift), np.float32(layer.power))
        return g("Expand", g.constant(constant, "constant"), g("Shape", x))
    y = scaled(g, x, layer.scale, layer.shift)
    return y if layer.power == 1 else g("Pow", y, g.constant(layer.power, "power"))


@onnx_form("Swish", "Mul Sigmoid")
def swish(layer: neuron.Swish, g: Place, x: Value) -> Value:
    return g("Mul", x, g("Sigmoid", scaled(g, x, layer.beta, 0)))


@onnx_form("Clip", "Clip")
def clip(layer: neuron.Clip, g: Place, x: Value) -> Value:
    return g("Clip", x, g.constant(layer.low, "min"), g.constant(layer.high, "max"))


@onnx_form("Threshold", "Greater Cast")
def threshold(layer: neuron.Threshold, g: Place, x: Value) -> Value:
    return floats(g, g("Greater", x, g.constant(layer.threshold, "threshold")))


def floats(g: Place, x: Value) -> Value:
    """As float32, which all of Caffe's blobs are."""
    return g("Cast", x, to=FLOAT)


@onnx_form("PReLU", "PRelu")
def prelu(layer: rectify.PReLU, g: Place, x: Value) -> Value:
    return g("PRelu", x, per_channel(layer, g, "slope", x))


def per_channel(layer: rectify.PReLU | rectify.SymmetricRectify, g: Place, name: str, x: Value) -> Value:
    """A blob with one value, or one a channel, so that it spreads over x."""
    blob = layer.weight_blob(name)
    return g.weight(layer, name, (len(blob), *(1,) * (len(x.dims) - 2)) if blob.dim() else (1,))


@onnx_form("SymmetricRectify", "Sign Abs Sub Relu Mul")
def symmetric_rectify(layer: rectify.SymmetricRectify, g: Place, x: Value) -> Value:
    threshold = g("Relu", per_channel(layer, g, "threshold", x))
    return g("Mul", g("Sign", x), g("Relu", g("Sub", g("Abs", x), threshold)))


@onnx_form("Sparsify", "Shrink")
def sparsify(layer: rectify.Sparsify, g: Place, x: Value) -> Value:
    return g("Shrink", x, lambd=layer.thre, bias=layer.thre) if layer.thre else x
