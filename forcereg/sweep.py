"""A grid of trainings, each cut to low rank and fine-tuned: which setting gives the best net at which cost?"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from forcereg import sidefiles, snapshot
from forcereg.errors import ForceregError, UsageError, storable
from forcereg.evaluate import Evaluator, check_share, make_folder, train, weights_of
from forcereg.files import append_text, write_text
from forcereg.grid import Setting
from forcereg.lowrank.decompose import Decomposition, Totals, decompose
from forcereg.lowrank.ranks import by_error
from forcereg.schema.settings import with_settings
from forcereg.schema.text import SolverFile, parse_net, to_text
from forcereg.solver.events import Event, Observer
from forcereg.solver.log import GlogWriter
from forcereg.solver.loop import Solver
from forcereg.solver.setup import problems, solver_root, tested_nets, trained_net
from forcereg.summary import summarize

RUN, RESULT, CUT = "run.json", "result.json", "net_lowrank"


@dataclass(frozen=True)
class Plan:
    """What every run of a sweep shares: the solver, models to start from, the cut, and how long to fine-tune.

    `options` are `Solver`'s.
    """

    solver: SolverFile
    weights: Sequence[Path]
    error: float
    finetune: int
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a run came to, None where it didn't get. Accuracies are None for a net without one.

    All scores are of the same test records. `ranks` of the decomposed layers, in order. `macs` are multiply-accumulates
    for one item: of the first test net, whole and cut at the sweep's error. `seconds` since the run was last begun.
    `failed`: why training or fine-tuning ended early.
    """

    fields: dict[str, str]
    seed: int
    accuracy: float | None = None
    loss: float | None = None
    ranks: list[int] = field(default_factory=list)
    full_ranks: list[int] = field(default_factory=list)
    macs: int | None = None
    macs_cut: int | None = None
    accuracy_cut: float | None = None
    accuracy_tuned: float | None = None
    seconds: float = 0.0
    failed: str = ""

    def check(self) -> None:
        """Raises ValueError for what no run comes to."""
        for accuracy in (self.accuracy, self.accuracy_cut, self.accuracy_tuned):
            check_share(accuracy)
        counts = [*self.full_ranks, *(macs for macs in (self.macs, self.macs_cut) if macs is not None)]
        ranks = list(itertools.zip_longest(self.ranks, self.full_ranks, fillvalue=0))
        if any(not 0 < rank <= full for rank, full in ranks) or min(counts, default=0) < 0:
            raise ValueError("ranks or MACs that can't be")
        if self.failed or not (self.ranks and 0 <= self.seconds < math.inf):
            raise ValueError("a run that hasn't come to its end")


@dataclass(frozen=True)
class Run:
    """What decides how a run trains: the solver's text, and digests of its nets and of models to start from."""

    solver: str
    net: list[str]
    weights: list[str]


@dataclass(frozen=True)
class Asked:
    """The sweep's options that a result depends on, beside its run."""

    error: float
    finetune: int


@dataclass(frozen=True)
class Kept:
    """A result as its file has it."""

    asked: Asked
    result: Result


def sweep(plan: Plan, settings: Sequence[Setting], out: Path, tell: Callable[[str], None]) -> Iterator[Result]:
    """Runs what has not been run yet, one folder each below `out`, and yields every result in order.

    All settings are looked at before the first one runs. A run that was interrupted goes on from its newest snapshot;
    one that failed is told, yielded and tried again next time. Raises ForceregError; KeyboardInterrupt once a run that
    was told to stop has saved itself.
    """
    runs = _runs(plan, settings, out)
    warn = _Warnings(tell)
    asked = Asked(plan.error, plan.finetune)
    for number, (setting, run) in enumerate(zip(settings, runs, strict=True), 1):
        folder = out / setting.folder
        known = sidefiles.known(folder / RESULT, Kept)
        if known is not None and known.asked == asked and _is_of(known.result, setting):
            tell(f"{number} of {len(settings)}: {setting.folder}: done before")
            yield known.result
            continue
        tell(f"{number} of {len(settings)}: {setting.folder}")
        started = time.perf_counter()
        make_folder(folder)
        write_text(folder / RUN, json.dumps(asdict(run), indent=1) + "\n")
        result = _tuned(plan, *_trained(plan, setting, folder, warn), folder, warn)
        result = replace(result, seconds=round(time.perf_counter() - started, 1))
        if result.failed:
            tell(f"failed: {result.failed}")
        else:
            write_text(folder / RESULT, json.dumps(asdict(Kept(asked, result)), indent=1) + "\n")
        yield result


def _runs(plan: Plan, settings: Sequence[Setting], out: Path) -> list[Run]:
    """What decides how each run trains. Raises ForceregError if a folder holds a run of something else."""
    weights = []
    for path in plan.weights:
        snapshot.read_model(path)
        with open(path, "rb") as file:
            weights.append(hashlib.file_digest(file, "sha256").hexdigest())
    runs = []
    for setting in settings:
        solver = _file(plan, setting)
        for problem in problems(solver.message, solver.name):
            raise problem
        root = solver_root(solver)
        own = trained_net(solver, root)
        tests = tested_nets(solver, root, own.file)
        if not tests:
            raise ForceregError(
                f"{solver.name}: has no test net, so a sweep can't compare; set test_iter and test_interval"
            )
        nets = [hashlib.sha256(net.file.text.encode()).hexdigest() for net in (own, *tests)]
        runs.append(Run(to_text(solver.message), nets, weights))
        _check_same(out / setting.folder, runs[-1])
    return runs


