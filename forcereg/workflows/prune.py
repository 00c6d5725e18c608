"""`forcereg prune`: weights of a trained net become zero for good, with the time beside that each layer then takes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from forcereg.errors import ForceregError, UsageError, check_share, did_you_mean
from forcereg.lowrank.decompose import Named, named
from forcereg.lowrank.rewrite import Weights
from forcereg.net.made import FORMATS, write_net
from forcereg.net.module import Net
from forcereg.net.read import ReadNet, in_form, read_weights
from forcereg.schema.text import SolverFile
from forcereg.snapshot import matched
from forcereg.solver.pruning import MAGNITUDE, METHODS, prunable
from forcereg.solver.setup import trained_net
from forcereg.solver.start import read
from forcereg.study.evaluate import Evaluator
from forcereg.study.prune.report import Row, as_csv
from forcereg.study.prune.run import Plan, Scores, Session
from forcereg.study.prune.spread import SPREADS
from forcereg.system.arguments import checked, wrong
from forcereg.system.events import Observer, Tell
from forcereg.system.files import make_folder, write_text
from forcereg.system.paths import StrPath, listed

TYPES = ("Convolution", "InnerProduct")
NAME, CSV = "net_pruned", "layers.csv"


@dataclass(frozen=True)
class Pruned:
    """A pruned net: its `layers` with their zeros and times, accuracies, and the files written.

    `whole`, `pruned` and `tuned` are the accuracies of the net as it was, pruned, and fine-tuned behind that (None
    without).

    >>> found = forcereg.prune("solver.prototxt", weights="net_iter_20.caffemodel.h5", target=0.5, out="half")
    >>> [(row.layer, row.weights) for row in found.layers], sum(round(row.share * row.weights) for row in found.layers)
    ([('conv1', 72), ('conv2', 1152), ('ip', 768)], 996)
    >>> found.pruned <= 1, found.tuned, found.layers[0].dense_ms > 0
    (True, None, True)
    """

    layers: tuple[Row, ...]
    scores: Scores = field(repr=False)
    model: Path
    weights: Path
    csv: Path

    @property
    def whole(self) -> float:
        """The accuracy before."""
        return self.scores.whole

    @property
    def pruned(self) -> float:
        """The accuracy behind the pruning."""
        return self.scores.pruned

    @property
    def tuned(self) -> float | None:
        """The accuracy behind fine-tuning under the masks."""
        return self.scores.tuned


@checked
def prune(
    solver: Any,
    *,
    weights: StrPath,
    method: str = MAGNITUDE,
    target: float | None = None,
    max_accuracy_drop: float | None = None,
    spread: str = "magnitude",
    over: int = 0,
    every: int = 100,
    finetune: int = 0,
    rate: float | None = None,
    l1: float = 5e-5,
    threshold: float = 1e-4,
    guided: bool = False,
    batch: int = 1,
    layers: Named | str | None = None,
    except_layers: Named | str = (),
    seed: int = 1,
    out: StrPath = "pruned",
    format: str | None = None,
    device: str | None = None,
    data_budget: int = 2048,
    workers: int = 0,
    allow_python_layers: bool = False,
    observer: Observer | None = None,
) -> Pruned:
    """Makes the smallest weights of a trained net zero, to stay so, by the solver's data; and fine-tunes the others.

    `target`: the share of zeros, above 0, below 1, of all weights of `layers` together (names or patterns; None for
    all Convolution and InnerProduct layers) without `except_layers`; or `max_accuracy_drop`: the largest share found
    at which the test net loses at most so much before fine-tuning. Layers that don't learn stay as they are; what
    layers share counts once, as its owner's. `spread`: "magnitude", the smallest of them all, "uniform", of each layer
    that share, or "sensitivity", the share at which it alone costs as much accuracy as the others alone.

    `method`: "magnitude", over `over` iterations by a cubic schedule in steps of `every`, at once for 0; "dns", the
    same, but that weights come back while they are above the step's threshold (dynamic surgery: a dense copy is
    trained); "l1": L1 decay `l1` on the layers' weights makes zeros below ten times `threshold` (SkimCaffe's rule),
    and the rest of the target is cut behind that. Then `finetune` iterations under the masks. Both train at the
    learning `rate`, None for a tenth of base_lr, without schedule and force, by `seed`.

    `guided`: only layers that zeros make faster here: what is measured for each at several shares of its own weights
    decides what is left out, where pruning stops, and which layers get their dense weights back (Park et al., ICLR
    2017). Times are forward passes of `batch` items, dense and in the best sparse form that there is.

    Writes the net, its weights (`format` "binary" or "hdf5", None for that of `weights`) and layers.csv into the
    folder `out`, with logs and snapshots of the runs: called again it goes on where it was ended. Raises UsageError
    for what doesn't go together, ForceregError for anything wrong in the files, a net without accuracy, and with
    `guided` for one of which no layer gets faster. KeyboardInterrupt, when a run that is interrupted has saved itself.

    >>> found = forcereg.prune("solver.prototxt", weights="net_iter_20.caffemodel.h5", target=0.9, over=4, every=2,
    ...                        finetune=2, layers="conv*")
    >>> [row.layer for row in found.layers], sum(round(row.share * row.weights) for row in found.layers)
    (['conv1', 'conv2'], 122)
    >>> found.tuned >= 0, found.weights.name, found.csv.name
    (True, 'net_pruned.caffemodel.h5', 'layers.csv')
    """
    check(method, spread, target, max_accuracy_drop, over, format)
    for name, value in {"rate": rate, "l1": l1, "threshold": threshold}.items():
        check_positive(name, value)
    tell, file = Tell(observer), read(solver)
    evaluator = Evaluator(
        file, device=device, cache=Path(out, "scores.json"), budget=data_budget << 20, workers=workers,
        allow_python_layers=allow_python_layers, tell=tell.warn,
    )  # fmt: skip
    # before anything is written: a folder that can't be made ends it here
    make_folder(Path(out))
    model = in_form(read_weights(weights), evaluator.train_file, tell.warn)
    net = without_values(file, evaluator.root, allow_python_layers)
    # with the file's name in what it raises; the rest knows weights without a file
    matched(net.params, model, net.shared)
    model = replace(model, layers=of_owners(model.layers, net.shared))
    source = ReadNet(model, evaluator.train_file, evaluator.root)
    plan = Plan(
        layers=chosen(source, net, layers, except_layers, tell), method=method, target=target, drop=max_accuracy_drop,
        spread=spread, over=over, every=every, finetune=finetune, rate=rate, decay=l1, threshold=threshold,
        guided=guided, batch=batch, seed=seed,
    )  # fmt: skip
    options = {"device": device, "budget": data_budget << 20, "workers": workers}
    options["allow_python_layers"] = allow_python_layers
    made, scores, rows = Session(plan, source, evaluator, Path(out), options, tell).run()
    what = f"pruned by {method} to {sum(row.share * row.weights for row in rows) / sum(r.weights for r in rows):.2%}"
    files = write_net(Path(out, NAME), evaluator.train_file.message, made, source, what, form=format, warn=tell.warn)
    write_text(Path(out, CSV), as_csv(rows))
    return Pruned(tuple(rows), scores, Path(files["model"]), Path(files["weights"]), Path(out, CSV))


def check(method: str, spread: str, target: float | None, drop: float | None, over: int, form: str | None) -> None:
    """Raises UsageError for values that don't go together."""
    for name, value, known in (("method", method, METHODS), ("spread", spread, SPREADS)):
        if value not in known:
            hint = did_you_mean(value, known) or f"; expected {', '.join(known)}"
            raise UsageError(f"unknown {name} '{value}'{hint}")
    if form is not None and form not in FORMATS:
        raise UsageError(f"the format is '{form}'; expected {' or '.join(FORMATS)}")
    if (target is None) is (drop is None):
        found = "neither is given" if target is None else "both are given"
        raise UsageError(f"target and max_accuracy_drop say how far: {found}; give one, as in target 0.9")
    if target is not None:
        check_share("target", target)
        if target in (0, 1):
            raise UsageError(f"target is {target:g}; expected a share of zeros above 0, below 1, as in 0.9")
    if drop is not None:
        check_share("max_accuracy_drop", drop)
    if method != MAGNITUDE and not over:
        raise UsageError(f"method {method} prunes while it trains; say for how many iterations, as in over 1000")


