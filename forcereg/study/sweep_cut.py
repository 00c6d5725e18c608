"""A rule for ranks as what cuts the nets of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from forcereg.errors import UsageError
from forcereg.lowrank.ranks import Choice
from forcereg.lowrank.rule import Rule, criterion_of
from forcereg.net.read import ReadNet
from forcereg.schema.text import SolverFile
from forcereg.study.evaluate import taught_by
from forcereg.study.judged import Judged
from forcereg.study.opened import Opened, Opening
from forcereg.study.rule_names import field_of, named, record
from forcereg.study.sweep_plan import Cut, Plan, Trained
from forcereg.system.paths import StrPath, listed


def cut_by(rule: Rule, opening: Opening, even_if_dearer: bool = False) -> Cut:
    """What cuts by the rule those layers, by those methods, that `opening` says. Raises UsageError, ForceregError.

    Accuracies are those on the sweep's own test net. The layers are to be given by names or patterns: results are kept
    by what they were cut by, and a function can't be told from another.
    """
    if callable(opening.layers):
        raise UsageError(
            "layers is a function, and a sweep can't tell which results are its own; give names or patterns"
        )
    rule.check(opening.method, has_data=True)
    # a partial, which can be pickled with the sweep's result
    choose = partial(chosen, rule, opening, even_if_dearer)
    words = named(rule) if opening.method == "pca" else f"{named(rule)} by {opening.method}"
    return Cut(words, key_of(rule, opening, even_if_dearer), choose, opening.selection(rule.layers), rule.scores)


def plan_of(
    solver: SolverFile, opening: Opening, cut: Cut, weights: StrPath | Sequence[StrPath], error: float, finetune: int
) -> Plan:
    """What runs of a solver share whose nets are opened so, and cut so; models are named from here."""
    running = {
        "device": opening.device,
        "budget": opening.data_budget << 20,
        "workers": opening.workers,
        "allow_python_layers": opening.allow_python_layers,
    }
    # from here: a solver's own paths start at its root
    models, teacher = [Path(path).resolve() for path in listed(weights)], opening.teacher
    return Plan(solver, models, error, finetune, running, cut, teacher=teacher, taught=taught_by(teacher))


def chosen(rule: Rule, opening: Opening, even_if_dearer: bool, trained: Trained) -> Mapping[str, Choice]:
    """The ranks of a trained net."""
    # the net that was trained, whose data some rules look at; costs and scores are the test net's
    read = ReadNet(trained.model, trained.evaluator.train_file, trained.accounts.root)
    opened = Opened(read, trained.prepared, trained.accounts)
    judged = Judged(opened, replace(opening, scorer=trained.evaluator))
    return criterion_of(rule, judged, even_if_dearer)(trained.prepared.candidates)


def key_of(rule: Rule, opening: Opening, even_if_dearer: bool) -> dict[str, str]:
    """All that a cut depends on, by the names of the options; what is as it is without them is left out."""
    asked = {
        "even_if_dearer": even_if_dearer,
        "method": opening.method,
        "fc": opening.fc,
        "only_layers": None if opening.layers is None else ",".join(listed(opening.layers)),  # type: ignore[arg-type]
        "except_layers": ",".join(listed(opening.except_layers)) or None,
        "multiple": None if opening.multiple == 1 else opening.multiple,
    }
    told = {name: str(value) for name, value in asked.items() if value is not None and value is not False}
    return {field_of(rule): record(rule), **told}
