"""The solver: trains, tests, saves and resumes a net in Caffe's order of steps."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from forcereg.net.module import Net
from forcereg.net.scoring import Output, Score, read_outputs
from forcereg.schema.settings import plain
from forcereg.solver import policy
from forcereg.solver.average import ENDING, leaves_traces
from forcereg.solver.base import SolverBase
from forcereg.solver.debug import Watch
from forcereg.solver.diagnostics import coordination, forced_ranks
from forcereg.solver.passes import Inputs, fed
from forcereg.solver.ready import check_ready
from forcereg.solver.regularizers.force import FORCE, forced_matrices
from forcereg.solver.sparsity.advice import notes
from forcereg.solver.state import rewound
from forcereg.solver.trouble import NotFinite


class Solver(SolverBase):
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

    # -- training

    def solve(self, inputs: Inputs = None) -> None:
        """Trains to max_iter with all tests and snapshots, and Caffe's end-of-run actions."""
        self.emit("start", net=self.net.spec.name, policy=self.param.lr_policy, settings=plain(self.param))
        if self.passes.precision.kind:
            self.emit("note", text=self.passes.precision.describe())
        for text in notes(self.net, self.param):
            self.emit("note", text=text)
        for index, net in enumerate(self.test_nets if self.steps.average is not None else ()):
            if leaves_traces(net):
                text = f"test net #{index} is not tested with averaged weights: it writes a file or runs code"
                self.emit("note", text=text)
        # before the first iteration: what would end the run at its first test or snapshot ends it now
        saved = self.judge is not None or self.on_nan is not None
        check_ready(self._run, self._nets, len(self.updater.history), self.iter, inputs is not None, saved)
        start = self.iter
        if self.on_nan is not None and self.last_snapshot is None:
            self.snapshot()  # or there would be nothing to go back to
        while True:
            try:
                self._train(start, inputs)
                break
            except NotFinite as error:
                self._go_back(error)
        if self.stop_requested:
            self.emit("stopped")
            return
        # Caffe's order at the end: snapshot, one more forward for the log, then the test
        p = self.param
        if not self.enough:
            self._final_display()
            if p.test_interval > 0 and self.iter % p.test_interval == 0:
                self.test_all()
        if self.clipping is not None:
            self.clipping.finish(self.iter)
        if self.pruning is not None:
            self.pruning.settle(self.iter)
        self.emit("done")

    def _train(self, start: int, inputs: Inputs) -> None:
        """All iterations that are left of a run from `start` on, and its last snapshot."""
        p = self.param
        self.step(max(0, p.max_iter - self.iter), inputs)
        self.check_finite()
        early = self.stop_requested or self.enough
        wanted = p.snapshot_after_train or early
        # a stop in the tests before iteration 0 comes when the schedule has saved nothing yet
        saved = p.snapshot > 0 and self.iter % p.snapshot == 0 and (self.iter > 0 or not early)
        if wanted and not saved and (self.iter > start or start == 0):
            self.snapshot()

    def step(self, n: int, inputs: Inputs = None) -> Tensor:
        """Runs `n` iterations (with the tests, displays and snapshots due in them); the smoothed loss, 0-d.

        `inputs` feeds nets with Input layers: a dict of blobs, or a callable of (iteration, sub_iteration)
        (in a test: of the iteration and the batch).
        """
        p, self._inputs, self.enough = self.param, inputs, False
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
                if not p.display:
                    self.check_finite()  # which waits for the device
                    self._pace.lap(self.iter)
                with self._pace.paused(test=True):
                    self.test_all()
                if self.stop_requested or self.enough:
                    break
                if (left := self._left()) is not None:
                    self.emit("left", iteration=self.iter, max_iter=p.max_iter, seconds=left)
            self._before_tests = None  # tests that a program has run by itself may have left it
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

    def _left(self) -> float | None:
        """Seconds to max_iter; None while nothing is known."""
        p = self.param
        tests = p.max_iter // p.test_interval - self.iter // p.test_interval if p.test_interval > 0 else 0
        return self._pace.left(p.max_iter - self.iter, tests) if self.iter <= p.max_iter else None

    def _due_for_test(self) -> bool:
        p = self.param
        due = p.test_interval > 0 and self.iter % p.test_interval == 0
        return due and bool(self.test_nets) and (self.iter > 0 or p.test_initialization)

    def _iterate(self, display: bool) -> None:
        p, before = self.param, self.current_step
        for text in self.updater.news(self.iter):
            self.emit("note", text=text)
        after = policy.advance(p, self.iter, before)
        rate = self._rate(after)
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
        """Runs every test net over its test_iter batches; emits the mean of every output element, and judges them.

        With `ema_decay` by averaged weights as well: outputs whose names end in _ema.
        """
        self.check_finite()
        # a snapshot among the tests is one from before them (see snapshot)
        self._before_tests = self._snapshots.extra()
        # the ranks' BatchNorm statistics differ; rank 0's are saved, so they are tested, too
        self.group.spread(self.net, learned=False)
        scores = list[Score]()
        for index in range(len(self.test_nets)):
            scores.append(self.test(index))
            if self.stop_requested:
                return
        # before what may change the run: who goes on from the snapshots written here runs these tests again
        self._decide(scores)
        if not self.enough:
            self._before_tests = None
            self._look_at_ranks()
            self.updater.look(self.iter, self.group.once)

    def _decide(self, scores: list[Score]) -> None:
        """What the tests' scores decide, all ranks alike: to keep the net as the best so far, to end the run."""
        if self.judge is None:
            return
        verdict = self.judge.take(self.iter, self.group.share(scores))
        if verdict.best is not None:
            path = self._save(best=True) if self.judge.aims.best else None
            self.emit("best", iteration=self.iter, model=None if path is None else str(path), **verdict.best)
        # at the end of the run it ends as it would have
        if verdict.stop and self.iter < self.param.max_iter:
            self.enough = True
            self.emit("enough", iteration=self.iter, reason=verdict.reason, text=verdict.stop)

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
            averaged = self._test_averaged(index)
            count, tally = self.param.test_iter[index], self.steps.tally(net)
            result = self.group.score(net, count, self._between_batches, seen, inputs, tally)
            result = replace(result, outputs=[*result.outputs, *averaged])
        if not self.stop_requested:
            loss = result.loss if self.param.test_compute_loss else None
            self.emit("test", net=index, iteration=self.iter, outputs=result.outputs, loss=loss)
        return result

    def _test_averaged(self, index: int) -> list[Output]:
        """What test net `index` gives with averaged weights, by names that end in _ema; data stays where it is."""
        net = self.test_nets[index]
        if self.steps.average is None or leaves_traces(net):
            return []
        inputs = functools.partial(self._fed, net)
        with self.averaged(), rewound(net, self.device):
            count, tally = self.param.test_iter[index], self.steps.tally(net)
            result = self.group.score(net, count, self._unless_stopped, lambda *_: None, inputs, tally)
        return [replace(one, name=one.name + ENDING) for one in result.outputs]

    def _unless_stopped(self, index: int) -> bool:
        self.group.agree()
        return not self.stop_requested

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
            left=self._left(),
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
