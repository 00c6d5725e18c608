"""The solver: trains, tests, saves and resumes a net in Caffe's order of steps."""

from __future__ import annotations

import functools
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forcereg import snapshot
from forcereg.data.feed import DEFAULT_BUDGET, FeedContext
from forcereg.device import choose_device, prepare
from forcereg.errors import ForceregError
from forcereg.net import Net
from forcereg.paths import find_learned_net, resolve
from forcereg.schema import SolverParameter
from forcereg.schema.text import to_text
from forcereg.scoring import Score, check_blobs, read_outputs, score
from forcereg.solver import policy
from forcereg.solver.diagnostics import coordination, force_ratios
from forcereg.solver.events import Event, Observer
from forcereg.solver.setup import complete_prefix, probe_prefix, problems, solver_file, solver_specs
from forcereg.solver.state import extra_state, pack, unpack, unpack_carried
from forcereg.solver.updater import Updater
from forcereg.solver.window import LossWindow
from forcereg.version import __version__

Inputs = Mapping[str, Tensor] | Callable[[int, int], Mapping[str, Tensor]] | None


class Solver:
    """Trains the net of a solver prototxt.

    `solver`: a path, prototxt text or SolverParameter. `device`: "auto", "cpu", "cuda" or "cuda:N";
    None follows solver_mode. `.net` and `.test_nets` share their weights; `.iter` counts iterations,
    `.lr` is the rate of the coming one; `observers` are called with `Event`s. `budget`: bytes of
    a decoded set, larger ones stream; `workers`: threads that decode, 0 for as many as cores; both for each data
    layer. `allow_python_layers`: run code that the net names in Python layers.
    Raises ForceregError for anything wrong in the solver or its nets, before the first iteration.
    """

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
    ) -> None:
        self.file = solver_file(solver)
        self.param = self.file.message
        self.observers = list(observers)
        self.keep = keep
        self._allow_python_layers = allow_python_layers
        for problem in problems(self.param, self.file.name):
            raise problem
        specs = solver_specs(self.file, level, stages)
        self.root = specs.root
        complete_prefix(self.file, self.root)
        self.device = choose_device(device, self.param, self._warn)
        prepare(self.device)
        seed = self.param.random_seed
        self.seed = int(seed) if seed >= 0 else int.from_bytes(os.urandom(4), "little")
        torch.manual_seed(self.seed)
        context = FeedContext(root=self.root, device=self.device, seed=self.seed, budget=budget, workers=workers)
        self.net = self._build(specs.train, context)
        self.test_nets = [self._build(spec, context) for spec in specs.tests]
        for test_net in self.test_nets:
            test_net.share_params(self.net)
        self._nets = {"train": self.net, **{f"test_{i}": net for i, net in enumerate(self.test_nets)}}
        self.iter = 0
        self.current_step = 0
        self.stop_requested = False
        self.snapshot_requested = False
        self.measure_force = False
        self.updater = Updater(self.net, self.param, self.device, self.file.name)
        self._losses = LossWindow(self.param.average_loss, self.device)
        self._clock = (0, time.perf_counter())
        self._inputs: Inputs = None
        self._before_tests: dict[str, Any] | None = None
        self.last_snapshot: Path | None = None
        self._warn_of_no_force()
        for path in ",".join(self.param.weights).split(","):
            if path.strip():
                self.load_weights(resolve(self.root, path.strip()))

    # -- construction

    def _build(self, spec: Any, context: FeedContext) -> Net:
        for text in spec.warnings:
            self._warn(text)
        generator = torch.Generator().manual_seed(self.seed)
        return Net(spec, context, None, generator, self._allow_python_layers).place(self.device)

    def _warn_of_no_force(self) -> None:
        if self.param.force_decay and not self.updater.regularizes:
            self._warn(
                f"force_decay is {self.param.force_decay:g} but no weight has force_mult: NOTHING IS REGULARIZED; "
                "add `param { force_mult: 1 }` to the layers whose filters should be coordinated"
            )

    def emit(self, kind: str, **fields: Any) -> None:
        """Tells the observers."""
        event = Event(kind, fields)
        for observer in self.observers:
            observer(event)

    def _warn(self, text: str) -> None:
        self.emit("warning", text=text)
        if not self.observers:
            warnings.warn(text, stacklevel=3)

    # -- weights and state

    @property
    def lr(self) -> float:
        """The learning rate at the current iteration and current_step."""
        return policy.rate(self.param, self.iter, policy.advance(self.param, self.iter, self.current_step))

    def load_weights(self, path: str | Path) -> snapshot.LoadReport:
        """Loads a model by layer name into the train net and, for layers of their own, the test nets.

        Raises ForceregError; the report is the train net's.
        """
        model = snapshot.read_model(path)
        report, *_ = [snapshot.load_into(net.params, model, net.shared) for net in (self.net, *self.test_nets)]
        self.emit("weights", file=str(path), report=report)
        return report

    def prefix(self) -> Path:
        """The snapshot prefix as a path."""
        if not self.param.snapshot_prefix:
            raise ForceregError(f'{self.file.name}: snapshot_prefix is missing; set for example snapshot_prefix: "net"')
        return resolve(self.root, self.param.snapshot_prefix)

    def snapshot(self) -> Path:
        """Writes model and state at this iteration; the model's path. Raises ForceregError if weights aren't finite."""
        self.check_finite()
        if not self.updater.all_finite():
            raise self._not_finite(f"weights are not finite at iteration {self.iter}; no snapshot is written")
        prefix = self.prefix()
        model, state = snapshot.model_path(prefix, self.iter), snapshot.state_path(prefix, self.iter)
        self.emit("snapshot", model=str(model), state=str(state), iteration=self.iter)
        diffs = pack(self.net, self.updater.last_update()) if self.param.snapshot_diff else None
        snapshot.write_model(model, pack(self.net), diffs, self._provenance())
        learned = str(snapshot.model_path(self.param.snapshot_prefix, self.iter))
        history = self.updater.saved_history()
        # among tests: as before them, because resuming runs them all again
        extra = self._before_tests or self._extra_state()
        snapshot.write_state(state, self.iter, self.current_step, learned, history, extra)
        self.last_snapshot = model
        if self.keep:
            snapshot.prune(prefix, self.keep, self.iter)
        return model

    def restore(self, path: str | Path) -> None:
        """Continues from a .solverstate.h5: weights, history, iteration and, if we wrote it, data and randomness."""
        state = snapshot.read_state(path)
        self.emit("restore", state=str(path), iteration=state.iteration)
        model = snapshot.read_model(find_learned_net(self.root, state.learned_net, Path(path)))
        self.updater.load_history(state.history, str(path))
        snapshot.load_into(self.net.params, model, self.net.shared)
        self._before_tests = None
        self.iter = state.iteration
        self.current_step = policy.catch_up(self.param, self.iter, state.current_step)
        self.last_snapshot = model.path
        if state.extra is None:
            self._warn(f"{path}: written by Caffe, it holds no data position; the data starts from the beginning")
            unpack_carried({}, self._nets, self._warn)
            self._losses.count = 0
        else:
            unpack(state.extra, self._nets, self._losses, self.device, self._warn)

    def _extra_state(self) -> dict[str, Any]:
        return extra_state(self._nets, self._losses, self.device)

    def _provenance(self) -> dict[str, str]:
        inputs = {name: list(self.net.shapes[name]) for name in self.net.inputs}
        return {
            "forcereg_net": self.net.spec.text,
            "forcereg_version": __version__,
            "forcereg_solver": to_text(self.param),
            "forcereg_seed": str(self.seed),
            "forcereg_input_shapes": json.dumps(inputs),
        }

    # -- finite losses

    def check_finite(self) -> None:
        """Raises ForceregError naming the first iteration with a non-finite loss, if any. Reads the device."""
        bad = self.updater.first_bad()
        if bad >= 0:
            raise self._not_finite(f"the loss is not finite at iteration {bad}; no update was made from there on")

    def _not_finite(self, what: str) -> ForceregError:
        last = f"the last good snapshot is {self.last_snapshot}" if self.last_snapshot else "there is no snapshot yet"
        return ForceregError(f"{self.file.name}: {what}; {last}; lower base_lr or set clip_gradients")

    # -- training

    def solve(self, inputs: Inputs = None) -> None:
        """Trains to max_iter with all tests and snapshots, and Caffe's end-of-run actions."""
        self.emit("start", net=self.net.spec.name, policy=self.param.lr_policy)
        if self.param.snapshot > 0 or self.param.snapshot_after_train:
            probe_prefix(self.prefix(), self.file.name)
            if self.param.snapshot_format != SolverParameter.SnapshotFormat.Value("HDF5"):
                self.emit(
                    "note", text="snapshot_format is BINARYPROTO: snapshots are written as HDF5 (.h5) all the same"
                )
        if inputs is None:
            for net in self._nets.values():
                check_blobs(net, self.device)
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
        self._final_display()
        if p.test_interval > 0 and self.iter % p.test_interval == 0:
            self.test_all()
        self.emit("done")

    def step(self, n: int, inputs: Inputs = None) -> Tensor:
        """Runs `n` iterations (with the tests, displays and snapshots due in them); the smoothed loss, 0-d.

        `inputs` feeds nets with Input layers: a dict of blobs, or a callable of (iteration, sub_iteration)
        (in a test: of the iteration and the batch).
        """
        p, self._inputs = self.param, inputs
        self._clock = (self.iter, time.perf_counter())
        for _ in range(n):
            if self._due_for_test():
                self.test_all()
                if self.stop_requested:
                    break
            display = p.display > 0 and self.iter % p.display == 0
            self._iterate(display)
            self.iter += 1
            if self.device.type == "cpu":
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
        p = self.param
        loss, outputs = self._accumulate()
        self._losses.add(loss)
        before, self.current_step = self.current_step, policy.advance(p, self.iter, self.current_step)
        rate = policy.rate(p, self.iter, self.current_step)
        if display:
            self._display(outputs, rate)
        if self.current_step != before and p.lr_policy == "multistep":
            self.emit("step", iteration=self.iter, current_step=self.current_step)
        if display:
            self.emit("rate", iteration=self.iter, rate=rate)
        measure = self._measure if self.measure_force and self._due_for_test() else None
        try:
            self.updater.apply(self.iter, rate, loss, measure)
        except RuntimeError as error:
            if "overflow" not in str(error):
                raise
            raise ForceregError(
                f"{self.file.name}: at iteration {self.iter} the learning rate {rate:g}, its product with lr_mult, or "
                "weight_decay * decay_mult is larger than a float32; use smaller values"
            ) from error

    def _accumulate(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward and backward of all sub-batches: the mean loss, the last sub-batch's outputs, gradients summed."""
        self.updater.clear_gradients()
        total: Tensor | None = None
        outputs: dict[str, Tensor] = {}
        for sub in range(self.param.iter_size):
            loss, outputs = self.net.forward_loss(self._fed(self.net, sub))
            if loss.requires_grad:
                loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return (total if self.param.iter_size == 1 else total / self.param.iter_size), outputs

    def _fed(self, net: Net, sub: int) -> dict[str, Tensor] | None:
        """The user's inputs for one batch of `net`, as float32 on the device; None if its data layers supply all."""
        if self._inputs is None:
            return None
        supplied = {top for feed in net.feeds.values() for top in feed.tops}
        if net is not self.net and supplied.issuperset(net.inputs):
            return None
        given = self._inputs(self.iter, sub) if callable(self._inputs) else self._inputs
        names = given if net is self.net else [name for name in net.inputs if name in given and name not in supplied]
        return {name: torch.as_tensor(given[name], dtype=torch.float32, device=self.device) for name in names}

    def _measure(self, before: list[Tensor], after: list[Tensor]) -> None:
        self.emit("force", iteration=self.iter, layers=force_ratios(self.updater.forced, before, after))

    # -- tests and displays

    def test_all(self) -> None:
        """Runs every test net over its test_iter batches; emits the mean of every output element."""
        self.check_finite()
        started = time.perf_counter()
        self._before_tests = self._extra_state()
        for index in range(len(self.test_nets)):
            self.test(index)
            if self.stop_requested:
                break
        else:
            self._before_tests = None
            if self.measure_force:
                self.emit("force", iteration=self.iter, layers=coordination(self.updater.forced))
        first, clock = self._clock  # tests don't count in the pace of training
        self._clock = (first, clock + time.perf_counter() - started)

    def test(self, index: int = 0) -> Score:
        """Scores test net `index` over its test_iter batches; emits and returns the means.

        A requested snapshot is written between batches; a requested stop abandons the test.
        """
        net = self.test_nets[index]
        self.emit("test_start", net=index, iteration=self.iter)
        fed = functools.partial(self._fed, net)
        result = score(net, self.param.test_iter[index], before=self._between_batches, inputs=fed)
        if not self.stop_requested:
            loss = result.loss if self.param.test_compute_loss else None
            self.emit("test", net=index, iteration=self.iter, outputs=result.outputs, loss=loss)
        return result

    def _between_batches(self, index: int) -> bool:
        if self.snapshot_requested:
            self.snapshot_requested = False
            self.snapshot()
        return not self.stop_requested

    def _display(self, outputs: Mapping[str, Tensor], rate: float) -> None:
        self.check_finite()
        first, clock = self._clock
        now = time.perf_counter()
        seconds = now - clock
        self.emit(
            "train",
            iteration=self.iter,
            loss=float(self._losses.mean()),
            outputs=read_outputs(outputs, self.net.loss_weights),
            rate=rate,
            speed=(self.iter - first) / seconds if seconds > 0 else 0.0,
            seconds=seconds,
            interval=self.param.display,
        )
        self._clock = (self.iter, now)

    @torch.no_grad()
    def _final_display(self) -> None:
        """One more forward for the last line; statistics, data position, randomness and loss window stay as saved."""
        if not self.param.display or self.iter % self.param.display:
            return
        self.check_finite()
        buffers = list(self.net.buffers())
        kept = [buffer.clone() for buffer in buffers]
        extra = self._extra_state()
        loss, _ = self.net.forward_loss(self._fed(self.net, 0))
        self._losses.add(loss)
        self.emit("final", iteration=self.iter, loss=float(self._losses.mean()))
        unpack(extra, self._nets, self._losses, self.device, self._warn)
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)
