"""A solver without its loop: what it is made of, and what it loads, saves and goes on from."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forcereg.data.feed import DEFAULT_BUDGET
from forcereg.errors import UsageError
from forcereg.snapshot import LoadReport, ModelFile, StateFile, model_of, read_state
from forcereg.solver import policy
from forcereg.solver.build import begin, nets_of, steps_of
from forcereg.solver.clipping import RankClipping
from forcereg.solver.diagnostics import Ranks
from forcereg.solver.distributed import Group, Request
from forcereg.solver.goal import Aims
from forcereg.solver.hooks import H, Hook
from forcereg.solver.judge import Judge
from forcereg.solver.pace import Pace
from forcereg.solver.passes import Inputs, Passes
from forcereg.solver.precision import LossScale
from forcereg.solver.pruning import How, Pruning
from forcereg.solver.pull import Pull
from forcereg.solver.rankwatch import RankWatch
from forcereg.solver.regularizers.force import FORCE, without_force
from forcereg.solver.rollback import OnNan
from forcereg.solver.run import Teller
from forcereg.solver.setup import solver_file
from forcereg.solver.snapshots import REBUILD, STORED, Snapshots
from forcereg.solver.sparsity.advice import Settling, too_strong
from forcereg.solver.sparsity.asked import is_used
from forcereg.solver.trouble import NotFinite, advice, not_finite
from forcereg.solver.updater import Updater
from forcereg.system.arguments import checked, wrong
from forcereg.system.events import Observer
from forcereg.system.paths import learned_nets, resolve


class SolverBase:
    """The parts of a Solver, which see for the keywords, and its state between two iterations."""

    stop_requested, snapshot_requested = Request(), Request()

    @checked
    def __init__(
        self,
        solver: str | os.PathLike[str] | Any,
        *,
        device: str | None = None,
        level: int | None = None,
        stages: Sequence[str] = (),
        budget: int = DEFAULT_BUDGET,
        workers: int = 0,
        keep: int | None = None,
        observers: Sequence[Observer] = (),
        allow_python_layers: bool = False,
        amp: str | None = None,
        group: Group | None = None,
        cuda_graph: bool = True,
    ) -> None:
        self.group = Group() if group is None else group
        self.file = solver_file(solver)
        self._tell = Teller(observers, self.group.rank)
        self._run, specs = begin(self.file, device, level, stages, self.group, self._tell)
        self._nets = nets_of(self._run, specs, budget, workers, allow_python_layers)
        self.param, self.root = self._run.param, self._run.root
        self.device, self.seed = self._run.device, self._run.seed
        self.net, self.test_nets = self._nets.train, self._nets.tests
        self.iter = self.current_step = 0
        self.stop_requested = self.snapshot_requested = False
        self.measure_force = False
        self.steps = steps_of(self._run, self._nets, amp, cuda_graph)
        watched = self._tell, self.param.force_decay, bool(self.test_nets) and self.param.test_interval > 0
        self.pull, self._watch = Pull(*watched), RankWatch(*watched)
        self.ranks: Ranks = {}  # of the layers that feel a force, at the last test in which they did
        self.clipping: RankClipping | None = None
        self.pruning: Pruning | None = None
        self.judge: Judge | None = None
        self.enough = False
        self.on_nan: OnNan | None = None
        self._snapshots = Snapshots(self._run, self._nets, self.steps, self._watch, keep)
        self._losses = self.steps.losses
        self._sparse, self._settling = is_used(self.net, self.param), Settling()
        self._debugs = self.param.debug_info or specs.train.debug_info
        self._pace = Pace()
        # kept for the advice behind a loss that isn't finite, which looks at the inputs again
        self._inputs: Inputs = None
        self._before_tests: dict[str, Any] | None = None
        if self.param.force_decay and (text := without_force(self.net, self.param)):
            self.warn(text)
        if text := too_strong(self.net, self.param):
            self.warn(text)
        for path in ",".join(self.param.weights).split(","):
            if path.strip():
                self.load_weights(resolve(self.root, path.strip()))

    # -- its parts

    @property
    def updater(self) -> Updater:
        """What changes the weights, and its history."""
        return self.steps.updater

    @property
    def passes(self) -> Passes:
        """What runs forward and backward."""
        return self.steps.passes

    @property
    def scale(self) -> LossScale | None:
        """The loss scale of float16, else None."""
        return self.steps.scale

    @property
    def last_snapshot(self) -> Path | None:
        """The model last written, or gone on from."""
        return self._snapshots.last

    @property
    def best_snapshot(self) -> Path | None:
        """The model of the best net, if this run has written one; see `judge_by`."""
        return self._snapshots.best

    @property
    def observers(self) -> list[Observer]:
        """Who is told of events; more may be added."""
        return self._tell.observers

    @observers.setter
    def observers(self, observers: list[Observer]) -> None:
        self._tell.observers = observers

    def on(self, kind: str, function: H) -> H:
        """Has `function` called with every `Event` of a kind, behind the observers; returns it, for `off`.

        `kind`: as in JSON logs, and "iteration" for "progress", "display" for "train", "*" for all. Of several
        processes rank 0's are called, so a function may ask for a stop or a snapshot (`solver.stop_requested = True`,
        `solver.snapshot_requested = True`), and not for what all take part in. Raises UsageError for no such kind.
        """
        return self._tell.hooks.add(kind, function)

    def off(self, function: Hook) -> None:
        """Takes back what `on` did for it."""
        self._tell.hooks.remove(function)

    @property
    def loss(self) -> float:
        """The smoothed loss, NaN before the first iteration. Waits for the device."""
        return float(self._losses.mean())

    def emit(self, kind: str, **fields: Any) -> None:
        """Tells the observers."""
        self._tell.emit(kind, **fields)

    def warn(self, text: str) -> None:
        """Tells the observers, or if there are none the user."""
        self._tell.warn(text, 4)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """In the block all nets have the averaged weights. Raises UsageError without `ema_decay`."""
        if self.steps.average is None:
            raise UsageError("there are no averaged weights; set ema_decay, as in 0.999")
        with self.steps.average.in_place():
            self.group.spread(self.net, learned=False)  # rank 0's statistics, as in tests
            yield

    def clip_ranks(self, share: float, until: int | None = None) -> None:
        """Has training reduce the ranks of decomposed layers; see RankClipping. Raises ForceregError if it can't."""
        self.clipping = RankClipping(self._run, self._nets, self.steps, share, until)

    def prune_by(self, how: How) -> Pruning:
        """Has training prune layers, and `solve` settle what is pruned in the end; what does it.

        Raises ForceregError for a layer that has no weights that learn.
        """
        self.pruning = self._snapshots.pruning = Pruning(self._run, self.net, self.steps, how)
        return self.pruning

    def judge_by(
        self, keep_best: str | None = None, patience: int | None = None, stop_when: str | None = None
    ) -> Judge | None:
        """Has tests decide which net is kept and when the run ends, as keywords of forcereg.train; what does it.

        Raises UsageError for what can't be meant, ForceregError for outputs that the test nets lack.
        """
        aims = Aims.of(keep_best, patience, stop_when)
        self.judge = self._snapshots.judge = Judge(self._run, self._nets, aims) if aims else None
        return self.judge

    # -- weights and state

    @property
    def lr(self) -> float:
        """The learning rate at the current iteration and current_step."""
        return self._rate(policy.advance(self.param, self.iter, self.current_step))

    def _rate(self, current_step: int) -> float:
        return policy.rate(self.param, self.iter, current_step) * self._snapshots.rollbacks.factor

    def load_weights(self, path: str | Path) -> LoadReport:
        """Loads a model by layer name into the train net and, for layers of their own, the test nets.

        Without observers what was ignored or left fresh is a Python warning. Raises ForceregError, also if none of its
        weights is the nets'. The report is of all nets together.
        """
        return self._snapshots.load_weights(path)

    def loaded(self, layers: Collection[str]) -> None:
        """Says that weights of these layers were loaded by somebody else: their masks are made, as `load_weights` does.

        Those of layers without a connectivity_mode stay as they are.
        """
        self._snapshots.loaded(layers)

    def prefix(self) -> Path:
        """The snapshot prefix as a path. Raises ForceregError if there is none."""
        return self._run.prefix()

    def snapshot(self) -> Path:
        """Writes model and state at this iteration; the model's path. Raises ForceregError if weights aren't finite."""
        return self._save()

    def _save(self, best: bool = False) -> Path:
        self.check_finite()
        # the loss is that of weights before their last update, which may have been too much
        # statistics are each rank's own, and what follows is for all
        if not all(self.group.gather(self.updater.all_finite())):
            what = f"weights are not finite at iteration {self.iter}; no snapshot is written"
            raise self._not_finite(what, self.iter)
        self.group.check_equal(self.updater.weights)
        # among tests: as before them, because resuming runs them all again
        extra = self._before_tests or self._snapshots.extra()
        return self._snapshots.write(self.iter, self.current_step, extra, self.clipping, best)

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks on updates, uint8, by "layer/index" of the weights that have one: 1 free, 0 frozen."""
        return self.updater.masks.tensors

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Freezes values where `masks`, as `.masks` has them, are 0: they stay what they are.

        Masks of other weights stay. Snapshots hold them. Raises ForceregError for another name or shape.
        """
        self.updater.masks.set(masks)
        self.steps.forget()

    def restore(self, path: str | Path, masks: str = STORED) -> None:
        """Continues from a solver state: weights, history, iteration and, if we wrote it, data and randomness.

        It may be binary or HDF5, written by Caffe too. `masks`: "stored" takes those that the state holds; "rebuild",
        and a state without, makes them anew by the layers' connectivity_mode from the weights that are zero.
        Raises ForceregError if it or its model doesn't fit.
        """
        if masks not in (STORED, REBUILD):
            raise wrong("masks", masks, f"'{STORED}' or '{REBUILD}'")
        state = read_state(path)
        self.go_on_from(state, model_of(state, learned_nets(self.root, state.learned_net, path)), masks)

    def go_on_from(self, state: StateFile, model: ModelFile, masks: str = STORED) -> None:
        """`restore` of a pair that has been read. Raises ForceregError, with nothing taken over, if it doesn't fit."""
        self.current_step = self._snapshots.take_over(state, model, self.clipping, masks)
        self.iter = state.iteration
        self._before_tests = None

    @contextlib.contextmanager
    def trying(self) -> Iterator[None]:
        """Iterations in the block leave nothing behind: weights, history, data and random numbers are put back."""
        nets = (blob for net in self._nets for blob in (*net.parameters(), *net.buffers()))
        carried = (tensor for tensors in self.updater.carried().values() for tensor in tensors.values())
        history = (tensor for slot in self.updater.history for tensor in slot)
        tensors = {
            id(one): one.detach() for one in (*nets, *carried, *history)
        }.values()  # once each: nets share theirs
        kept = [(one, one.clone()) for one in tensors]
        extra = self._snapshots.extra()
        try:
            yield
        finally:
            self.updater.go_on([])
            with torch.no_grad():
                for tensor, value in kept:
                    tensor.copy_(value)
            self._snapshots.put_back(extra)
            self.steps.forget()  # the window's tensor may be another

    # -- finite losses

    def check_finite(self, before: float = math.inf) -> None:
        """Raises ForceregError naming the first iteration `before` this with a non-finite loss. Reads the device."""
        bad = self.updater.first_bad()
        if 0 <= bad < before:
            what = "the loss" if self.scale is None else "the loss or a gradient"
            what += f" is not finite at iteration {bad}; no update was made from there on"
            raise self._not_finite(what, bad)

    def _not_finite(self, what: str, bad: int) -> NotFinite:
        felt = FORCE in self.updater.feeling(bad - 1)
        change = advice(self._run, self.net, self._inputs, bad, self.pull if felt else None)
        return not_finite(self.file.name, what, self.last_snapshot, change, bad > 0)

    def _go_back(self, error: NotFinite) -> None:
        """Goes back to a snapshot at a lower rate, if `on_nan` asks for it and it may help; else raises."""
        asked, past, state = self.on_nan, self._snapshots.rollbacks, self._snapshots.to_go_back_to()
        if asked is None or state is None or not all(self.group.gather(error.curable)):
            raise error
        if past.done >= asked.times:
            often = "once" if past.done == 1 else f"{past.done} times"
            raise NotFinite(f"{error} (it went back {often}; the rate is {past.factor:g} times as large)") from error
        done, factor, bad = past.done + 1, past.factor * asked.factor, self.iter
        best = None if self.judge is None else self.judge.best
        self.restore(state)
        self._snapshots.returned = state
        past.load_state_dict({"done": done, "factor": factor})
        if self.judge is not None and best is not None:
            self.judge.keep(best)
        where = {"iteration": self.iter, "from_iteration": bad, "state": str(state)}
        self.emit("rollback", done=done, times=asked.times, factor=factor, text=str(error), **where)
