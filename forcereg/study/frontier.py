"""Accuracy against cost for several nets side by side: each one decomposed at many ranks, before and after fine-tuning.

Rank at a fixed error alone misleads: what counts is the accuracy that a net keeps at a cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from forcereg.cost import Cost
from forcereg.errors import UsageError
from forcereg.lowrank.decompose import Prepared
from forcereg.lowrank.factor import Rank
from forcereg.lowrank.ranks import Choice, Dearer, Whole
from forcereg.lowrank.rewrite import Weights
from forcereg.schema.text import NetFile, net_from_message
from forcereg.solver.trouble import NotFinite
from forcereg.study import latency
from forcereg.study.accounting import Accounts
from forcereg.study.bench import Bench
from forcereg.study.evaluate import Evaluator
from forcereg.study.scores import origin

WHOLE = "whole"
"""The target of a net that isn't decomposed."""

PACE = 0.5
"""Seconds of measuring for each net, so that many nets have as many rounds as few."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """A net to look at, ready to be decomposed by one method; `weights`: those that `prepared` was made from.

    `cost`: of a net made from it, with its weights.
    """

    name: str
    method: str
    prepared: Prepared
    weights: Weights
    cost: Callable[[NetFile, Weights], Cost]


@dataclass(frozen=True)
class Target:
    """A point to aim at: its name for people, and the rule that chooses the ranks of a subject."""

    text: str
    choose: Callable[[Subject], Mapping[str, Choice]]


@dataclass(frozen=True)
class Aim:
    """A net to make: a subject, and the ranks of the layers that are decomposed, which `target` chose."""

    subject: Subject
    target: str
    ranks: Mapping[str, Rank]


@dataclass(frozen=True)
class Point:
    """One net on the frontier. Accuracies are shares of 1; `macs` for one image, `milliseconds` for a batch.

    `tuned`: the accuracy after fine-tuning. None: not asked for, or unknown.
    """

    net: str
    method: str
    target: str
    ranks: Mapping[str, Rank]
    macs: int | None
    params: int
    accuracy: float
    tuned: float | None = None
    milliseconds: float | None = None


@dataclass(frozen=True)
class Made:
    """A point, and the net it stands for, as decomposed: for measuring."""

    point: Point
    net: NetFile
    weights: Weights


def planned(subjects: Sequence[Subject], targets: Sequence[Target], tell: Tell) -> list[Aim]:
    """What to make: each net whole, then by each of its methods at every target, in the order given.

    A target out of a subject's reach, or one that comes to a net that is there already, is told and left out. Raises
    UsageError if none is left, ForceregError as the targets.
    """
    aims: list[Aim] = []
    for subject in subjects:
        if all(aim.subject.name != subject.name for aim in aims):
            aims.append(Aim(subject, WHOLE, {}))
        had: list[tuple[str, Mapping[str, Rank]]] = [(WHOLE, {})]
        for target in targets:
            try:
                ranks = _reached(subject, target)
                if same := [text for text, known in had if known == ranks]:
                    # left out and told as what the rule itself refuses
                    raise UsageError(f"a net that is there already: {same[0]}" if ranks else "it leaves the net whole")
            except UsageError as error:
                tell(f"{subject.name}, {subject.method}, {target.text}: left out: {error}")
                continue
            had.append((target.text, ranks))
            aims.append(Aim(subject, target.text, ranks))
    if all(aim.target == WHOLE for aim in aims):
        raise UsageError("every target was left out, so there is nothing to compare; give others")
    return aims


def _reached(subject: Subject, target: Target) -> dict[str, Rank]:
    """The ranks that a target comes to, as the layers take them.

    Raises UsageError for one out of range, and for none because every chain costs no less than its layer.
    """
    choices = target.choose(subject)
    ranks = {}
    for one in subject.prepared.candidates:
        choice = choices.get(one.name, Whole(""))
        if not isinstance(choice, Whole):
            try:
                # as the layer takes it: two targets may come to one net
                ranks[one.name] = one.ladder.rounded(choice)
            except ValueError as error:
                raise UsageError(f"{one.name}: {error}") from error
    if not ranks and any(isinstance(choice, Dearer) for choice in choices.values()):
        raise UsageError("no chain costs less than its layer; --even-if-dearer takes them all the same")
    return ranks


def frontier(
    aims: Iterable[Aim], evaluator: Evaluator, finetune: int, folder: Path, tell: Tell = lambda text: None
) -> Iterator[Made]:
    """The nets made, scored and fine-tuned, one by one.

    finetune: iterations, 0 for none; their snapshots go to `folder`. Where it comes to a loss or weight that isn't
    finite, that is told and the accuracy after it unknown. Raises ForceregError as `Evaluator` for all else, as for a
    full disk; KeyboardInterrupt as its `finetune`.
    """
    for aim in aims:
        subject = aim.subject
        before = evaluator.accuracy(subject.prepared, subject.weights)(aim.ranks)
        result = subject.prepared.apply(aim.ranks)
        net = net_from_message(result.net, subject.prepared.file.name)
        tuned = None
        if finetune:
            try:
                tuned = _tuned(aim, net, result.weights, evaluator, finetune, folder)
            except NotFinite as error:
                tell(f"{subject.name}, {subject.method}, {aim.target}: fine-tuning failed: {error}")
        cost = subject.cost(net, result.weights)
        # the whole net is the same for all methods
        method = "" if aim.target == WHOLE else subject.method
        point = Point(subject.name, method, aim.target, aim.ranks, cost.macs, cost.params, before, tuned)
        yield Made(point, net, result.weights)


def _tuned(
    aim: Aim, net: NetFile, weights: Weights, evaluator: Evaluator, iterations: int, folder: Path
) -> float | None:
    """The accuracy after fine-tuning."""
    prepared = aim.subject.prepared
    tested = evaluator.tested(prepared, aim.subject.weights)
    test = None if tested is prepared else net_from_message(tested.apply(aim.ranks).net, tested.file.name)
    return evaluator.finetune(net, weights, iterations, folder, test, origin(prepared, aim.ranks))[0].accuracy


# -- times


def timed(made: Sequence[Made], accounts: Mapping[str, Accounts], bench: Bench, batch: int, tell: Tell) -> list[Point]:
    """The points with each net's milliseconds, the median of all taking turns; nets of one structure are one.

    `accounts`: of each net by its name. Raises ForceregError where nets can't run by themselves.
    """
    runs: dict[str, latency.Run] = {}
    keys = []
    for one in made:
        own = accounts[one.point.net]
        fed = latency.fed_shapes(one.net, own.fed or {}, batch)
        # without the weights, on which times don't depend
        keys.append(f"{fed} {one.net.message}")
        if keys[-1] not in runs:
            runs[keys[-1]] = latency.net_run(one.net, one.weights, fed, bench, own.allow_python_layers)
    # all in turns, so that a machine that warms up or is shared slows every net alike
    by = f" in {bench.runtime}" if bench.exports else ""
    tell(f"measuring {len(runs)} nets on {bench.device}{by}")
    with bench.at_work():
        times = latency.interleaved(list(runs.values()), bench.device, PACE * (len(runs) + 8))
    medians = dict(zip(runs, map(median, times), strict=True))
    return [replace(one.point, milliseconds=medians[key]) for one, key in zip(made, keys, strict=True)]