def check_positive(name: str, value: Any) -> None:
    """Raises UsageError unless it is None or a number above 0."""
    if value is not None and not (isinstance(value, int | float) and 0 < value < float("inf")):
        raise wrong(name, value, "a number above 0")


def without_values(solver: SolverFile, root: Path, allow_python_layers: bool) -> Net:
    """The net that the solver trains, with shapes, multipliers and what is shared only."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # told where it is trained
        return Net(trained_net(solver, root).spec(root), allow_python_layers=allow_python_layers)


def of_owners(weights: Weights, shared: Mapping[str, str]) -> Weights:
    """The weights with what layers share under its owner alone; `shared`: borrowed "layer/i" -> its owner.

    Binary models have it under each of them: the last counts, as where a net loads them.
    """
    made = {name: dict(blobs) for name, blobs in weights.items()}
    for name, blobs in weights.items():
        for index in blobs:
            owner, _, position = shared.get(f"{name}/{index}", "").rpartition("/")
            place = int(position or 0)
            if place in made.get(owner, {}):
                made[owner][place] = made[name].pop(index).reshape(made[owner][place].shape)
    return made


def chosen(source: ReadNet, net: Net, layers: Named | str | None, except_layers: Named | str, tell: Tell) -> list[str]:
    """The layers to prune, in net order; `net`: the one that is trained. Tells of those left out, which don't learn.

    Raises UsageError for names that are nobody's, ForceregError for none, and for the name of one that can't be pruned.
    """
    filename, learning = source.file.name, prunable(net)
    found = {layer.name: None for layer in source.file.message.layer if layer.type in TYPES}
    known = [name for name in found if source.model.layers.get(name) or f"{name}/0" in net.shared]
    asked = known if layers is None else listed(layers)
    only, without = named(asked, known, filename), named(listed(except_layers), known, filename)
    wanted = [name for name in known if name in only and name not in without]
    for name in wanted:
        if name in learning:
            continue
        owner = net.shared.get(f"{name}/0", "").rpartition("/")[0]
        why = f"has the weights of '{owner}'" if owner else "has no weights that learn"
        if layers is not None and name in asked:
            raise ForceregError(
                f"{filename}: layer '{name}' {why}; " + (f"name '{owner}'" if owner else "leave it out")
            )
        if not owner:
            tell.note(f"{name} {why} and stays as it is")
    if not (pruned := [name for name in wanted if name in learning]):
        raise ForceregError(f"{filename}: no Convolution or InnerProduct layer is left to prune")
    return pruned
