"""Accuracy against cost for several nets side by side: each one decomposed at many ranks, before and after fine-tuning.

Rank at a fixed error alone misleads: what counts is the accuracy that a net keeps at a cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forcereg.cost import Cost
from forcereg.errors import UsageError
from forcereg.evaluate import Evaluator, origin
from forcereg.lowrank.decompose import Prepared
from forcereg.lowrank.ranks import Choice, Whole
from forcereg.lowrank.rewrite import Weights
from forcereg.schema.text import NetFile, net_from_message

WHOLE = "whole"
"""The target of a net that isn't decomposed."""


@dataclass(frozen=True)
class Subject:
    """A net to look at, ready to be decomposed by one method. `cost`: of a net made from it, with its weights."""

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
class Point:
    """One net on the frontier. Accuracies are shares of 1; `macs` for one image, `milliseconds` for a batch.

    `tuned`: the accuracy after fine-tuning. None: not asked for, or unknown.
    """

    net: str
    method: str
    target: str
    ranks: Mapping[str, int]
    macs: int | None
    params: int
    accuracy: float | None
    tuned: float | None = None
    milliseconds: float | None = None


@dataclass(frozen=True)
class Made:
    """A point, and what it was made of: for measuring."""

    point: Point
    net: NetFile
    weights: Weights


def frontier(
    subjects: Sequence[Subject],
    targets: Sequence[Target],
    evaluator: Evaluator,
    finetune: int,
    folder: Path,
    tell: Callable[[str], None] = lambda text: None,
) -> Iterator[Made]:
    """All points, each subject's in the order of the targets; first each net as it is.

    finetune: iterations, 0 for none; their snapshots go to `folder`. A target out of a subject's reach, or one that
    comes to ranks that it has had, is told and left out. Raises ForceregError as `Evaluator`.
    """
    seen: set[str] = set()
    for subject in subjects:
        tested = evaluator.tested(subject.prepared, subject.weights)

        def made(target: str, choices: Mapping[str, Choice], subject: Subject = subject, tested: Any = tested) -> Made:
            return _made(subject, tested, target, choices, evaluator, finetune, folder)

        if subject.name not in seen:
            seen.add(subject.name)
            reason = Whole("it is the whole net")
            yield made(WHOLE, {one.name: reason for one in subject.prepared.candidates})
        had: list[Mapping[str, Choice]] = []
        for target in targets:
            try:
                choices = target.choose(subject)
            except UsageError as error:
                tell(f"{subject.name}, {subject.method}, {target.text}: left out: {error}")
                continue
            if all(isinstance(choice, Whole) for choice in choices.values()) or choices in had:
                tell(f"{subject.name}, {subject.method}, {target.text}: left out: a net that is there already")
                continue
            had.append(choices)
            yield made(target.text, choices)


def _made(
    subject: Subject,
    tested: Prepared,
    target: str,
    choices: Mapping[str, Choice],
    evaluator: Evaluator,
    finetune: int,
    folder: Path,
) -> Made:
    result = subject.prepared.apply(choices)
    net = net_from_message(result.net, subject.prepared.file.name)
    other = None
    if tested is not subject.prepared:
        other = net_from_message(tested.apply(choices).net, tested.file.name)
    named = origin(subject.prepared, choices)
    before = evaluator.score(other or net, result.weights, named).accuracy
    weights: Weights = result.weights
    after = None
    if finetune:
        found, weights = evaluator.finetune(net, weights, finetune, folder, other, named)
        after = found.accuracy
    cost = subject.cost(net, result.weights)
    ranks = {layer.name: layer.rank for layer in result.layers}
    method = "" if target == WHOLE else subject.method
    return Made(Point(subject.name, method, target, ranks, cost.macs, cost.params, before, after), net, weights)


def timed(made: Sequence[Made], milliseconds: Sequence[float]) -> list[Point]:
    """The points with their times."""
    return [replace(one.point, milliseconds=time) for one, time in zip(made, milliseconds, strict=True)]
