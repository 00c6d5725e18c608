"""A grid of trainings, each cut to low rank and fine-tuned: which setting gives the best net at which cost?"""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forcereg import snapshot
from forcereg.errors import ForceregError, UsageError
from forcereg.files import write_text
from forcereg.lowrank.cost import net_shapes
from forcereg.lowrank.decompose import Decomposition, decompose
from forcereg.lowrank.ranks import by_error
from forcereg.schema.settings import with_settings
from forcereg.schema.text import SolverFile, parse_net, to_text
from forcereg.scoring import score
from forcereg.solver.log import GlogWriter
from forcereg.solver.loop import Solver
from forcereg.solver.resume import resume_latest
from forcereg.solver.signals import handled
from forcereg.summary import summarize

RESULT, CUT = "result.json", "net_lowrank"


@dataclass(frozen=True)
class Plan:
    """What every run of a sweep shares: the solver, weights to start from, the cut, and how long to fine-tune."""

    solver: SolverFile
    weights: str | None
    error: float
    finetune: int
    device: str | None = None


@dataclass(frozen=True)
class Setting:
    """One run: solver fields and their values as written, and the seed."""

    fields: dict[str, str]
    seed: int

    @property
    def folder(self) -> str:
        """A name for the run's folder."""
        parts = [f"{name}={value}" for name, value in self.fields.items()] + [f"seed={self.seed}"]
        return ",".join(re.sub(r"[^\w.=+-]+", "_", part).strip("_") for part in parts)


@dataclass(frozen=True)
class Result:
    """What a run came to. Accuracies are None for a net without one; `ranks` of the decomposed layers, in order.

    `macs` are multiply-accumulates for one item: of the net as trained, and cut at the sweep's error.
    """

    fields: dict[str, str]
    seed: int
    accuracy: float | None
    loss: float
    ranks: list[int]
    full_ranks: list[int]
    macs: int
    macs_cut: int
    accuracy_cut: float | None
    accuracy_tuned: float | None
    seconds: float


def alternatives(text: str) -> tuple[str, list[str]]:
    """`field=a,b` -> the field and its values; commas inside brackets, braces or quotes separate nothing.

    Raises UsageError for anything else.
    """
    name, equals, rest = text.partition("=")
    values, depth, quote, start = [], 0, "", 0
    for place, char in enumerate(rest):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and not depth:
            values.append(rest[start:place])
            start = place + 1
    values = [value.strip() for value in [*values, rest[start:]]]
    if not equals or not name.strip() or not all(values):
        raise UsageError(f"--set {text}: expected FIELD=VALUE,VALUE,..., as in --set force_decay=0,1e-4,1e-3")
    return name.strip(), values


def grid(sets: Sequence[str], seeds: int) -> list[Setting]:
    """Every combination of the alternatives, `seeds` times; without force (force_decay 0) its other fields say nothing.

    Raises UsageError for a field given twice.
    """
    fields = [alternatives(text) for text in sets]
    names = [name for name, _ in fields]
    if len(set(names)) < len(names):
        raise UsageError(f"--set names a field twice ({', '.join(names)}); give all of its values in one")
    settings: dict[str, Setting] = {}
    for values in itertools.product(*(values for _, values in fields)):
        chosen = dict(zip(names, values, strict=True))
        if "force_decay" in chosen and _is_zero(chosen["force_decay"]):
            chosen = {name: value for name, value in chosen.items() if name == "force_decay" or "force" not in name}
        for seed in range(1, seeds + 1):
            setting = Setting(chosen, seed)
            settings.setdefault(setting.folder, setting)
    return list(settings.values())


def _is_zero(text: str) -> bool:
    try:
        return float(text) == 0
    except ValueError:
        return False


