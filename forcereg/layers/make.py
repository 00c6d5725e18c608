"""From a layer's spec and its bottoms' shapes to its module, everything about it checked."""

from __future__ import annotations

from collections.abc import Sequence

from forcereg import registry
from forcereg.layers.base import Layer, Shape, check_arity
from forcereg.layers.keywords import check_declared
from forcereg.layers.module import ModuleLayer, layer_class
from forcereg.schema.spec import LayerSpec
from forcereg.schema.types import BUILT_IN


def make_layer(spec: LayerSpec, bottoms: Sequence[Shape], allow_python_layers: bool = False) -> Layer:
    """The module of a layer whose bottoms have these shapes; its blobs are zeros, to be filled by the net.

    Raises ForceregError for an unknown type, bad parameters, sizes beyond Caffe's, or code without permission.
    """
    cls = layer_class(spec)
    if cls.runs_code and not allow_python_layers:
        raise spec.fail(
            f"type {spec.type} runs code that the net names; if you trust the net, give --allow-python-layers "
            "(allow_python_layers=True in Python)"
        )
    # ahead of the class, which looks at its bottoms by their numbers
    check_arity(spec, cls)
    if spec.type not in BUILT_IN and not issubclass(cls, ModuleLayer):
        check_declared(spec, cls, registry.layer.about(spec.type).params)
    module: Layer = cls.build(spec, bottoms)
    # behind the class, whose own words about a field say more
    spec.check_numbers()
    for top, shape in zip(spec.tops, module.out_shapes, strict=True):
        spec.check_size(f"top '{top}'", shape)
    return module
