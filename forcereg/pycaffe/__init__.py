"""Caffe's Python interface: `import forcereg.pycaffe as caffe`.

    net = caffe.Net("deploy.prototxt", caffe.TEST, weights="net_iter_10000.caffemodel")
    net.blobs["data"].data[...] = image
    prob = net.forward()["prob"]

Names, arguments, defaults and quirks are those of Caffe's own; names are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from forcereg.schema import TEST, TRAIN

if TYPE_CHECKING:
    from forcereg.layers.pycaffe import CaffeLayer as Layer
    from forcereg.pycaffe import coord_map, draw, io, net_spec, proto
    from forcereg.pycaffe.launch import install, load_ipython_extension
    from forcereg.pycaffe.net_spec import NetSpec, layers, params, to_proto

__version__ = "1.0.0"
"""The release of Caffe whose interface this is."""

# name -> the module of this room that has it
_HOME: dict[str, str] = {
    "NetSpec": "net_spec",
    "install": "launch",
    "layers": "net_spec",
    "load_ipython_extension": "launch",
    "params": "net_spec",
    "to_proto": "net_spec",
}
_ELSEWHERE = {"Layer": ("forcereg.layers.pycaffe", "CaffeLayer")}
_MODULES = {"coord_map", "draw", "io", "net_spec", "proto"}
"""Modules of this room that are names of `caffe`."""

# written out: type checkers read it as it stands
__all__ = [
    "TEST",
    "TRAIN",
    "Layer",
    "NetSpec",
    "__version__",
    "coord_map",
    "draw",
    "install",
    "io",
    "layers",
    "load_ipython_extension",
    "net_spec",
    "params",
    "proto",
    "to_proto",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        found = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name in _ELSEWHERE:
        module, attribute = _ELSEWHERE[name]
        found = getattr(importlib.import_module(module), attribute)
    elif name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_HOME, *_MODULES})
