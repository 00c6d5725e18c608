"""`forcereg decompose`: layers of a net replaced by chains of smaller ones, at ranks by a rule."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forcereg.cost import Cost
from forcereg.errors import ForceregError, UsageError
from forcereg.lowrank.account import PROVENANCE, heading, provenance
from forcereg.lowrank.decompose import LowrankNet, Named, Picked, Prepared
from forcereg.lowrank.factor import rank_text
from forcereg.lowrank.ranks import Choice, Criterion, Dearer
from forcereg.lowrank.rule import Rule, check_rule, criterion_of
from forcereg.lowrank.timed import Timed
from forcereg.net.made import write_net
from forcereg.report.latency import Latency
from forcereg.report.lowrank import net_report, remarks
from forcereg.schema.text import net_from_message
from forcereg.study.bench import Bench, bench_if
from forcereg.study.judged import Judged
from forcereg.study.latency import before_and_after, timed_choices
from forcereg.study.moments import TrainingData
from forcereg.study.opened import Opened, Opening, nothing
from forcereg.study.recalibrate import recalibrate as recalibrated
from forcereg.system.arguments import checked
from forcereg.system.events import Observer, Tell
from forcereg.system.paths import StrPath

DEARER = "--even-if-dearer decomposes layers whose chain costs no less, too"


@dataclass(frozen=True)
class Decomposition:
    """A decomposed net: what it is, what was done, and how to keep it.

    `report`: plain data, what `forcereg decompose --json` prints: per layer its ranks, relative squared error, MACs of
    one image and learned values before and after (None where shapes are unknown); the same of the whole net; layers
    left whole and why; remarks. `done`: the layers' reports as objects. `latency`: what was measured, if it was.

    >>> made = forcereg.decompose("net_iter_20.caffemodel.h5", rule=forcereg.Ranks([4, 6]))
    >>> [name for name, blobs in made.weights.items() if blobs]
    ['conv1_lowrank', 'conv1_linear', 'conv2_lowrank', 'conv2_linear', 'ip']
    >>> made.weights["conv1_lowrank"][0].shape, made.weights["conv1_linear"][0].shape
    ((4, 1, 3, 3), (8, 4, 1, 1))
    """

    report: dict[str, Any]
    done: LowrankNet
    opened: Opened
    latency: Latency | None
    dearer: bool
    """Whether layers were left whole because their chain would cost no less."""
    _tell: Tell

    def __repr__(self) -> str:
        ranks = (f"{one.name} {rank_text(one.full_rank)} -> {rank_text(one.rank)}" for one in self.done.layers)
        return f"Decomposition({', '.join(ranks)})"

    @property
    def net(self) -> Any:
        """The new net, a NetParameter: `forcereg.load_net(made.net)`."""
        return self.done.net

    @property
    def weights(self) -> Mapping[str, Mapping[int, np.ndarray]]:
        """Layer name -> position of the blob in its layer -> values."""
        return self.done.weights

    @checked
    def write(self, prefix: StrPath, format: str | None = None) -> dict[str, str]:
        """Writes PREFIX.prototxt and the weights, PREFIX.caffemodel or PREFIX.caffemodel.h5; the paths of both.

        format: "binary" or "hdf5", None for the snapshot's; a net in memory is written as HDF5. Raises UsageError where
        a file that was read would be overwritten, ForceregError if the system refuses.
        """
        source = self.opened.read.model
        made = json.dumps(provenance(self.done.layers, source.path.name, source.attrs))
        text, attrs = heading(self.done.layers), {PROVENANCE: made}
        return write_net(prefix, self.net, self.weights, self.opened.read, text, attrs, format, self._tell.warn)


@checked
def decompose(
    snapshot: StrPath | Any,
    *,
    rule: Rule,
    method: str = "pca",
    layers: Picked | str | None = None,
    except_layers: Named | str = (),
    model: StrPath | None = None,
    fold_bn: bool = False,
    fc: bool = False,
    multiple: int = 1,
    even_if_dearer: bool = False,
    data: StrPath | None = None,
    data_aware: int | None = None,
    recalibrate: int | None = None,
    seed: int = 0,
    latency: str | torch.device | None = None,
    batch: int | None = None,
    runtime: str = "torch",
    threads: int | None = None,
    scores: StrPath | None = None,
    device: str | None = None,
    data_budget: int = 2048,
    workers: int = 0,
    allow_python_layers: bool = False,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    observer: Observer | None = None,
) -> Decomposition:
    """Replace layers by chains of smaller ones, at ranks that a rule chooses.

    snapshot: a .caffemodel, also as .h5, or its solver state; or a net in memory: a `Net`, a `Solver`, what this or
    `split_groups` returned. rule: `MaxError(0.05)`, `Ranks([10, 3])`,
    `MaxMacs(0.5)`, ... method: pca, svd, kmeans, vh, tucker2, cp; mixed: as `RankConfig` says for each layer. layers:
    just these, by names, patterns (conv*) or a function of a layer's name, type, weight and groups; except_layers: not
    these. model: the net's prototxt, None for the net that the snapshot holds. fold_bn: BatchNorm and Scale go into
    the layers before them first. fc: InnerProduct layers too. multiple: of which ranks of each group are multiples.
    even_if_dearer: also where a chain costs no less than its layer, by rules that look at the error alone.

    data: a solver prototxt, for what needs data: data_aware, the number of training batches on which the error of the
    layers' responses is minimised (pca, svd); recalibrate, that of batches on which BatchNorm's statistics are
    recomputed; `MaxAccuracyDrop`, which keeps what it scored in the file `scores`. seed: of kmeans and recalibrate.
    latency: "cpu" or "cuda", where layers are measured and the fastest rank near the rule's is taken, with `batch`
    images, None for the net's, by `runtime` with so many `threads`: torch, or onnxruntime or openvino, which are given
    each layer and chain as an ONNX model. device, data_budget (MiB), workers, allow_python_layers: as for `Solver`.
    input_shapes: blob -> shape, for data that isn't here. observer: gets progress, notes and warnings.

    Nothing is written; `Decomposition.write` does that. Raises UsageError for what doesn't go together, ForceregError
    for files that can't be read or don't fit, for ranks out of range, and if no layer is decomposed.

    >>> made = forcereg.decompose("net_iter_20.caffemodel.h5", rule=forcereg.Ranks([4, 6]))
    >>> [(layer["name"], layer["rank"], layer["full_rank"]) for layer in made.report["layers"]]
    [('conv1', 4, 8), ('conv2', 6, 16)]
    >>> made.report["net"]["macs_before"], made.report["net"]["macs_after"]
    (21792, 11664)
    >>> made.write("small")
    {'model': 'small.prototxt', 'weights': 'small.caffemodel.h5'}
    """
    tell = Tell(observer)
    asked = Opening(
        model=model, method=method, layers=layers, except_layers=except_layers, fc=fc, multiple=multiple,
        fold_bn=fold_bn, data_aware=data_aware, seed=seed, solver=data, device=device, data_budget=data_budget,
        workers=workers, allow_python_layers=allow_python_layers, input_shapes=input_shapes or {}, tell=tell,
    )  # fmt: skip
    check_rule(rule)
    # all that can be wrong without reading a file comes first
    rule.check(method, data is not None)
    clock, training = measuring(latency, batch, runtime, threads), training_batches(asked, recalibrate)
    opened = asked.open(snapshot, rule.layers)
    check(snapshot, opened, training)
    criterion = criterion_of(rule, Judged(opened, asked, None if scores is None else Path(scores)), even_if_dearer)
    ready, choices, timed = choose(opened.prepared, rule, criterion, clock, batch, tell)
    done = ready.apply(choices)
    dearer = any(isinstance(choice, Dearer) for choice in choices.values())
    if not done.layers:
        # ranks were asked for, and every layer stayed whole: nothing worth writing
        raise nothing(snapshot, opened.prepared.file, done.skipped, DEARER if dearer else "")
    if training is not None:
        # after the cut: statistics are of what its layers now hand on
        done = recalibrated(done, opened.prepared, opened.weights, choices, training, tell)
    measured = None if clock is None or timed is None else latencies(opened, done, clock, batch, timed, tell)
    return Decomposition(account(opened, done, measured, training), done, opened, measured, dearer, tell)


# -- open


def measuring(latency: str | torch.device | None, batch: int | None, runtime: str, threads: int | None) -> Bench | None:
    """Where to measure, None for nowhere. Raises UsageError and ForceregError."""
    if latency is None and batch is not None:
        raise UsageError("--batch is what --latency cpu or cuda measures with; give that too")
    return bench_if(latency, runtime, threads)


def training_batches(asked: Opening, batches: int | None) -> TrainingData | None:
    """What statistics are recomputed on, None for none. Raises UsageError without a solver."""
    if batches is None:
        return None
    if asked.solver is None:
        raise UsageError("--recalibrate needs --solver FILE, whose training batches BatchNorm's statistics are of")
    return asked.training_data(batches, asked.seed)


def check(snapshot: StrPath | Any, opened: Opened, training: TrainingData | None) -> None:
    """Raises ForceregError for a net without a layer to decompose, or nothing to recompute, before it takes time."""
    file = opened.prepared.file
    if not opened.prepared.candidates:
        raise nothing(snapshot, file, opened.prepared.skipped)
    if training is None:
        return
    if not norms(file.message):
        why = "is left after --fold-bn" if opened.prepared.folded else "is in the net"
        raise ForceregError(f"{file.name}: no BatchNorm {why}; leave out --recalibrate")
    # for its error, now: ranks may take long to find
    training.source(file)


def norms(net: Any) -> list[str]:
    """The BatchNorm layers of a NetParameter."""
    return list(dict.fromkeys(layer.name for layer in net.layer if layer.type == "BatchNorm"))


# -- choose


def choose(
    prepared: Prepared, rule: Rule, criterion: Criterion, clock: Bench | None, batch: int | None, tell: Tell
) -> tuple[Prepared, Mapping[str, Choice], Timed | None]:
    """A choice for every layer; the same net, of which each layer's work is told; and what was measured, if it was."""
    candidates, timed = prepared.candidates, None
    known: Mapping[str, Choice] | None = None
    if clock is not None:
        timed = timed_choices(prepared, clock, batch, criterion, rule.budget, tell)
        known = timed.choices
    elif rule.scores:
        known = criterion(candidates)
    # only now: measuring and scoring tell steps of their own
    watched = prepared.watched(tell.steps("step", 2 * len(candidates)))
    return watched, criterion(watched.candidates) if known is None else known, timed


