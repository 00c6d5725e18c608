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

from forcereg import snapshot
from forcereg.errors import ForceregError, UsageError, storable
from forcereg.lowrank.decompose import Prepared, Selection, prepare
from forcereg.lowrank.factor import each_of
from forcereg.lowrank.ranks import Candidate, Choice, by_error, unless_dearer
from forcereg.net.summary import summarize
from forcereg.schema.settings import with_settings
from forcereg.schema.text import SolverFile, net_from_message, parse_net, to_text
from forcereg.solver.log import GlogWriter
from forcereg.solver.loop import Solver
from forcereg.solver.saving import provenance
from forcereg.solver.setup import problems, solver_root, tested_nets, trained_net
from forcereg.solver.state import pack
from forcereg.solver.trouble import NotFinite
from forcereg.study.accounting import Accounts, accounts
from forcereg.study.evaluate import Evaluator, check_share, make_folder, origin, train, weights_of
from forcereg.study.grid import Setting
from forcereg.system import sidefiles
from forcereg.system.events import Event, Observer
from forcereg.system.files import append_text, write_text

RUN, RESULT, CUT = "run.json", "result.json", "net_lowrank"


@dataclass(frozen=True)
class Trained:
    """A net to be cut: its weights, its test net's layers, what costs are of, and what scores nets made of it."""

    model: snapshot.ModelFile
    prepared: Prepared
    accounts: Accounts
    evaluator: Evaluator


@dataclass(frozen=True)
class Cut:
    """How the trained nets are cut: which layers by which methods, and the rule that chooses their ranks.

    `words`: the rule for people; `key`: all that the cut depends on, by name. `choose` raises ForceregError. `scores`:
    it looks at accuracies, so that only a trained net can be asked.
    """

    words: str
    key: dict[str, str]
    choose: Callable[[Trained], Mapping[str, Choice]]
    selection: Selection = field(default_factory=Selection)
    scores: bool = False


def at_error(error: float) -> Cut:
    """Every layer at the smallest rank by pca whose relative squared error is at most `error`, in [0, 1].

    Those whose chain would cost no less than they do stay whole.
    """
    criterion = unless_dearer(by_error(error))
    key = {"error": f"{error:g}", "method": "pca"}
    return Cut(f"error {error:g}", key, lambda trained: criterion(trained.prepared.candidates))


@dataclass(frozen=True)
class Plan:
    """What every run of a sweep shares: the solver, models to start from, the cut, and how long to fine-tune.

    `error`: at which the ranks that filters need are told, whatever the cut is; None as `cut`: at that. `options` are
    `Solver`'s.
    """

    solver: SolverFile
    weights: Sequence[Path]
    error: float
    finetune: int
    options: Mapping[str, Any] = field(default_factory=dict)
    cut: Cut | None = None

    @property
    def rule(self) -> Cut:
        """The cut."""
        return at_error(self.error) if self.cut is None else self.cut


@dataclass(frozen=True)
class Result:
    """What a run came to, None where it didn't get. Accuracies are None for a net without one.

    All scores are of the same test records. The net as trained has `accuracy` and `loss`; `accuracy_whole_tuned` is
    its own, fine-tuned as long as the cut net's `accuracy_tuned`. `ranks_at_error` of `full_ranks`: how many filters of
    each layer hold all but the sweep's error. `ranks` of the layers that can be cut, in order: 4, 4-3 for a method of
    two ranks, or "whole". `macs` are multiply-accumulates of the test net for one item, `macs_cut` cut. `seconds` since
    the run was last begun. `failed`: why training or fine-tuning ended early.
    """

    fields: dict[str, str]
    seed: int
    accuracy: float | None = None
    loss: float | None = None
    accuracy_whole_tuned: float | None = None
    ranks_at_error: list[int] = field(default_factory=list)
    full_ranks: list[int] = field(default_factory=list)
    ranks: list[str] = field(default_factory=list)
    macs: int | None = None
    macs_cut: int | None = None
    accuracy_cut: float | None = None
    accuracy_tuned: float | None = None
    seconds: float = 0.0
    failed: str = ""

    def check(self) -> None:
        """Raises ValueError for what no run comes to."""
        for accuracy in (self.accuracy, self.accuracy_whole_tuned, self.accuracy_cut, self.accuracy_tuned):
            check_share(accuracy)
        counts = [*self.full_ranks, *(macs for macs in (self.macs, self.macs_cut) if macs is not None)]
        ranks = list(itertools.zip_longest(self.ranks_at_error, self.full_ranks, fillvalue=0))
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
    cut: dict[str, str]


@dataclass(frozen=True)
class Kept:
    """A result as its file has it."""

    asked: Asked
    result: Result


def sweep(plan: Plan, settings: Sequence[Setting], out: Path, tell: Callable[[str], None]) -> Iterator[Result]:
    """Runs what has not been run yet, one folder each below `out`, and yields every result in order.

    All settings are looked at before the first one runs. A run that was interrupted goes on from its newest snapshot;
    one that came to a loss or weight that isn't finite is told, yielded and tried again next time. Raises ForceregError
    for all else, as for a full disk; KeyboardInterrupt once a run that was told to stop has saved itself.
    """
    runs = _runs(plan, settings, out)
    warn = _Warnings(tell)
    asked = Asked(plan.error, plan.finetune, plan.rule.key)
    untried = not plan.rule.scores
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
        result, solver = _trained(plan, setting, folder, warn, untried)
        untried = False
        if not result.failed:
            result = _compared(plan, result, solver, folder, warn)
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


