"""Type Python: a class that the net names, written for pycaffe or a torch.nn.Module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from forcereg.errors import ForceregError, did_you_mean
from forcereg.layers.base import Layer, Shape, check_arity
from forcereg.layers.module import ModuleLayer
from forcereg.layers.pycaffe.layer import CaffeLayer, PyCaffeLayer, served
from forcereg.registry import layer
from forcereg.schema.spec import LayerSpec
from forcereg.system.plugins import import_module


@layer(
    "Python",
    "python_param",
    limits="a pycaffe layer computes on the CPU, snapshots hold its blobs but no position in data of its own, "
    "share_in_parallel has no effect",
)
class Python(Layer):
    """python_param's class `layer` of the Python module `module`.

    The module is looked for on Python's path, in the working directory, where the net's relative paths start, and
    beside the net file.
    """

    bottoms = (0, None)
    tops = (0, None)
    runs_code = True

    @classmethod
    def build(cls, spec: LayerSpec, shapes: Sequence[Shape]) -> Layer:
        """The layer that runs the named class, according to its kind. Raises ForceregError."""
        found = user_class(spec)
        if issubclass(found, CaffeLayer):
            return PyCaffeLayer(spec, shapes, found)
        if issubclass(found, Layer):
            check_arity(spec, found)
            return found.build(spec, shapes)
        if issubclass(found, nn.Module):
            check_arity(spec, ModuleLayer)
            return ModuleLayer(spec, shapes, found)
        param = spec.message.python_param
        raise spec.fail(f"{param.module}.{param.layer} derives neither from caffe.Layer nor from torch.nn.Module")


def user_class(spec: LayerSpec) -> type:
    """The class that python_param names, its module imported. Raises ForceregError."""
    param = spec.message.python_param
    for field in ("module", "layer"):
        if not getattr(param, field):
            raise spec.fail(
                f'python_param has no {field}; set for example python_param {{ module: "mylayers" layer: "MyLayer" }}'
            )
    try:
        # modules that begin with `import caffe` get our Layer
        with served():
            module = import_module(param.module, (spec.root, spec.folder))
    except ForceregError as error:
        raise spec.fail(str(error)) from error
    found = getattr(module, param.layer, None)
    if not isinstance(found, type):
        classes = [name for name, value in vars(module).items() if isinstance(value, type)]
        raise spec.fail(
            f"Python module '{param.module}' ({getattr(module, '__file__', 'built in')}) has no class "
            f"'{param.layer}'{did_you_mean(param.layer, classes)}"
        )
    return found