# -- report


def latencies(opened: Opened, done: LowrankNet, clock: Bench, batch: int | None, timed: Timed, tell: Tell) -> Latency:
    """The layers' times, and the whole net's before and after."""
    prepared = opened.prepared
    nets = [(prepared.file, prepared.weights), (net_from_message(done.net, prepared.file.name), done.weights)]
    return clock.found(batch, timed.trials, before_and_after(nets, opened.accounts, clock, batch, tell))


def account(
    opened: Opened, done: LowrankNet, measured: Latency | None, training: TrainingData | None
) -> dict[str, Any]:
    """All that was done as plain data."""
    file = net_from_message(done.net, opened.prepared.file.name)
    net = net_report(opened.whole, opened.accounts.cost(file, done.weights))
    found = {**done.report(), "net": net, "phase": opened.accounts.phase}
    found["train_net"] = in_training(opened.in_training, opened.accounts.in_training(file))
    found |= {"remarks": remarks(done, net), "folded": opened.prepared.folded}
    found |= {} if measured is None else {"latency": measured.report()}
    again = None if training is None else {"batches": training.batches, "layers": norms(done.net)}
    return found if again is None else {**found, "recalibrated": again}


def in_training(before: Cost | None, after: Cost | None) -> dict[str, Any] | None:
    """The TRAIN net's cost before and after, where it differs from the TEST net's."""
    return None if before is None or after is None else net_report(before, after)