def _is_of(result: Result, setting: Setting) -> bool:
    return (result.fields, result.seed) == (setting.fields, setting.seed)


def _check_same(folder: Path, run: Run) -> None:
    try:
        known = sidefiles.of_form(sidefiles.read_json(folder / RUN), Run)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ForceregError(
            f"{folder / RUN}: can't be read as what a sweep wrote ({why}); give another --out, or delete {folder} to "
            "run it anew"
        ) from None
    if known == run:
        return
    what = next(one.name for one in fields(Run) if getattr(known, one.name) != getattr(run, one.name))
    there, here = (one.solver.splitlines() for one in (known, run))
    lines = [", ".join(sorted(set(a) - set(b))[:3]) or "not set" for a, b in ((there, here), (here, there))]
    change = f" ({lines[0]}; now {lines[1]})" if what == "solver" else ""
    raise ForceregError(
        f"{folder}: holds a run with other {what}{change}; give another --out, or delete it to run it anew"
    )


class _Warnings:
    """An observer that tells each warning once, layers that weights leave fresh among them."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell, self.known = tell, set[str]()

    def __call__(self, event: Event) -> None:
        if event.kind == "warning":
            self.once(event.text)
        elif event.kind == "weights" and event.report.fresh:
            self.once(f"{event.file}: {event.report.lines()[-1]}")

    def once(self, text: str) -> None:
        """Unless it was told before."""
        if text not in self.known:
            self.known.add(text)
            self.tell(f"warning: {text}")


def _file(plan: Plan, setting: Setting) -> SolverFile:
    """The sweep's solver with this run's settings."""
    if plan.weights and "weights" in setting.fields:
        raise UsageError("--weights and --set weights are both given; use one")
    file = with_settings(plan.solver, [f"{name}={value}" for name, value in setting.fields.items()])
    file.message.random_seed, file.message.snapshot_after_train = setting.seed, True
    file.message.ClearField("snapshot_prefix")
    if plan.weights:
        file.message.ClearField("weights")
    return file


def _trained(plan: Plan, setting: Setting, folder: Path, warn: Observer) -> tuple[Result, Solver]:
    """Trains and scores. Raises ForceregError for what is wrong from the start."""
    file = _file(plan, setting)
    file.message.snapshot_prefix = storable((folder / "net").resolve())
    with _log(folder / "train.log") as log:
        solver = Solver(file, observers=[log, warn], **plan.options)
        for path in plan.weights:
            solver.load_weights(path)
        result = Result(setting.fields, setting.seed, macs=summarize(solver.test_nets[0]).macs)
        try:
            train(solver)
        except ForceregError as error:
            return replace(result, failed=str(error)), solver
    return result, solver


def _tuned(plan: Plan, result: Result, trained: Solver, folder: Path, warn: _Warnings) -> Result:
    """Scores the trained net, cuts it, scores it again, fine-tunes it and scores that."""
    if result.failed:
        return result
    evaluator = Evaluator(trained.file, tell=warn.once, **plan.options)
    tested = trained.test_nets[0].spec
    whole = evaluator.score(parse_net(tested.text, tested.filename), weights_of(trained))
    cut, test_cut = _cut(trained, plan.error, folder)
    bare = evaluator.score(test_cut.net, test_cut.weights)
    result = replace(
        result,
        accuracy=whole.accuracy,
        loss=whole.loss,
        ranks=[layer.rank for layer in cut.layers],
        full_ranks=[layer.full_rank for layer in cut.layers],
        macs_cut=_macs(result.macs, test_cut.totals),
        accuracy_cut=bare.accuracy,
    )
    if not plan.finetune:
        return result
    test = None if test_cut is cut else test_cut.net
    try:
        score, _ = evaluator.finetune(cut.net, test_cut.weights, plan.finetune, folder, test)
    except ForceregError as error:
        return replace(result, failed=f"fine-tuning: {error}")
    return replace(result, accuracy_tuned=score.accuracy)


def _macs(whole: int | None, cut: Totals) -> int | None:
    """Of the cut net."""
    if whole is None or cut.macs_before is None or cut.macs_after is None:
        return None
    return whole - cut.macs_before + cut.macs_after


@contextlib.contextmanager
def _log(path: Path) -> Iterator[Observer]:
    with append_text(path) as stream:
        yield GlogWriter(stream)


def _cut(solver: Solver, error: float, folder: Path) -> tuple[Decomposition, Decomposition]:
    """The trained net decomposed, and the first test net, if it is another file; both are CUT.* in `folder`."""
    model = snapshot.read_model(solver.last_snapshot or solver.snapshot())
    nets = {net.spec.text: net for net in (solver.net, solver.test_nets[0])}
    paths = [folder / f"{CUT}{ending}.prototxt" for ending, _ in zip(("", "_test"), nets, strict=False)]
    files = [(parse_net(net.spec.text, net.spec.filename), net.shapes) for net in nets.values()]
    cuts = [decompose(file, model.layers, by_error(error), shapes) for file, shapes in files]
    if not cuts[0].layers:
        name = solver.net.spec.filename
        raise ForceregError(f"{name}: has no convolution that can be decomposed, so there is nothing to sweep for")
    for path, cut in zip(paths, cuts, strict=True):
        write_text(path, to_text(cut.net))
    attrs = {**model.attrs, "forcereg_net": to_text(cuts[0].net)}
    snapshot.write_model(folder / f"{CUT}.caffemodel.h5", cuts[0].weights, attrs=attrs)
    return cuts[0], cuts[-1]