def sweep(plan: Plan, settings: Sequence[Setting], out: Path, tell: Callable[[str], None]) -> Iterator[Result]:
    """Runs what has not been run yet, one folder each below `out`, and yields every result in order.

    A run that was interrupted goes on from its newest snapshot. Raises ForceregError; KeyboardInterrupt once a run
    that was told to stop has saved itself.
    """
    for number, setting in enumerate(settings, 1):
        folder = out / setting.folder
        asked = {"error": plan.error, "finetune": plan.finetune, "weights": plan.weights}
        known = _read(folder / RESULT)
        if known is not None and known["asked"] == asked:
            tell(f"{number} of {len(settings)}: {setting.folder}: done before")
            yield Result(**known["result"])
            continue
        tell(f"{number} of {len(settings)}: {setting.folder}")
        folder.mkdir(parents=True, exist_ok=True)
        result = run(plan, setting, folder)
        write_text(folder / RESULT, json.dumps({"asked": asked, "result": asdict(result)}, indent=1) + "\n")
        yield result


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def run(plan: Plan, setting: Setting, folder: Path) -> Result:
    """Trains, cuts, scores, fine-tunes and scores again; all files go into `folder`. Raises ForceregError."""
    started = time.perf_counter()
    trained = _solver(plan, setting, folder / "net", {}, plan.weights)
    _train(trained, folder / "train.log")
    whole = _score(trained)
    cut = _cut(trained, plan.error, folder)
    fields = {
        **dict.fromkeys(("train_net", "test_net", "net_param", "train_net_param", "test_net_param", "test_state"), ""),
        "net": os.path.relpath(folder / f"{CUT}.prototxt", trained.root),
        "test_iter": str(trained.param.test_iter[0]),
        "force_decay": "0",
        "lr_policy": "fixed",
        "base_lr": repr(trained.param.base_lr / 10),
        "max_iter": str(plan.finetune),
    }
    tuned = _solver(plan, setting, folder / "tuned", fields, str((folder / f"{CUT}.caffemodel.h5").resolve()))
    before = after = _score(tuned)
    if plan.finetune:
        _train(tuned, folder / "tune.log")
        after = _score(tuned)
    return Result(
        fields=setting.fields,
        seed=setting.seed,
        accuracy=whole[0],
        loss=whole[1],
        ranks=[layer.rank for layer in cut.layers],
        full_ranks=[layer.full_rank for layer in cut.layers],
        macs=summarize(trained.net).macs,
        macs_cut=summarize(tuned.net).macs,
        accuracy_cut=before[0],
        accuracy_tuned=after[0],
        seconds=round(time.perf_counter() - started, 1),
    )


def _solver(plan: Plan, setting: Setting, prefix: Path, fields: Mapping[str, str], weights: str | None) -> Solver:
    """The sweep's solver with this run's settings, then those of `fields` (an empty value unsets a field)."""
    own = {"random_seed": str(setting.seed), "snapshot_prefix": str(prefix.resolve()), "snapshot_format": "HDF5"}
    every = {**setting.fields, **own, "snapshot_after_train": "true", **fields}
    file = with_settings(plan.solver, [f"{name}={value}" for name, value in every.items()])
    solver = Solver(file, device=plan.device, observers=[lambda event: None])
    if not solver.test_nets:
        raise ForceregError(f"{file.name}: has no test net, so a sweep can't compare; set test_iter and test_interval")
    if weights:
        solver.load_weights(weights)
    return solver


def _train(solver: Solver, log: Path) -> None:
    """To max_iter, from the newest snapshot if there is one. Raises KeyboardInterrupt if told to stop, once saved."""
    with open(log, "a", encoding="utf-8") as stream:
        solver.observers = [GlogWriter(stream)]
        resume_latest(solver)
        with handled(solver):
            solver.solve()
    if solver.stop_requested:
        raise KeyboardInterrupt


def _score(solver: Solver) -> tuple[float | None, float]:
    """Accuracy (of the first Accuracy layer, None without one) and loss of the first test net."""
    net = solver.test_nets[0]
    means = score(net, solver.param.test_iter[0])
    tops = [spec.tops[0] for spec in net.spec.layers if spec.type == "Accuracy"]
    return means.mean(tops[0]) if tops else None, means.loss


def _cut(solver: Solver, error: float, folder: Path) -> Decomposition:
    """Decomposes the trained net; net and weights go into the folder, as CUT.*."""
    weights = snapshot.read_model(solver.last_snapshot or solver.snapshot())
    file = parse_net(solver.net.spec.text, solver.net.spec.filename)
    shapes = net_shapes(file, weights.attrs["forcereg_input_shapes"])
    cut = decompose(file, weights.layers, by_error(error), shapes)
    if not cut.layers:
        raise ForceregError(f"{file.name}: has no convolution that can be decomposed, so there is nothing to sweep for")
    text = to_text(cut.net)
    write_text(folder / f"{CUT}.prototxt", text)
    attrs = {**weights.attrs, "forcereg_net": text}
    snapshot.write_model(folder / f"{CUT}.caffemodel.h5", cut.weights, attrs=attrs)
    return cut
