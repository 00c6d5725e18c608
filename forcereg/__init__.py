"""Caffe-compatible training with Force Regularization and low-rank decomposition, on PyTorch.

    solver = forcereg.train("solver.prototxt")
    made = forcereg.decompose("net_iter_10000.caffemodel.h5", rule=forcereg.MaxError(0.05))
    low = made.write("low")
    forcereg.finetune("solver.prototxt", model=low["model"], weights=low["weights"])
    forcereg.score(low["model"], low["weights"]).mean("accuracy")

Every command of the command line is a function here, with the command's options as keywords; it prints nothing,
returns what it found, and tells its `observer` how it goes. Beside them:

    solver = forcereg.Solver("solver.prototxt"); solver.step(100)
    net = forcereg.load_net("deploy.prototxt", "net_iter_10000.caffemodel.h5"); net(data=images)["prob"]
    factors = forcereg.lowrank.pca(weight, error=0.05)
    grad += force_decay * forcereg.force_gradient(weight, "Constant")
    forcereg.layer("Mish")(torch.nn.Mish)  # a layer type of one's own
    forcereg.nn.decompose(model, images, rule=forcereg.MaxMacs(0.5))  # any torch.nn.Module

Names are imported when first used, so that the command line starts without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# said twice: type checkers and editors don't follow __getattr__
if TYPE_CHECKING:
    from forcereg import cost, lowrank, nn
    from forcereg.data.budget import decode_budget
    from forcereg.errors import ForceregError, UsageError
    from forcereg.exports.request import Exported
    from forcereg.layers.base import Layer
    from forcereg.layers.module import layer
    from forcereg.lowrank.rules import (
        ForkSvdRatio,
        MaxAccuracyDrop,
        MaxError,
        MaxMacs,
        MaxParams,
        MinEnergy,
        RankConfig,
        Ranks,
    )
    from forcereg.net.load import load_net
    from forcereg.net.made import RegroupedNet
    from forcereg.net.module import Net
    from forcereg.net.scoring import Score
    from forcereg.net.summary import Summary
    from forcereg.net.timing import Timing
    from forcereg.solver.force import force_gradient
    from forcereg.solver.loop import Solver
    from forcereg.study.lr_range import LrCurve
    from forcereg.system.events import Event, Observer
    from forcereg.version import __version__
    from forcereg.workflows.check import check
    from forcereg.workflows.classify import classify
    from forcereg.workflows.configs import copy_configs, shipped_configs
    from forcereg.workflows.confusion import confusion
    from forcereg.workflows.convert import convert
    from forcereg.workflows.data import convert_cifar10, convert_digits, convert_imageset, convert_mean, convert_mnist
    from forcereg.workflows.decompose import Decomposition, decompose
    from forcereg.workflows.deploy import deploy
    from forcereg.workflows.detect import detect
    from forcereg.workflows.device_query import devices
    from forcereg.workflows.draw import draw
    from forcereg.workflows.export import export
    from forcereg.workflows.filters import Filters, filters
    from forcereg.workflows.finetune import finetune
    from forcereg.workflows.frontier import Frontier, frontier
    from forcereg.workflows.layers import layer_types
    from forcereg.workflows.lr_find import lr_find
    from forcereg.workflows.merge_groups import merge_groups
    from forcereg.workflows.new import new
    from forcereg.workflows.plot import plot
    from forcereg.workflows.prune import Pruned, prune
    from forcereg.workflows.python import run_script
    from forcereg.workflows.ranks import RankReport, ranks
    from forcereg.workflows.report import Report, report_on
    from forcereg.workflows.score import score
    from forcereg.workflows.sensitivity import Sensitivity, sensitivity
    from forcereg.workflows.shrink import ShrunkNet, shrink
    from forcereg.workflows.split_groups import split_groups
    from forcereg.workflows.summary import summary
    from forcereg.workflows.sweep import Sweep, sweep
    from forcereg.workflows.time import time
    from forcereg.workflows.train import train
    from forcereg.workflows.tune import Tuned, tune

_HOME = {
    "Decomposition": "forcereg.workflows.decompose",
    "Event": "forcereg.system.events",
    "Exported": "forcereg.exports.request",
    "Filters": "forcereg.workflows.filters",
    "ForceregError": "forcereg.errors",
    "ForkSvdRatio": "forcereg.lowrank.rules",
    "Frontier": "forcereg.workflows.frontier",
    "Layer": "forcereg.layers.base",
    "LrCurve": "forcereg.study.lr_range",
    "MaxAccuracyDrop": "forcereg.lowrank.rules",
    "MaxError": "forcereg.lowrank.rules",
    "MaxMacs": "forcereg.lowrank.rules",
    "MaxParams": "forcereg.lowrank.rules",
    "MinEnergy": "forcereg.lowrank.rules",
    "Net": "forcereg.net.module",
    "Observer": "forcereg.system.events",
    "Pruned": "forcereg.workflows.prune",
    "RankConfig": "forcereg.lowrank.rules",
    "RankReport": "forcereg.workflows.ranks",
    "Ranks": "forcereg.lowrank.rules",
    "RegroupedNet": "forcereg.net.made",
    "Report": "forcereg.workflows.report",
    "Score": "forcereg.net.scoring",
    "Sensitivity": "forcereg.workflows.sensitivity",
    "ShrunkNet": "forcereg.workflows.shrink",
    "Solver": "forcereg.solver.loop",
    "Summary": "forcereg.net.summary",
    "Sweep": "forcereg.workflows.sweep",
    "Timing": "forcereg.net.timing",
    "Tuned": "forcereg.workflows.tune",
    "UsageError": "forcereg.errors",
    "__version__": "forcereg.version",
    "check": "forcereg.workflows.check",
    "classify": "forcereg.workflows.classify",
    "confusion": "forcereg.workflows.confusion",
    "convert": "forcereg.workflows.convert",
    "convert_cifar10": "forcereg.workflows.data",
    "convert_digits": "forcereg.workflows.data",
    "convert_imageset": "forcereg.workflows.data",
    "convert_mean": "forcereg.workflows.data",
    "convert_mnist": "forcereg.workflows.data",
    "copy_configs": "forcereg.workflows.configs",
    "decode_budget": "forcereg.data.budget",
    "decompose": "forcereg.workflows.decompose",
    "deploy": "forcereg.workflows.deploy",
    "detect": "forcereg.workflows.detect",
    "devices": "forcereg.workflows.device_query",
    "draw": "forcereg.workflows.draw",
    "export": "forcereg.workflows.export",
    "filters": "forcereg.workflows.filters",
    "finetune": "forcereg.workflows.finetune",
    "force_gradient": "forcereg.solver.force",
    "frontier": "forcereg.workflows.frontier",
    "layer": "forcereg.layers.module",
    "layer_types": "forcereg.workflows.layers",
    "load_net": "forcereg.net.load",
    "lr_find": "forcereg.workflows.lr_find",
    "merge_groups": "forcereg.workflows.merge_groups",
    "new": "forcereg.workflows.new",
    "plot": "forcereg.workflows.plot",
    "prune": "forcereg.workflows.prune",
    "ranks": "forcereg.workflows.ranks",
    "report_on": "forcereg.workflows.report",
    "run_script": "forcereg.workflows.python",
    "score": "forcereg.workflows.score",
    "sensitivity": "forcereg.workflows.sensitivity",
    "shipped_configs": "forcereg.workflows.configs",
    "shrink": "forcereg.workflows.shrink",
    "split_groups": "forcereg.workflows.split_groups",
    "summary": "forcereg.workflows.summary",
    "sweep": "forcereg.workflows.sweep",
    "time": "forcereg.workflows.time",
    "train": "forcereg.workflows.train",
    "tune": "forcereg.workflows.tune",
}
"""Public name -> the module that has it."""

# written out: type checkers read it as it stands
__all__ = [
    "Decomposition",
    "Event",
    "Exported",
    "Filters",
    "ForceregError",
    "ForkSvdRatio",
    "Frontier",
    "Layer",
    "LrCurve",
    "MaxAccuracyDrop",
    "MaxError",
    "MaxMacs",
    "MaxParams",
    "MinEnergy",
    "Net",
    "Observer",
    "Pruned",
    "RankConfig",
    "RankReport",
    "Ranks",
    "RegroupedNet",
    "Report",
    "Score",
    "Sensitivity",
    "ShrunkNet",
    "Solver",
    "Summary",
    "Sweep",
    "Timing",
    "Tuned",
    "UsageError",
    "__version__",
    "check",
    "classify",
    "confusion",
    "convert",
    "convert_cifar10",
    "convert_digits",
    "convert_imageset",
    "convert_mean",
    "convert_mnist",
    "copy_configs",
    "cost",
    "decode_budget",
    "decompose",
    "deploy",
    "detect",
    "devices",
    "draw",
    "export",
    "filters",
    "finetune",
    "force_gradient",
    "frontier",
    "layer",
    "layer_types",
    "load_net",
    "lowrank",
    "lr_find",
    "merge_groups",
    "new",
    "nn",
    "plot",
    "prune",
    "ranks",
    "report_on",
    "run_script",
    "score",
    "sensitivity",
    "shipped_configs",
    "shrink",
    "split_groups",
    "summary",
    "sweep",
    "time",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    # modules that are public as they are
    if name in ("cost", "lowrank", "nn"):
        return importlib.import_module(f"forcereg.{name}")
    raise AttributeError(f"module 'forcereg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
