"""Caffe-compatible training with Force Regularization and low-rank decomposition, on PyTorch.

    solver = forcereg.Solver("solver.prototxt"); solver.solve()
    net = forcereg.load_net("deploy.prototxt", "net_iter_10000.caffemodel.h5"); net(data=images)["prob"]
    factors = forcereg.lowrank.pca(weight, error=0.05)
    grad += force_decay * forcereg.force_gradient(weight, "Constant")
    forcereg.layer("Mish")(torch.nn.Mish)  # a layer type of one's own

Names are imported when first used, so that the command line starts without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forcereg import cost, lowrank
    from forcereg.errors import ForceregError
    from forcereg.layers.base import Layer
    from forcereg.layers.module import layer
    from forcereg.net.load import load_net
    from forcereg.net.module import Net
    from forcereg.solver.force import force_gradient
    from forcereg.solver.loop import Solver
    from forcereg.version import __version__

_HOME = {
    "ForceregError": "forcereg.errors",
    "Layer": "forcereg.layers.base",
    "Net": "forcereg.net.module",
    "Solver": "forcereg.solver.loop",
    "__version__": "forcereg.version",
    "force_gradient": "forcereg.solver.force",
    "layer": "forcereg.layers.module",
    "load_net": "forcereg.net.load",
}

__all__ = [
    "ForceregError",
    "Layer",
    "Net",
    "Solver",
    "__version__",
    "cost",
    "force_gradient",
    "layer",
    "load_net",
    "lowrank",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in ("cost", "lowrank"):
        return importlib.import_module(f"forcereg.{name}")
    raise AttributeError(f"module 'forcereg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
