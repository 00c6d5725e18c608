"""What lies in Caffe's module `caffe.pycaffe`, for scripts that import from there."""

from __future__ import annotations

from forcereg.pycaffe import io
from forcereg.pycaffe.net import Net
from forcereg.pycaffe.solvers import (
    AdaDeltaSolver,
    AdaGradSolver,
    AdamSolver,
    NesterovSolver,
    RMSPropSolver,
    SGDSolver,
)

__all__ = [
    "AdaDeltaSolver",
    "AdaGradSolver",
    "AdamSolver",
    "NesterovSolver",
    "Net",
    "RMSPropSolver",
    "SGDSolver",
    "io",
]
