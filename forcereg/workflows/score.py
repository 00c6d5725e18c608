"""Scoring a net on its own data: `forcereg test`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from forcereg.net import scoring
from forcereg.net.load import load_net
from forcereg.net.module import Net
from forcereg.net.scoring import Score, check_blobs, coverage, read_outputs
from forcereg.schema.rules import stage_names
from forcereg.solver.debug import Watch
from forcereg.study.sparse import execute
from forcereg.system.arguments import checked
from forcereg.system.device import choose_device
from forcereg.system.events import Event, Observer, Tell
from forcereg.system.paths import StrPath


@checked
def score(
    model: StrPath | Any,
    weights: StrPath,
    *,
    iterations: int = 50,
    device: str | None = None,
    level: int = 0,
    stage: str | Sequence[str] = (),
    sparse: str | None = None,
    data_budget: int = 2048,
    workers: int = 0,
    allow_python_layers: bool = False,
    observer: Observer | None = None,
) -> Score:
    """The means of a net's outputs over `iterations` batches of its TEST phase's own data.

    `model`: a path, prototxt text or NetParameter; `weights`: a .caffemodel, also as .h5. `level`, `stage`: of the
    net's state. `sparse`: how convolutions run, "dense", "ccnmm", "csr", "direct", or "auto" for what is fastest for
    each; None as its conv_mode says. `device`: "auto", "cpu", "cuda" or "cuda:N"; None is auto. `data_budget`: MiB that
    one decoded data set may take, larger ones stream; `workers`: threads that decode for each data layer, 0 for as many
    as there are cores, at most 8. The result has `.loss`, the weighted sum of all losses, `.outputs`, each element of
    the output blobs with `.name`, `.value` and `.weight` (of a loss), `.mean(name)`, and `.sparse`, how each
    convolution ran. `observer` is told each batch's outputs too. Warns if the batches
    don't cover the data exactly. Raises ForceregError for anything wrong in either file.

    >>> scores = forcereg.score("net.prototxt", "net_iter_20.caffemodel.h5", iterations=3)
    >>> scores.mean("accuracy"), scores.loss < 0.1
    (1.0, True)
    """
    tell = Tell(observer)
    where = choose_device(device, None, tell.warn)
    net = load_net(
        model, weights, "TEST", level, stage_names(stage), device=where, budget=data_budget << 20, workers=workers,
        allow_python_layers=allow_python_layers,
    )  # fmt: skip
    check_blobs(net, where)
    for text in uncovered(net, iterations):
        tell.warn(text)
    ways = execute(net, sparse, tell)
    return replace(_scored(net, iterations, observer), sparse=ways)


def _scored(net: Net, iterations: int, observer: Observer | None) -> Score:
    if observer is None:  # then nothing is fetched from the device batch by batch
        return scoring.score(net, iterations)
    told = observer

    def after(index: int, outputs: Mapping[str, Any]) -> None:
        if watch is not None:
            told(Event("debug", watch.told()))
        told(Event("batch", {"index": index, "outputs": read_outputs(outputs, {})}))

    with Watch(net) if net.spec.debug_info else contextlib.nullcontext() as watch:
        return scoring.score(net, iterations, after=after)


def uncovered(net: Net, iterations: int) -> list[str]:
    """Of each data layer whose records the batches don't take exactly once: how many they take."""
    several = iterations != 1
    texts = []
    for one in coverage(net, iterations, quick=True):
        text = f"{'cover' if several else 'covers'} {one.seen:,} of the {one.records:,} records"
        if one.seen > one.records:
            verb = "go" if several else "goes"
            text = f"{verb} round the {one.records:,} records {one.seen / one.records:.3g} times"
        texts.append(f"{iterations:,} {'batches' if several else 'batch'} of {one.batch:,} {text}")
    return texts
