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
    from forcereg.data.budget import decode_budget
    from forcereg.errors import ForceregError, UsageError
    from forcereg.layers.base import Layer
    from forcereg.layers.module import layer
    from forcereg.net.load import load_net
    from forcereg.net.module import Net
    from forcereg.solver.force import force_gradient
    from forcereg.solver.loop import Solver
    from forcereg.system.events import Event, Observer
    from forcereg.version import __version__
    from forcereg.workflows.check import check
    from forcereg.workflows.configs import copy_configs, shipped_configs
    from forcereg.workflows.convert import convert
    from forcereg.workflows.data import convert_cifar10, convert_digits, convert_imageset, convert_mean, convert_mnist
    from forcereg.workflows.device_query import devices
    from forcereg.workflows.draw import draw
    from forcereg.workflows.finetune import finetune
    from forcereg.workflows.layers import layer_types
    from forcereg.workflows.new import new
    from forcereg.workflows.plot import plot
    from forcereg.workflows.score import score
    from forcereg.workflows.summary import summary
    from forcereg.workflows.time import time
    from forcereg.workflows.train import train

_HOME = {
    "Event": "forcereg.system.events",
    "ForceregError": "forcereg.errors",
    "Layer": "forcereg.layers.base",
    "Net": "forcereg.net.module",
    "Observer": "forcereg.system.events",
    "Solver": "forcereg.solver.loop",
    "UsageError": "forcereg.errors",
    "__version__": "forcereg.version",
    "check": "forcereg.workflows.check",
    "convert": "forcereg.workflows.convert",
    "convert_cifar10": "forcereg.workflows.data",
    "convert_digits": "forcereg.workflows.data",
    "convert_imageset": "forcereg.workflows.data",
    "convert_mean": "forcereg.workflows.data",
    "convert_mnist": "forcereg.workflows.data",
    "copy_configs": "forcereg.workflows.configs",
    "decode_budget": "forcereg.data.budget",
    "devices": "forcereg.workflows.device_query",
    "draw": "forcereg.workflows.draw",
    "finetune": "forcereg.workflows.finetune",
    "force_gradient": "forcereg.solver.force",
    "layer": "forcereg.layers.module",
    "layer_types": "forcereg.workflows.layers",
    "load_net": "forcereg.net.load",
    "new": "forcereg.workflows.new",
    "plot": "forcereg.workflows.plot",
    "score": "forcereg.workflows.score",
    "shipped_configs": "forcereg.workflows.configs",
    "summary": "forcereg.workflows.summary",
    "time": "forcereg.workflows.time",
    "train": "forcereg.workflows.train",
}
"""Public name -> the module that has it."""

__all__ = [
    "Event",
    "ForceregError",
    "Layer",
    "Net",
    "Observer",
    "Solver",
    "UsageError",
    "__version__",
    "check",
    "convert",
    "convert_cifar10",
    "convert_digits",
    "convert_imageset",
    "convert_mean",
    "convert_mnist",
    "copy_configs",
    "cost",
    "decode_budget",
    "devices",
    "draw",
    "finetune",
    "force_gradient",
    "layer",
    "layer_types",
    "load_net",
    "lowrank",
    "new",
    "plot",
    "score",
    "shipped_configs",
    "summary",
    "time",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in ("cost", "lowrank"):
        return importlib.import_module(f"forcereg.{name}")
    raise AttributeError(f"module 'forcereg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
