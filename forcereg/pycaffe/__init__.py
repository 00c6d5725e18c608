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
    from forcereg.layers.pycaffe.layer import CaffeLayer as Layer
    from forcereg.pycaffe import classifier, coord_map, detector, draw, io, net_spec, proto
    from forcereg.pycaffe.classifier import Classifier
    from forcereg.pycaffe.detector import Detector
    from forcereg.pycaffe.launch import install, load_ipython_extension
    from forcereg.pycaffe.net import Net
    from forcereg.pycaffe.net_spec import NetSpec, layers, params, to_proto
    from forcereg.pycaffe.solvers import (
        AdaDeltaSolver,
        AdaGradSolver,
        AdamSolver,
        NesterovSolver,
        RMSPropSolver,
        SGDSolver,
        get_solver,
    )
    from forcereg.pycaffe.state import (
        NCCL,
        Timer,
        has_nccl,
        init_log,
        layer_type_list,
        log,
        multiprocess,
        set_device,
        set_mode_cpu,
        set_mode_gpu,
        set_multiprocess,
        set_random_seed,
        set_solver_count,
        set_solver_rank,
        solver_count,
        solver_rank,
    )

__version__ = "1.0.0"
"""The release of Caffe whose interface this is."""

# name -> the module of this room that has it
_HOME: dict[str, str] = {
    "AdaDeltaSolver": "solvers",
    "AdaGradSolver": "solvers",
    "AdamSolver": "solvers",
    "Classifier": "classifier",
    "Detector": "detector",
    "NCCL": "state",
    "NesterovSolver": "solvers",
    "Net": "net",
    "NetSpec": "net_spec",
    "RMSPropSolver": "solvers",
    "SGDSolver": "solvers",
    "Timer": "state",
    "get_solver": "solvers",
    "has_nccl": "state",
    "init_log": "state",
    "install": "launch",
    "layer_type_list": "state",
    "layers": "net_spec",
    "load_ipython_extension": "launch",
    "log": "state",
    "multiprocess": "state",
    "params": "net_spec",
    "set_device": "state",
    "set_mode_cpu": "state",
    "set_mode_gpu": "state",
    "set_multiprocess": "state",
    "set_random_seed": "state",
    "set_solver_count": "state",
    "set_solver_rank": "state",
    "solver_count": "state",
    "solver_rank": "state",
    "to_proto": "net_spec",
}
_ELSEWHERE = {"Layer": ("forcereg.layers.pycaffe.layer", "CaffeLayer")}
_MODULES = {"_caffe", "classifier", "coord_map", "detector", "draw", "io", "net_spec", "proto", "pycaffe"}
"""Modules of this room that are names of `caffe`."""

# written out: type checkers read it as it stands
__all__ = [
    "NCCL",
    "TEST",
    "TRAIN",
    "AdaDeltaSolver",
    "AdaGradSolver",
    "AdamSolver",
    "Classifier",
    "Detector",
    "Layer",
    "NesterovSolver",
    "Net",
    "NetSpec",
    "RMSPropSolver",
    "SGDSolver",
    "Timer",
    "__version__",
    "classifier",
    "coord_map",
    "detector",
    "draw",
    "get_solver",
    "has_nccl",
    "init_log",
    "install",
    "io",
    "layer_type_list",
    "layers",
    "load_ipython_extension",
    "log",
    "multiprocess",
    "net_spec",
    "params",
    "proto",
    "set_device",
    "set_mode_cpu",
    "set_mode_gpu",
    "set_multiprocess",
    "set_random_seed",
    "set_solver_count",
    "set_solver_rank",
    "solver_count",
    "solver_rank",
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
