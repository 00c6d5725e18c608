"""Caffe's solvers: forcereg's own, with a pycaffe net around each of its nets."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar

from forcereg.errors import Fatal
from forcereg.layers.pycaffe.blob import whole
from forcereg.layers.pycaffe.vectors import NetVec
from forcereg.pycaffe.net import Net, check_file
from forcereg.pycaffe.signature import is_path
from forcereg.pycaffe.state import ArgumentError, current_device, fatal, next_seed, write_event
from forcereg.pycaffe.training import Training
from forcereg.schema.text import SolverFile, read_solver


class SolverParam:
    """A solver's settings that scripts read; `base_lr` may be set, and counts at the next update."""

    def __init__(self, message: Any) -> None:
        self._message = message

    @property
    def max_iter(self) -> int:
        """Where `solve` ends."""
        return int(self._message.max_iter)

    @property
    def display(self) -> int:
        """Iterations from one line of the log to the next."""
        return int(self._message.display)

    @property
    def layer_wise_reduce(self) -> bool:
        """Whether several solvers add up gradients layer by layer."""
        return bool(getattr(self._message, "layer_wise_reduce", True))

    @property
    def base_lr(self) -> float:
        """The rate that policies start from."""
        return float(self._message.base_lr)

    @base_lr.setter
    def base_lr(self, rate: float) -> None:
        self._message.base_lr = rate


class Solver:
    """Trains the net of a solver's prototxt, whose `type` doesn't count: the class decides.

    `net` and `test_nets` are those of the solver, which share their weights; what is written into their blobs counts in
    the next iteration. The device is that of `caffe.set_mode_*`, not of the file. Raises RuntimeError for a file that
    isn't there and for whatever is wrong in one, and what Python layers raise.
    """

    _type: ClassVar[str] = ""

    def __init__(self, param_file: Any, *more: Any) -> None:
        if not self._type:
            raise RuntimeError("This class cannot be instantiated from Python; use caffe.get_solver")
        if more or not is_path(param_file):
            raise ArgumentError(f"{type(self).__name__} takes the path of a solver prototxt")
        file = _read(param_file)
        file.message.type = self._type
        if file.message.random_seed < 0 and (seed := next_seed()) is not None:
            file.message.random_seed = seed
        with fatal():
            self._training = Training(file, str(current_device()), [write_event])
        self._param = SolverParam(self._training.param)

    @property
    def net(self) -> Net:
        """The net that is trained."""
        return self._training.face

    @property
    def test_nets(self) -> NetVec:
        """The nets that are tested."""
        return NetVec(self._training.test_faces)

    @property
    def iter(self) -> int:
        """Updates so far."""
        return self._training.iter

    @property
    def param(self) -> SolverParam:
        """Settings."""
        return self._param

    def step(self, iters: Any) -> None:
        """Runs so many iterations, with the tests, displays and snapshots that are due in them."""
        with fatal():
            self._training.run(whole(iters))

    def solve(self, resume_file: Any = None) -> None:
        """Trains to max_iter, from a solver state if one is given; a snapshot and a test end it."""
        if resume_file is not None:
            self.restore(resume_file)
        with fatal():
            self._training.finish()

    def snapshot(self) -> None:
        """Writes the weights and the solver's state under snapshot_prefix."""
        with fatal():
            self._training.save()

    def restore(self, state_file: Any) -> None:
        """Goes on from a solver state of any format: weights, history, iteration."""
        name = os.fsdecode(state_file)
        check_file(name)
        with fatal():
            self._training.go_back(name)

    def add_callback(self, on_start: Callable[[], Any], on_gradients_ready: Callable[[], Any]) -> None:
        """Two calls without arguments: before each iteration's first forward, and before its update."""
        if not callable(on_start) or not callable(on_gradients_ready):
            raise ArgumentError("add_callback takes two functions without arguments")
        self._training.hooks.append((on_start, on_gradients_ready))

    def apply_update(self) -> None:
        """One update of the weights by their gradients as they are; `iter` counts it."""
        with fatal():
            self._training.update_once()

    def share_weights(self, net: Net) -> None:
        """`net` takes the weights of the solver's net, in layers of equal name."""
        net.share_with(self.net)


class SGDSolver(Solver):
    """Stochastic gradient descent with momentum.

    >>> import forcereg.pycaffe as caffe
    >>> solver = caffe.SGDSolver("solver.prototxt")
    >>> solver.step(5)
    >>> solver.iter, solver.net.blobs["loss"].data.shape
    (5, ())
    """

    _type = "SGD"

    @property
    def lr(self) -> float:
        """The learning rate at this iteration."""
        return self._training.lr


class NesterovSolver(SGDSolver):
    """Nesterov's accelerated gradient."""

    _type = "Nesterov"


class AdaGradSolver(SGDSolver):
    """AdaGrad."""

    _type = "AdaGrad"


class RMSPropSolver(SGDSolver):
    """RMSProp."""

    _type = "RMSProp"


class AdaDeltaSolver(SGDSolver):
    """AdaDelta."""

    _type = "AdaDelta"


class AdamSolver(SGDSolver):
    """Adam."""

    _type = "Adam"


_ALL = (SGDSolver, NesterovSolver, AdaGradSolver, RMSPropSolver, AdaDeltaSolver, AdamSolver)
CLASSES = {one._type: one for one in _ALL}


def get_solver(param_file: Any) -> Solver:
    """The solver of a prototxt, of the class that its `type` names. Raises RuntimeError."""
    if not is_path(param_file):
        raise ArgumentError("get_solver takes the path of a solver prototxt")
    file = _read(param_file)
    kind = file.message.type
    if kind not in CLASSES:
        raise Fatal(f"{file.name}: there is no solver type '{kind}'; expected one of {', '.join(CLASSES)}")
    return CLASSES[kind](param_file)


def _read(param_file: Any) -> SolverFile:
    name = os.fsdecode(param_file)
    check_file(name)
    with fatal():
        return read_solver(name)
