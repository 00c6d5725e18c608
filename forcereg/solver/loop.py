"""The solver: trains, tests, saves and resumes a net in Caffe's order of steps."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forcereg.data.feed import DEFAULT_BUDGET
from forcereg.net.module import Net
from forcereg.net.scoring import Score, read_outputs
from forcereg.snapshot import LoadReport, ModelFile, StateFile, model_of, read_state
from forcereg.solver import policy
from forcereg.solver.build import begin, nets_of, steps_of
from forcereg.solver.clipping import RankClipping
from forcereg.solver.debug import Watch
from forcereg.solver.diagnostics import Ranks, coordination, forced_ranks
from forcereg.solver.distributed import Group, Request
from forcereg.solver.pace import Pace
from forcereg.solver.passes import Inputs, Passes, fed
from forcereg.solver.precision import LossScale
from forcereg.solver.pruning import How, Pruning
from forcereg.solver.pull import Pull
from forcereg.solver.rankwatch import RankWatch
from forcereg.solver.ready import check_ready
from forcereg.solver.regularizers.force import FORCE, forced_matrices, without_force
from forcereg.solver.run import Teller
from forcereg.solver.setup import solver_file
from forcereg.solver.snapshots import REBUILD, STORED, Snapshots
from forcereg.solver.sparsity.advice import Settling, notes, too_strong
from forcereg.solver.sparsity.asked import is_used
from forcereg.solver.trouble import NotFinite, advice, not_finite
from forcereg.solver.updater import Updater
from forcereg.system.arguments import checked, wrong
from forcereg.system.events import Observer
from forcereg.system.paths import learned_nets, resolve


class Solver:
    """Trains the net of a solver prototxt.

    `solver`: a path, prototxt text or SolverParameter. `device`: "auto", "cpu", "cuda" or "cuda:N";
    None follows solver_mode. `.net` and `.test_nets` share their weights; `.iter` counts iterations,
    `.lr` is the rate of the coming one; `observers` are called with `Event`s. `budget`: bytes of
    a decoded set, larger ones stream; `workers`: threads that decode, 0 for as many as cores; both for each data
    layer. `allow_python_layers`: run code that the net names in Python layers. `amp`: "bf16" or "fp16" for mixed
    precision in training. `group`: the processes to train with, from `distributed.join`; rank 0's observers are told.
    `cuda_graph`: a GPU runs iterations and test passes as CUDA graphs where the nets allow it.
    Raises ForceregError for anything wrong in the solver or its nets, before the first iteration.

    >>> solver = forcereg.Solver("solver.prototxt")
    >>> solver.solve()
    >>> solver.iter, solver.last_snapshot.name
    (20, 'net_iter_20.caffemodel.h5')
    """

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
    def observers(self) -> list[Observer]:
        """Who is told of events; more may be added."""
        return self._tell.observers

    @observers.setter
    def observers(self, observers: list[Observer]) -> None:
        self._tell.observers = observers

    def emit(self, kind: str, **fields: Any) -> None:
        """Tells the observers."""
        self._tell.emit(kind, **fields)

    def warn(self, text: str) -> None:
        """Tells the observers, or if there are none the user."""
        self._tell.warn(text, 4)

    def clip_ranks(self, share: float, until: int | None = None) -> None:
        """Has training reduce the ranks of decomposed layers; see RankClipping. Raises ForceregError if it can't."""
        self.clipping = RankClipping(self._run, self._nets, self.steps, share, until)

    def prune_by(self, how: How) -> Pruning:
        """Has training prune layers, and `solve` settle what is pruned in the end; what does it.

        Raises ForceregError for a layer that has no weights that learn.
        """
        self.pruning = self._snapshots.pruning = Pruning(self._run, self.net, self.steps, how)
        return self.pruning

    # -- weights and state

    @property
    def lr(self) -> float:
        """The learning rate at the current iteration and current_step."""
        return policy.rate(self.param, self.iter, policy.advance(self.param, self.iter, self.current_step))

    def load_weights(self, path: str | Path) -> LoadReport:
        """Loads a model by layer name into the train net and, for layers of their own, the test nets.

        Without observers what was ignored or left fresh is a Python warning. Raises ForceregError, also if none of its
        weights is the nets'. The report is of all nets together.
        """
        return self._snapshots.load_weights(path)

    def prefix(self) -> Path:
        """The snapshot prefix as a path. Raises ForceregError if there is none."""
        return self._run.prefix()

    def snapshot(self) -> Path:
        """Writes model and state at this iteration; the model's path. Raises ForceregError if weights aren't finite."""
        self.check_finite()
        # the loss is that of weights before their last update, which may have been too much
        if not self.updater.all_finite():
            what = f"weights are not finite at iteration {self.iter}; no snapshot is written"
            raise self._not_finite(what, self.iter)
        self.group.check_equal(self.updater.weights)
        # among tests: as before them, because resuming runs them all again
        extra = self._before_tests or self._snapshots.extra()
        return self._snapshots.write(self.iter, self.current_step, extra, self.clipping)

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
        return not_finite(self.file.name, what, self.last_snapshot, change)

    # -- training

    def solve(self, inputs: Inputs = None) -> None:
        """Trains to max_iter with all tests and snapshots, and Caffe's end-of-run actions."""
        self.emit("start", net=self.net.spec.name, policy=self.param.lr_policy)
        if self.passes.precision.kind:
            self.emit("note", text=self.passes.precision.describe())
        for text in notes(self.net, self.param):
            self.emit("note", text=text)
        # before the first iteration: what would end the run at its first test or snapshot ends it now
        check_ready(self._run, self._nets, len(self.updater.history), self.iter, inputs is not None)
        start = self.iter
        self.step(max(0, self.param.max_iter - self.iter), inputs)
        self.check_finite()
        p = self.param
        wanted = p.snapshot_after_train or self.stop_requested
        # a stop in the tests before iteration 0 comes when the schedule has saved nothing yet
        saved = p.snapshot > 0 and self.iter % p.snapshot == 0 and (self.iter > 0 or not self.stop_requested)
        if wanted and not saved and (self.iter > start or start == 0):
            self.snapshot()
        if self.stop_requested:
            self.emit("stopped")
            return
        # Caffe's order at the end: snapshot, one more forward for the log, then the test
        self._final_display()
        if p.test_interval > 0 and self.iter % p.test_interval == 0:
            self.test_all()
        if self.clipping is not None:
            self.clipping.finish(self.iter)
        if self.pruning is not None:
            self.pruning.settle(self.iter)
        self.emit("done")

    def step(self, n: int, inputs: Inputs = None) -> Tensor:
        """Runs `n` iterations (with the tests, displays and snapshots due in them); the smoothed loss, 0-d.

        `inputs` feeds nets with Input layers: a dict of blobs, or a callable of (iteration, sub_iteration)
        (in a test: of the iteration and the batch).
        """
        p, self._inputs = self.param, inputs
        self._pace.start(self.iter)
        for _ in range(n):
            # before the tests, which then score the net that training goes on with
            if self.clipping is not None and self.clipping.due(self.iter):
                with self._pace.paused():
                    self.check_finite()
                    self.clipping.clip(self.iter)
            if self.pruning is not None and self.pruning.due(self.iter):
                with self._pace.paused():
                    self.check_finite()
                    self.pruning.prune(self.iter)
            if self._due_for_test():
                with self._pace.paused():
                    self.test_all()
                if self.stop_requested:
                    break
            display = p.display > 0 and self.iter % p.display == 0
            if self._watch.due(self.iter, display) and FORCE in self.updater.feeling(self.iter):
                self._look_at_ranks()
            self._iterate(display)
            self.iter += 1
            # here and between test batches alone, where all ranks come by equally often
            self.group.agree()
            # free on the host; a device is only read where something is shown or saved
            if self.updater.on_host:
                self.check_finite()
            self.emit("progress", iteration=self.iter, max_iter=p.max_iter)
            if self.snapshot_requested or (p.snapshot > 0 and self.iter % p.snapshot == 0):
                self.snapshot_requested = False
                self.snapshot()
            if self.stop_requested:
                break
        return self._losses.mean()

    def _due_for_test(self) -> bool:
        p = self.param
        due = p.test_interval > 0 and self.iter % p.test_interval == 0
        return due and bool(self.test_nets) and (self.iter > 0 or p.test_initialization)

    def _iterate(self, display: bool) -> None:
        p, before = self.param, self.current_step
        for text in self.updater.news(self.iter):
            self.emit("note", text=text)
        after = policy.advance(p, self.iter, before)
        rate = policy.rate(p, self.iter, after)
        if self._sparse and (text := self._settling.fallen(self.iter, rate)):
            self.warn(text)
        # as this iteration's loss was scaled, before the update moves it
        scale = self.scale.state_dict() if display and self.scale is not None else None

        def tell(outputs: Mapping[str, Tensor]) -> None:
            # once the passes have gone well: Caffe moves it in the update
            self.current_step = after
            if display:
                self._display(outputs, rate)
            if after != before and p.lr_policy == "multistep":
                self.emit("step", iteration=self.iter, current_step=after)
            if display:
                self.emit("rate", iteration=self.iter, rate=rate)
                if scale is not None:
                    self.emit("scale", iteration=self.iter, **scale)
                if self._sparse and self.group.rank == 0:
                    self._tell_sparsity()

        watched = self._debug if display and self._debugs else None
        inputs = functools.partial(self._fed, self.net)
        # displays tell of the weights before the update, which a graph wouldn't show
        seen = display and self._sparse
        self.steps.run(self.iter, rate, inputs, tell, watched, self._measures(display), seen)

    def _tell_sparsity(self) -> None:
        layers, term = self.updater.sparsity()
        self._settling.take(self.iter, layers)
        total = term + float(self._losses.mean())
        self.emit("sparsity", iteration=self.iter, layers=layers, regularization=term, total=total)

    def _measures(self, display: bool) -> dict[str, Callable[[Tensor], None]]:
        """What is told how large the force is in this iteration, if that is due."""
        felt = self.group.rank == 0 and FORCE in self.updater.feeling(self.iter)  # the others' are the same
        if not felt or not self.pull.due(self.iter, self._due_for_test(), display):
            return {}
        return {FORCE: functools.partial(self.pull.take, self.iter, self.updater.touched(FORCE))}

    def _fed(self, net: Net, sub: int) -> dict[str, Tensor] | None:
        return fed(net, self._inputs, self.iter, sub, self.device, net is self.net)

    def _debug(self, watch: Watch) -> None:
        scale = None if self.scale is None else self.scale.value
        self.emit("debug", iteration=self.iter, **watch.told(scale))

    # -- tests and displays

    def test_all(self) -> None:
        """Runs every test net over its test_iter batches; emits the mean of every output element."""
        self.check_finite()
        # a snapshot among the tests is one from before them (see snapshot)
        self._before_tests = self._snapshots.extra()
        # the ranks' BatchNorm statistics differ; rank 0's are saved, so they are tested, too
        self.group.spread(self.net, learned=False)
        for index in range(len(self.test_nets)):
            self.test(index)
            if self.stop_requested:
                break
        else:
            self._before_tests = None
            self._look_at_ranks()
            self.updater.look(self.iter, self.group.once)

    def _look_at_ranks(self) -> None:
        """Behind tests, or without any at some displays; tells of ranks and cosines if asked to."""
        forced = forced_matrices(self.net, self.param)
        felt = FORCE in self.updater.feeling(self.iter)
        if felt:  # rank 0's: what goes by them must be the same everywhere, and weights differ by rounding
            self.ranks = self.group.once(lambda: forced_ranks(forced))
            self._watch.take(self.iter, self.ranks, self.updater.whole(FORCE, self.iter))
        if self.measure_force:
            ranks = self.ranks if felt else forced_ranks(forced)
            self.emit("force", iteration=self.iter, layers=coordination(forced, ranks))

    def test(self, index: int = 0) -> Score:
        """Scores test net `index` over its test_iter batches; emits and returns the means.

        A requested snapshot is written between batches; a requested stop abandons the test.
        """
        net = self.test_nets[index]
        self.emit("test_start", net=index, iteration=self.iter)
        inputs = functools.partial(self._fed, net)
        with contextlib.ExitStack() as stack:
            watch = stack.enter_context(Watch(net)) if self._debugs else None
            seen = (lambda *_: self._debug(watch)) if watch else (lambda *_: None)
            count, tally = self.param.test_iter[index], self.steps.tally(net)
            result = self.group.score(net, count, self._between_batches, seen, inputs, tally)
        if not self.stop_requested:
            loss = result.loss if self.param.test_compute_loss else None
            self.emit("test", net=index, iteration=self.iter, outputs=result.outputs, loss=loss)
        return result

    def _between_batches(self, index: int) -> bool:
        self.group.agree()
        if self.snapshot_requested:
            self.snapshot_requested = False
            self.snapshot()
        return not self.stop_requested

    def _display(self, outputs: Mapping[str, Tensor], rate: float) -> None:
        self.check_finite(self.iter)
        outputs = self.group.mean_outputs(outputs)
        self.emit(
            "train",
            iteration=self.iter,
            loss=float(self._losses.mean()),
            outputs=read_outputs(outputs, self.passes.loss_weights),
            rate=rate,
            **self._pace.lap(self.iter),
            interval=self.param.display,
        )

    @torch.no_grad()
    def _final_display(self) -> None:
        """One more forward for the last line; statistics, data position, randomness and loss window stay as saved."""
        if not self.param.display or self.iter % self.param.display:
            return
        self.check_finite()
        # Caffe's last forward is of the training net, and moves its statistics; ours must leave the snapshot's
        buffers = list(self.net.buffers())
        kept = [buffer.clone() for buffer in buffers]
        extra = self._snapshots.extra()
        loss, _ = self.passes.forward_loss(self._fed(self.net, 0))
        self._losses.add(self.group.mean(loss))
        self.emit("final", iteration=self.iter, loss=float(self._losses.mean()))
        self._snapshots.put_back(extra)
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)
