"""What each layer type becomes in ONNX: one function a type, in the file of its theme.

Adding one: a function of the layer's module, a `Place` and a `Value` for each bottom, which adds nodes and returns the
value of each top; decorate it with `@onnx_form("Type", "Conv Add")`, which names the operators for `forcereg layers`.
A bottom may be handed on as it is. Raises `Varying` where it needs a size that is open.
"""

from forcereg.exports.operators import elementwise, normalise, pooling, recurrent, reduce, shape, weighted

__all__ = ["elementwise", "normalise", "pooling", "recurrent", "reduce", "shape", "weighted"]