def _trained(plan: Plan, setting: Setting, folder: Path, warn: _Warnings, try_cut: bool) -> tuple[Result, Solver]:
    """Trains. Raises ForceregError for what is wrong from the start, with `try_cut` also for a cut that can't be."""
    file = _file(plan, setting)
    file.message.snapshot_prefix = storable((folder / "net").resolve())
    with _log(folder / "train.log") as log:
        solver = Solver(file, observers=[log, warn], **plan.options)
        for path in plan.weights:
            solver.load_weights(path)
        result = Result(setting.fields, setting.seed, macs=summarize(solver.test_nets[0]).macs)
        if try_cut:
            plan.rule.choose(_ready(plan, solver, warn)[1])
        try:
            train(solver)
        except NotFinite as error:
            return replace(result, failed=str(error)), solver
    return result, solver


def _ready(plan: Plan, solver: Solver, warn: _Warnings) -> tuple[Prepared, Trained]:
    """The solver's net with its present weights, to be cut; and the test net, by which ranks are chosen."""
    evaluator = Evaluator(solver.file, tell=warn.once, **plan.options)
    spec, test = solver.net.spec, solver.test_nets[0].spec
    state, allow = next(iter(solver.param.test_state), None), bool(plan.options.get("allow_python_layers"))
    found = accounts(parse_net(test.text, test.filename), None, None, solver.root, allow, state)
    model = snapshot.ModelFile(Path(spec.filename), pack(solver.net), provenance(solver))
    selection = replace(plan.rule.selection, state=found.state)
    prepared = prepare(parse_net(spec.text, spec.filename), model.layers, found.shapes, selection)
    if not prepared.candidates:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in prepared.skipped.items())
        raise ForceregError(
            f"{spec.filename}: has no convolution that can be decomposed{reasons and f' ({reasons})'}, so there is "
            "nothing to sweep for"
        )
    return prepared, Trained(model, evaluator.tested(prepared, model.layers), found, evaluator)


def _compared(plan: Plan, result: Result, solver: Solver, folder: Path, warn: _Warnings) -> Result:
    """Scores the trained net, cuts it and scores it again; then both fine-tuned, as long and by the same rate."""
    prepared, trained = _ready(plan, solver, warn)
    evaluator, tested = trained.evaluator, trained.prepared
    whole = evaluator.score(tested.file, weights_of(solver))
    choices = plan.rule.choose(trained)
    cut = _Made(prepared, tested, choices)
    cut.write(folder, trained.model)
    bare = evaluator.score(cut.test, cut.weights, origin(prepared, choices))
    needed = _filters(prepared, plan)
    result = replace(
        result,
        accuracy=whole.accuracy,
        loss=whole.loss,
        ranks_at_error=[each_of(one.smallest_rank(plan.error))[0] for one in needed],
        full_ranks=[one.ladder.full_rank for one in needed],
        ranks=cut.ranks,
        macs_cut=trained.accounts.cost(cut.test, cut.weights).macs,
        accuracy_cut=bare.accuracy,
    )
    if not plan.finetune:
        return result

    def tuned(made: _Made) -> float | None:
        test, named = None if tested is prepared else made.test, origin(prepared, made.choices)
        return evaluator.finetune(made.net, made.weights, plan.finetune, folder, test, named)[0].accuracy

    try:
        result = replace(result, accuracy_whole_tuned=tuned(_Made(prepared, tested, {})))
        return replace(result, accuracy_tuned=tuned(cut))
    except NotFinite as error:
        return replace(result, failed=f"fine-tuning: {error}")


class _Made:
    """A net made from a trained one at some `choices`: to train, to test, with the weights of both."""

    def __init__(self, prepared: Prepared, tested: Prepared, choices: Mapping[str, Choice]) -> None:
        self.choices = choices
        done = prepared.apply(choices)
        last = done if tested is prepared else tested.apply(choices)
        self.net = net_from_message(done.net, prepared.file.name)
        self.test = self.net if tested is prepared else net_from_message(last.net, tested.file.name)
        self.weights = last.weights
        self._own = done.weights
        ranks = {layer.name: "-".join(map(str, layer.ranks)) for layer in done.layers}
        self.ranks = [ranks.get(one.name, "whole") for one in prepared.candidates]

    def write(self, folder: Path, model: snapshot.ModelFile) -> None:
        """CUT.* in `folder`: the nets, and the weights of the one to train."""
        for ending, net in {"": self.net, "_test": self.test}.items():
            if not ending or net is not self.net:
                write_text(folder / f"{CUT}{ending}.prototxt", to_text(net.message))
        attrs = {**model.attrs, "forcereg_net": to_text(self.net.message)}
        snapshot.write_model(folder / f"{CUT}.caffemodel.h5", self._own, attrs=attrs)


def _filters(prepared: Prepared, plan: Plan) -> Sequence[Candidate]:
    """The layers whose filters a force draws together, by pca, whatever they are cut by."""
    selection = plan.rule.selection
    if selection.method == "pca" and not selection.methods and selection.multiple == 1:
        return prepared.candidates
    plain = replace(selection, method="pca", methods={}, multiple=1, state=prepared.state)
    return prepare(prepared.file, prepared.weights, prepared.shapes, plain).candidates


@contextlib.contextmanager
def _log(path: Path) -> Iterator[Observer]:
    with append_text(path) as stream:
        yield GlogWriter(stream)
