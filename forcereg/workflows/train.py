"""forcereg.train: a solver trained to its end, from wherever it is to start."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from forcereg.errors import UsageError, printable
from forcereg.solver.asked import (
    AVERAGING,
    CHOICES,
    REPORT,
    TEACHING,
    check_choice,
    check_clipping,
    check_find_batch,
    check_gradients,
    check_start,
    check_teacher,
)
from forcereg.solver.goal import Aims
from forcereg.solver.hooks import Callback, attach, callback_of, functions
from forcereg.solver.rollback import OnNan
from forcereg.solver.start import Start, determinism, read, telling_errors
from forcereg.system.arguments import checked
from forcereg.system.paths import StrPath, listed

if TYPE_CHECKING:
    from forcereg.schema.text import SolverFile
    from forcereg.solver.distributed import Group
    from forcereg.solver.gradients import Settings
    from forcereg.solver.loop import Solver
    from forcereg.system.events import Observer


@checked
def train(
    solver: Any,
    *,
    weights: StrPath | Sequence[StrPath] | None = None,
    snapshot: StrPath | None = None,
    resume: bool = False,
    masks: str | None = None,
    device: str | Sequence[str] | None = None,
    global_batch: bool = False,
    level: int | None = None,
    stage: str | Sequence[str] = (),
    set: Mapping[str, Any] | Sequence[str] = (),
    max_iter: int | None = None,
    seed: int | None = None,
    warmup: int | None = None,
    ema: float | None = None,
    rank_clipping: float | None = None,
    clip_until: int | None = None,
    teacher: StrPath | Any | None = None,
    teacher_model: StrPath | None = None,
    temperature: float = 4.0,
    teacher_weight: float = 0.5,
    keep: int | None = None,
    keep_best: str | None = None,
    patience: int | None = None,
    stop_when: str | None = None,
    on_nan: str = "stop",
    data_budget: int = 2048,
    workers: int = 0,
    allow_python_layers: bool = False,
    amp: str | None = None,
    deterministic: bool = False,
    tf32: bool = False,
    cuda_graph: bool = True,
    find_batch: bool = False,
    gradients: str = "dense",
    clip_sigma: float = 2.5,
    dense_layers: str | Sequence[str] = (),
    min_size: int = 1,
    powersgd_rank: int = 1,
    powersgd_start: int = 1000,
    bandwidth: float | None = None,
    measure_force: bool = False,
    sigint_effect: str | None = None,
    sighup_effect: str | None = None,
    callback: str | Callback | Sequence[str | Callback] = (),
    observer: Observer | None = None,
) -> Solver:
    """Trains the net of a solver to max_iter, with all of its tests and snapshots, as `forcereg train` does.

    `solver`: the path of a prototxt, its text (of several lines) or a SolverParameter. It starts from the models
    `weights`, by layer name (none given: those that the solver names), from the solver state `snapshot`, or with
    `resume` from the newest whole snapshot of its prefix, if there is one. `masks`: where those of frozen weights come
    from then, "stored" (or None) from the state, "rebuild" from the weights that are zero. `set`: solver fields in
    place of what the file says, {"base_lr": 0.001, "stepvalue": [5000, 7000]} or as on the command line; `max_iter`,
    `seed`, `warmup` (warmup_iter) and `ema` (ema_decay: averaged weights, tested and saved beside) are four of them.
    `level`, `stage`: of the training net's state.

    `device`: "auto", "cpu", "cuda", "cuda:N", None for the solver's solver_mode. `amp`: "bf16" or "fp16" for mixed
    precision. `deterministic`: also on a GPU, until this call ends. `tf32`: in its float32 products. `cuda_graph`:
    whole iterations at once there. `rank_clipping`: the share of its squared norm, above 0, at most 1, that each chain
    of a decomposed net keeps when its rank is reduced at each test interval, before iteration `clip_until`. `keep`:
    only so many snapshots. `find_batch`: trains nothing, but finds and tells the largest batch with which iterations
    fit the GPU's memory; the solver has this batch, and where it starts from.

    `keep_best`: an output of the test net by which the best net so far is kept as `<prefix>_best`, as in "accuracy",
    "loss", "top5#1:max" (of test net 1, of which more is better). `patience`: after so many tests without a better one
    (of accuracy, if `keep_best` names no other), or as soon as `stop_when` holds ("accuracy>=0.99"), the run ends with
    a snapshot. `on_nan`: "stop", or "rollback:N:FACTOR": from a loss that isn't finite it goes back to the last
    snapshot with the rate multiplied by FACTOR (0.5), at most N (3) times.

    `teacher`: a snapshot, or a net in memory, that teaches the net as well: the part `teacher_weight` (above 0, at most
    1) of each SoftmaxWithLoss goes to how far the scores are from its scores for the same batch, both softened by
    `temperature` (0.001 to 100); see `forcereg.solver.distill`. `teacher_model`: its net, where the snapshot lacks it.

    `data_budget`: MiB that a decoded data set may take; `workers`: threads that decode for each data layer, 0 for as
    many as cores. `allow_python_layers`: run code that the nets name.

    `observer` is called with every `Event` of the run; one that is a context manager is open meanwhile. `callback`: as
    well called, with each event and the solver; one or several functions, or "module:function", whose code runs.
    `measure_force`: tell also the ratio of force and gradient, which costs time. `sigint_effect`, `sighup_effect`:
    "stop" (after a snapshot), "snapshot" or "none"; while both are None, signals do what they did before. The solver
    of a run that was stopped has `stop_requested`.

    In a script under torchrun this process is one of those that train together, each on its part of the data
    (`global_batch`: of the net's batch); `device` may name one for each. There is no keyword to start processes: what
    is returned and who observes are of this one. They average gradients as they are, "dense", or by another scheme,
    `gradients`: "bf16", "fp16", "powersgd" (of rank `powersgd_rank`, from iteration `powersgd_start` on), "ternary"
    (clipped at `clip_sigma` standard deviations; whole those of `dense_layers`, "last" for the last one that learns,
    and of fewer values than `min_size`). "report" measures all of them instead of training, for a link of `bandwidth`
    bits a second, tells a `gradients` event, and returns the solver as it began.

    Returns the solver as it ended: `.net`, `.iter`, `.last_snapshot`. Raises ForceregError for anything wrong in
    solver, nets, data or weights, and for a loss that isn't finite.

    >>> solver = forcereg.train("solver.prototxt", max_iter=5, set={"base_lr": 0.01, "snapshot_prefix": "short"})
    >>> solver.iter, solver.net.params["conv1"][0].shape, solver.last_snapshot.name
    (5, torch.Size([8, 1, 3, 3]), 'short_iter_5.caffemodel.h5')
    """
    # before any other name is bound: the fields are the keywords
    return Training(**locals()).run()


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training that was asked for, and its steps in order; the fields are the keywords of `train`."""

    solver: Any
    weights: StrPath | Sequence[StrPath] | None
    snapshot: StrPath | None
    resume: bool
    masks: str | None
    device: str | Sequence[str] | None
    global_batch: bool
    level: int | None
    stage: str | Sequence[str]
    set: Mapping[str, Any] | Sequence[str]
    max_iter: int | None
    seed: int | None
    warmup: int | None
    ema: float | None
    rank_clipping: float | None
    clip_until: int | None
    teacher: StrPath | Any | None
    teacher_model: StrPath | None
    temperature: float
    teacher_weight: float
    keep: int | None
    keep_best: str | None
    patience: int | None
    stop_when: str | None
    on_nan: str
    data_budget: int
    workers: int
    allow_python_layers: bool
    amp: str | None
    deterministic: bool
    tf32: bool
    cuda_graph: bool
    find_batch: bool
    gradients: str
    clip_sigma: float
    dense_layers: str | Sequence[str]
    min_size: int
    powersgd_rank: int
    powersgd_start: int
    bandwidth: float | None
    measure_force: bool
    sigint_effect: str | None
    sighup_effect: str | None
    callback: str | Callback | Sequence[str | Callback]
    observer: Observer | None

    def run(self) -> Solver:
        """Reads, joins the others, builds, starts somewhere and trains. Raises ForceregError."""
        self.check()
        with self.signals_held(), determinism(self.deterministic):
            file = self.read()
            group = self.join(file)
            with group.together(), self.observers(group) as observers:
                if self.find_batch:
                    file = self.largest_batch(file, group, observers)
                # before the solver is built, which loads the models that its file still names
                start = Start.of(self, file, group)
                solver = self.build(file, group, observers)
                with telling_errors(solver), self.signals_handled(solver):
                    self.begin(solver, start)
                    self.work(solver)
        return solver

    # -- what may be done otherwise: see workflows.finetune

    def check(self) -> None:
        """Raises UsageError for keywords that exclude each other."""
        check_start(self.snapshot, self.resume, self.weights)
        check_find_batch(self.find_batch, self.snapshot, self.resume, self.gradients)
        check_clipping(self.rank_clipping, self.clip_until)
        check_teacher({name: getattr(self, name) for name in TEACHING})
        Aims.of(self.keep_best, self.patience, self.stop_when)
        check_gradients({name: getattr(self, name) for name in (*AVERAGING, "gradients", "bandwidth")})
        OnNan.of(self.on_nan)
        for one in functions(self.callback):
            callback_of(one)  # which imports it
        for name in CHOICES:
            check_choice(name, getattr(self, name))
        signals = next((name for name in ("sigint_effect", "sighup_effect") if getattr(self, name) is not None), None)
        if signals and threading.current_thread() is not threading.main_thread():
            raise UsageError(f"{signals} is given in a thread; signals come to the main one alone, so leave it out")

    def arranged(self, file: SolverFile) -> SolverFile:
        """The solver, changed once its settings are."""
        return file

    def remark(self, solver: Solver) -> None:
        """Tells what there is to say of the solver made: that a force acts on chains, unless ranks are to sink."""
        from forcereg.solver.chains import force_on_chains

        if solver.clipping is None and (text := force_on_chains(solver.net, solver.param)):
            solver.warn(text)

    def judge(self, solver: Solver, fresh: Collection[str]) -> None:
        """Raises ForceregError if the layers `fresh`, which no model has weights for, need some."""

    # -- steps

    def read(self) -> SolverFile:
        """The solver with its settings."""
        from forcereg.schema.settings import settings_of, with_settings

        own = {"max_iter": self.max_iter, "random_seed": self.seed, "warmup_iter": self.warmup, "ema_decay": self.ema}
        named = settings_of({name: value for name, value in own.items() if value is not None})
        return self.arranged(with_settings(read(self.solver), [*settings_of(self.set), *named]))

    def join(self, file: SolverFile) -> Group:
        """This process among those that train together."""
        from forcereg.solver.distributed import join

        devices = [None] if self.device is None else listed(self.device)
        return join(devices, file.message, self.global_batch)

    def build(self, file: SolverFile, group: Group, observers: Sequence[Observer]) -> Solver:
        """The solver, its nets and data."""
        from forcereg.schema.rules import stage_names
        from forcereg.solver.gradients.choose import average_by
        from forcereg.solver.loop import Solver
        from forcereg.solver.teacher import learn_from
        from forcereg.system.device import prepare

        solver = Solver(
            file,
            device=group.device,
            level=self.level,
            stages=stage_names(self.stage),
            budget=self.data_budget << 20,
            workers=self.workers,
            keep=self.keep,
            observers=observers,
            allow_python_layers=self.allow_python_layers,
            amp=self.amp,
            group=group,
            cuda_graph=self.cuda_graph,
        )
        if self.deterministic or self.tf32:
            # again: the solver has made it ready by the defaults
            prepare(solver.device, self.tf32, self.deterministic)
        if self.rank_clipping is not None:
            solver.clip_ranks(self.rank_clipping, self.clip_until)
        if self.teacher is not None:
            how = (self.teacher_model, float(self.temperature), float(self.teacher_weight), self.allow_python_layers)
            learn_from(solver, self.teacher, *how)
        for one in functions(self.callback):
            attach(solver, one)
        solver.on_nan = OnNan.of(self.on_nan)
        solver.judge_by(self.keep_best, self.patience, self.stop_when)
        if self.gradients != REPORT:
            average_by(solver, self.gradients, self.averaging())
        self.remark(solver)
        solver.measure_force = self.measure_force
        return solver

    def largest_batch(self, file: SolverFile, group: Group, observers: Sequence[Observer]) -> SolverFile:
        """The solver with the largest batch that fits the GPU, which is told."""
        from forcereg.schema.rules import stage_names
        from forcereg.solver.find_batch import Batched, find
        from forcereg.solver.run import Teller
        from forcereg.system.device import choose_device

        if group.size > 1:
            raise UsageError("several processes train together; look for the largest batch with one of their GPUs")
        tell, trial = Teller(observers), replace(self, keep_best=None, patience=None, stop_when=None, callback=())
        device = choose_device(group.device, file.message, tell.warn)
        batched = Batched.of(file, self.level, stage_names(self.stage))
        return find(batched, lambda one, heard: trial.build(one, group, heard), device, tell)

    def begin(self, solver: Solver, start: Start) -> None:
        """Loads the newest snapshot, the snapshot or the models that are asked for."""
        from forcereg.solver.resume import resume_latest
        from forcereg.system.paths import resolve

        # without a prefix there is no snapshot to look for
        wanted = self.resume or (start.again and solver.param.snapshot_prefix)
        masks = self.masks or "stored"
        resumed = bool(wanted and resume_latest(solver, masks))
        if self.snapshot:
            if not resumed:  # torchrun has started this one again, behind newer snapshots
                solver.restore(os.fspath(self.snapshot), masks)
            return
        if start.models and not (start.loaded or resumed):
            # the solver's own are named from where it is, those asked for from here
            paths: list[Any] = (
                start.models if self.weights is not None else [resolve(solver.root, p) for p in start.models]
            )
            fresh = [{*solver.load_weights(path).fresh} for path in paths]
            # what one model lacks another may bring
            self.judge(solver, set.intersection(*fresh))
        solver.param.weights[:] = map(printable, start.models)  # what snapshots tell of where they come from

    def averaging(self) -> Settings:
        """What is said of schemes for gradients."""
        from forcereg.solver.gradients import Settings

        named = {name: getattr(self, name) for name in AVERAGING}
        return Settings(**{**named, "dense_layers": tuple(listed(self.dense_layers))})

    def work(self, solver: Solver) -> None:
        """Trains, unless a report or a batch is all that is asked for."""
        if self.gradients == REPORT:
            from forcereg.solver.gradients.report import report

            report(solver, self.averaging(), self.bandwidth)
        elif not self.find_batch:
            solver.solve()

    # -- around them

    def signals_held(self) -> contextlib.AbstractContextManager[None]:
        """Holds signals back until the run can heed them: they must not end one that starts."""
        from forcereg.solver.launch import effects, held

        if self.sigint_effect is self.sighup_effect is None:
            return contextlib.nullcontext()
        meant = effects(self.sigint_effect or "stop", self.sighup_effect or "snapshot")
        # one that stops may end the process: there is nothing to save yet
        return held([number for number, effect in meant.items() if effect != "stop"])

    def signals_handled(self, solver: Solver) -> contextlib.AbstractContextManager[None]:
        """Lets signals stop the solver, or save."""
        from forcereg.solver.signals import handled

        if self.sigint_effect is self.sighup_effect is None:
            return contextlib.nullcontext()
        return handled(solver, self.sigint_effect or "stop", self.sighup_effect or "snapshot")

    @contextlib.contextmanager
    def observers(self, group: Group) -> Iterator[list[Observer]]:
        """Who is told of the run: of several processes rank 0's observer, in no other anybody."""
        with contextlib.ExitStack() as stack:
            if group.rank:
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")  # rank 0 says the same
                yield []
                return
            if isinstance(self.observer, contextlib.AbstractContextManager):
                stack.enter_context(self.observer)
            yield [] if self.observer is None else [self.observer]
