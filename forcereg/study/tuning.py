"""Fine-tuning of nets that were made from a trained one: by its solver, without force, at a tenth of its rate."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from forcereg import snapshot
from forcereg.errors import ForceregError
from forcereg.lowrank.rewrite import Weights
from forcereg.net.module import Net
from forcereg.schema import SolverParameter
from forcereg.schema.text import NetFile, SolverFile
from forcereg.solver.log import GlogWriter
from forcereg.solver.loop import Solver
from forcereg.solver.resume import resume_latest
from forcereg.solver.setup import TRAIN_FIELDS
from forcereg.solver.signals import handled
from forcereg.solver.state import pack
from forcereg.solver.teacher import learn_from
from forcereg.system.events import Observer
from forcereg.system.files import append_text


class Ended(ForceregError):
    """What an observer raises to end a training whose result nobody will need: why."""


def tuning(solver: SolverFile, net: NetFile, test: NetFile | None, iterations: int, seed: int) -> Any:
    """The SolverParameter that fine-tunes `net`: with the first test net only, or `test` in its place."""
    param = SolverParameter()
    param.CopyFrom(solver.message)
    # weights and prefix, too: the caller loads the one, and knows what is done by the other
    for name in (*TRAIN_FIELDS, "test_net", "test_net_param", "weights", "snapshot_prefix"):
        param.ClearField(name)
    param.net_param.CopyFrom(net.message)
    if test is not None:
        param.test_net_param.append(test.message)
    del param.test_iter[1:], param.test_state[1:]
    # no force, which would lower the ranks further; no schedule, whose first rate would undo what was learned
    param.force_decay, param.lr_policy, param.base_lr, param.max_iter = 0, "fixed", param.base_lr / 10, iterations
    for name in ("warmup_iter", "ema_decay"):
        param.ClearField(name)
    param.random_seed, param.snapshot_after_train = seed, True
    return param


def tune(
    file: SolverFile,
    weights: Weights,
    log: Path,
    heard: Observer,
    options: Mapping[str, Any],
    teacher: Path | None = None,
    prepare: Callable[[Solver], Any] | None = None,
) -> Solver:
    """Trains from the weights, or the newest snapshot of the solver's prefix; Caffe's lines go behind those in `log`.

    `options` are `Solver`'s; `teacher`: a snapshot that teaches, as `learn_from` does; `prepare` is called with the
    solver before it starts. Returns it as it ended. Raises as `train` and `learn_from`, and ForceregError for weights
    that lack a layer.
    """
    with append_text(log) as stream:
        # one snapshot to go on from; the last is the result
        solver = Solver(file, observers=[GlogWriter(stream), heard], keep=1, **options)
        for one in (solver.net, *solver.test_nets):  # a test net of its own has layers of its own
            load(one, weights)
        if teacher is not None:
            learn_from(solver, teacher, allow_python_layers=bool(options.get("allow_python_layers")))
        if prepare is not None:
            prepare(solver)
        train(solver)
    return solver


def train(solver: Solver) -> None:
    """To max_iter, from the newest snapshot if there is one, with Caffe's signals where Python may hear them.

    Raises ForceregError as `Solver.solve`; KeyboardInterrupt if told to stop, once saved.
    """
    resume_latest(solver)
    # Python lets the main thread alone set handlers; elsewhere signals stay the program's
    hears = threading.current_thread() is threading.main_thread()
    with handled(solver) if hears else contextlib.nullcontext():
        solver.solve()
    if solver.stop_requested:  # saved: but what comes next needs a run that has ended
        raise KeyboardInterrupt


def weights_of(solver: Solver) -> Weights:
    """All blobs of the first test net, those that it shares with the trained net among them."""
    return pack(solver.test_nets[0])


def load(net: Net, weights: Weights) -> snapshot.LoadReport:
    """Copies the weights by layer name. Raises ForceregError for a layer that they lack, or whose shapes differ."""
    layers = {name: dict(blobs) for name, blobs in weights.items()}
    report = snapshot.load_into(net.params, snapshot.ModelFile(Path("<weights>"), layers, {}), net.shared)
    if report.fresh:
        names = ", ".join(report.fresh)
        raise ForceregError(f"{net.spec.filename}: the weights lack layers {names}; give the model of this net")
    return report
