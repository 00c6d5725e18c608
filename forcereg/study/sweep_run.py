"""One run of a sweep or a search: a setting trained, cut to low rank, scored and fine-tuned in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from forcereg import snapshot
from forcereg.errors import ForceregError, storable
from forcereg.lowrank.decompose import Prepared, prepare
from forcereg.lowrank.factor import each_of
from forcereg.lowrank.ranks import Candidate, Choice
from forcereg.net.summary import summarize
from forcereg.schema.text import net_from_message, parse_net, to_text
from forcereg.solver.log import GlogWriter
from forcereg.solver.loop import Solver
from forcereg.solver.saving import provenance
from forcereg.solver.state import pack
from forcereg.solver.trouble import NotFinite
from forcereg.study.accounting import accounts
from forcereg.study.evaluate import Evaluator
from forcereg.study.grid import Setting
from forcereg.study.scores import origin
from forcereg.study.sweep_plan import (
    FAILED,
    RESULT,
    RUN,
    Cut,
    Kept,
    KeptFailure,
    Plan,
    Result,
    Run,
    Trained,
    is_of,
    solver_of,
)
from forcereg.study.tuning import Ended, train, weights_of
from forcereg.system import sidefiles
from forcereg.system.claims import Claim
from forcereg.system.events import Event, Observer
from forcereg.system.files import append_text, make_folder, write_text

CUT = "net_lowrank"
"""What the files of a run's cut net are called."""


def known_result(plan: Plan, setting: Setting, folder: Path) -> Result | None:
    """What the run in a folder came to before, None if it hasn't come to its end."""
    return _kept(plan, setting, sidefiles.known(folder / RESULT, Kept))


def known_failure(plan: Plan, setting: Setting, folder: Path) -> Result | None:
    """How the run in a folder failed when it was last tried, None if it hasn't."""
    found = _kept(plan, setting, sidefiles.known(folder / FAILED, KeptFailure))
    return None if found is None else Result(**vars(found))


def _kept(plan: Plan, setting: Setting, known: Kept | KeptFailure | None) -> Result | None:
    return known.result if known is not None and known.asked == plan.asked and is_of(known.result, setting) else None


def keep_failure(plan: Plan, failed: Result, folder: Path) -> None:
    """Writes how a run failed, for processes that share the folder; the next call tries it again."""
    _keep(plan, failed, folder / FAILED)


def _keep(plan: Plan, result: Result, path: Path) -> None:
    write_text(path, json.dumps(asdict(Kept(plan.asked, result)), indent=1) + "\n")


def run(
    plan: Plan,
    setting: Setting,
    identity: Run,
    folder: Path,
    heard: Warnings,
    try_cut: bool = False,
    watch: Callable[[Solver], Observer] | None = None,
    held: Claim | None = None,
) -> Result:
    """Trains a setting in `folder`, from its newest snapshot if there is one, cuts, scores and fine-tunes it.

    `identity`: what it is, see `runs_of`; `try_cut`: a cut that can't be is told before it trains; `watch` makes an
    observer of the training, which may raise Ended. The result is written there, or how it `failed`: with a loss or
    weight that isn't finite, or Ended. `held`: the claim on the folder, without which it ends with Lost. Raises as
    `sweep`.
    """
    started = time.perf_counter()
    make_folder(folder)
    # before it trains: an interrupted run is known by what it is
    write_text(folder / RUN, json.dumps(asdict(identity), indent=1) + "\n")
    watches = [watch] if watch else []
    if held is not None:
        watches.append(lambda solver: lambda event: held.check())
    result, solver = _trained(plan, setting, folder, heard, try_cut, watches)
    if not result.failed:
        result = _compared(plan, result, solver, folder, heard)
    result = replace(result, seconds=round(time.perf_counter() - started, 1))
    if held is not None:
        held.check(look=True)
    _keep(plan, result, folder / (FAILED if result.failed else RESULT))
    return result


class Warnings:
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
            self.tell(text)


def _trained(
    plan: Plan,
    setting: Setting,
    folder: Path,
    warn: Warnings,
    try_cut: bool,
    watches: Sequence[Callable[[Solver], Observer]],
) -> tuple[Result, Solver]:
    """Trains. Raises ForceregError for what is wrong from the start, with `try_cut` also for a cut that can't be."""
    file = solver_of(plan, setting)
    # absolute: a solver's paths start at its root, the sweep's folder here
    file.message.snapshot_prefix = storable((folder / "net").resolve())
    with _log(folder / "train.log") as log:
        solver = Solver(file, observers=[log, warn], **plan.options)
        for path in plan.weights:
            solver.load_weights(path)
        # before training, so that a run that fails has it too
        result = Result(setting.fields, setting.seed, macs=summarize(solver.test_nets[0]).macs)
        if try_cut:
            plan.rule.choose(_ready(plan, solver, warn)[1])
        solver.observers += [watch(solver) for watch in watches]
        try:
            train(solver)
        except (NotFinite, Ended) as error:
            return replace(result, failed=str(error)), solver
    return result, solver


def _ready(plan: Plan, solver: Solver, warn: Warnings) -> tuple[Prepared, Trained]:
    """The solver's net with its present weights, to be cut; and the test net, by which ranks are chosen."""
    evaluator = Evaluator(solver.file, tell=warn.once, teacher=plan.teacher, **plan.options)
    spec, test = solver.net.spec, solver.test_nets[0].spec
    state, allow = next(iter(solver.param.test_state), None), bool(plan.options.get("allow_python_layers"))
    found = accounts(parse_net(test.text, test.filename), None, None, solver.root, allow, state)
    # what a snapshot would hold, from memory
    model = snapshot.ModelFile(Path(spec.filename), pack(solver.net), provenance(solver.net, solver.param, solver.seed))
    selection = replace(plan.rule.selection, state=found.state)
    prepared = prepare(parse_net(spec.text, spec.filename), model.layers, found.shapes, selection)
    if not prepared.candidates:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in prepared.skipped.items())
        raise ForceregError(
            f"{spec.filename}: has no convolution that can be decomposed{reasons and f' ({reasons})'}, so there is "
            "nothing to sweep for"
        )
    return prepared, Trained(model, evaluator.tested(prepared, model.layers), found, evaluator)


def _compared(plan: Plan, result: Result, solver: Solver, folder: Path, warn: Warnings) -> Result:
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
        layers=[one.name for one in needed],
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
        if plan.whole:
            result = replace(result, accuracy_whole_tuned=tuned(_Made(prepared, tested, {})))
        return replace(result, accuracy_tuned=tuned(cut))
    except NotFinite as error:
        return replace(result, failed=f"fine-tuning: {error}")


def score_cut(plan: Plan, cut: Cut, solver: Solver, warn: Warnings) -> float | None:
    """The accuracy of a solver's net with its present weights, cut by `cut`; None for a net without one."""
    prepared, trained = _ready(plan, solver, warn)
    choices = cut.choose(trained)
    made = _Made(prepared, trained.prepared, choices)
    return trained.evaluator.score(made.test, made.weights, origin(prepared, choices)).accuracy


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
    # a run that goes on does so in the log that it has
    with append_text(path) as stream:
        yield GlogWriter(stream)
