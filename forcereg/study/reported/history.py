"""How a snapshot came about, as it tells itself, and the commands that make it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from forcereg.errors import ForceregError
from forcereg.lowrank.account import PROVENANCE
from forcereg.lowrank.factor import rank_text
from forcereg.net.made import stem
from forcereg.report.page import Command, Facts, Line, Part, Text
from forcereg.schema.text import parse_solver
from forcereg.snapshot import NET
from forcereg.study.filters.bank import ITERATION
from forcereg.system.sidefiles import of_form, parse_json

SOLVER, SEED, VERSION, TEACHER = "forcereg_solver", "forcereg_seed", "forcereg_version", "forcereg_teacher"
FORCE = ("force_type", "force_decay", "force_decay_type", "force_direction", "force_until", "force_metric")
"""Fields of a solver that say what the force was."""


@dataclass(frozen=True)
class CutLayer:
    """What a decomposition did to a layer."""

    name: str
    method: str
    full_rank: int
    ranks: list[int]
    error: float


@dataclass(frozen=True)
class Cut:
    """A decomposition: the name of the file that was decomposed, and its layers."""

    snapshot: str
    layers: list[CutLayer]


def cuts_of(attrs: Mapping[str, str]) -> list[Cut]:
    """The decompositions that a model tells of, the last one last. Raises ForceregError for what isn't of the form."""
    try:
        return [_form(one, Cut) for one in of_form(parse_json(attrs.get(PROVENANCE, "[]")), list[dict[str, Any]])]
    except (ValueError, KeyError, TypeError):
        raise ForceregError(f"the attribute {PROVENANCE} isn't of forcereg's form") from None


def _form(value: Mapping[str, Any], form: Any) -> Any:
    """A dataclass by its own names: later versions may write more of them."""
    own = {one.name: value[one.name] for one in fields(form)}
    if form is Cut:
        return Cut(of_form(own["snapshot"], str), [_form(layer, CutLayer) for layer in own["layers"]])
    return of_form(own, form)


def ranks_of(cuts: Sequence[Cut]) -> dict[str, CutLayer]:
    """Of every layer that was decomposed what was done to it last."""
    return {layer.name: layer for cut in cuts for layer in cut.layers}


def facts(model: Any, cuts: Sequence[Cut]) -> Facts:
    """What a snapshot tells of itself."""
    attrs, match = model.attrs, ITERATION.fullmatch(stem(model.path))
    rows = [("file", str(model.path))]
    rows += [("iteration", f"{int(match[2]):,}")] if match else []
    rows += [("trained by", f"forcereg {attrs[VERSION]}")] if VERSION in attrs else []
    rows += [("seed", attrs[SEED])] if SEED in attrs else []
    rows += [("force", text)] if (text := force(attrs)) else []
    rows += [("taught by", text)] if (text := teacher(attrs)) else []
    for cut in cuts:
        layers = (
            f"{one.name} {rank_text(tuple(one.ranks))} of {one.full_rank} ({one.method}, error {one.error:.4f})"
            for one in cut.layers
        )
        rows.append(("decomposed", f"{', '.join(layers)}, from {cut.snapshot}"))
    return Facts(rows)


def force(attrs: Mapping[str, str]) -> str:
    """The solver's force in words; empty where none is known."""
    try:
        param = parse_solver(attrs[SOLVER]).message
    except (KeyError, ForceregError):
        return ""
    if not param.force_decay:
        return "none"
    found = {name: getattr(param, name) for name in FORCE if param.HasField(name)}
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in found.items()
    )


def teacher(attrs: Mapping[str, str]) -> str:
    """What taught the net; empty where nothing is known."""
    try:
        found = of_form(parse_json(attrs.get(TEACHER, "")), dict[str, Any])
        return f"{found['file']}, temperature {found['temperature']:g}, weight {found['weight']:g}"
    except (ValueError, KeyError, TypeError):
        return ""


def texts(attrs: Mapping[str, str]) -> Iterator[Part]:
    """The solver and the net that the snapshot holds."""
    for name, key in (("solver that ran", SOLVER), ("net", NET)):
        if key in attrs:
            yield Text(attrs[key], name)


def repeated(model: Any, cuts: Sequence[Cut]) -> Iterator[Part]:
    """The commands that make the snapshot again, as far as it tells."""
    trained = list(_training(model.attrs))
    cut = [part for one in cuts for part in _cutting(one)]
    # a run's own snapshot of a cut net is one of its fine-tuning
    yield from [*cut, *trained] if ITERATION.fullmatch(stem(model.path)) else [*trained, *cut]


def _training(attrs: Mapping[str, str]) -> Iterator[Part]:
    if SOLVER not in attrs:
        return
    seed = ["--seed", attrs[SEED]] if SEED in attrs else []
    yield Line(
        "Put the solver above into solver.prototxt, and the net where the solver says, with its data; training is then",
        quiet=True,
    )
    yield Command(shlex.join(["forcereg", "train", "--solver", "solver.prototxt", *seed]))


def _cutting(cut: Cut) -> Iterator[Part]:
    yield Line(f"{cut.snapshot} was decomposed to these ranks, to be put into ranks.json:", quiet=True)
    ranks = {one.name: {"method": one.method, "rank": rank(one)} for one in cut.layers}
    yield Command(json.dumps(ranks, ensure_ascii=False))
    call = ["forcereg", "decompose", "--snapshot", cut.snapshot, "--method", "mixed", "--rank-config", "ranks.json"]
    yield Command(shlex.join(call))
    yield Line("What isn't recorded: whether --fold-bn or --data-aware was given.", quiet=True)


def rank(one: CutLayer) -> int | list[int]:
    """As a rank config has it."""
    return one.ranks[0] if len(one.ranks) == 1 else one.ranks
