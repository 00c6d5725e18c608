"""What lies in Caffe's extension module, for scripts that import from there."""

from __future__ import annotations

from forcereg.layers.pycaffe.blob import Blob, BlobVec, RawBlobVec
from forcereg.layers.pycaffe.layer import CaffeLayer as Layer
from forcereg.layers.pycaffe.vectors import BoolVec, DtypeVec, IntVec, LayerVec, NetVec, StringVec
from forcereg.pycaffe import __version__ as __version__
from forcereg.pycaffe.net import Net
from forcereg.pycaffe.solvers import (
    AdaDeltaSolver,
    AdaGradSolver,
    AdamSolver,
    NesterovSolver,
    RMSPropSolver,
    SGDSolver,
    Solver,
    get_solver,
)
from forcereg.pycaffe.solvers import SolverParam as SolverParameter
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
from forcereg.schema import LayerParameter

__all__ = [
    "NCCL",
    "AdaDeltaSolver",
    "AdaGradSolver",
    "AdamSolver",
    "Blob",
    "BlobVec",
    "BoolVec",
    "DtypeVec",
    "IntVec",
    "Layer",
    "LayerParameter",
    "LayerVec",
    "NesterovSolver",
    "Net",
    "NetVec",
    "RMSPropSolver",
    "RawBlobVec",
    "SGDSolver",
    "Solver",
    "SolverParameter",
    "StringVec",
    "Timer",
    "get_solver",
    "has_nccl",
    "init_log",
    "layer_type_list",
    "log",
    "multiprocess",
    "set_device",
    "set_mode_cpu",
    "set_mode_gpu",
    "set_multiprocess",
    "set_random_seed",
    "set_solver_count",
    "set_solver_rank",
    "solver_count",
    "solver_rank",
]
