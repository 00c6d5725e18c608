"""BatchNorm's statistics gathered anew: those of a net that was cut are of activations that it no longer has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from forcereg.errors import ForceregError
from forcereg.layers.norm import BatchNorm
from forcereg.lowrank.decompose import LowrankNet, Prepared
from forcereg.lowrank.fold import fold_bn
from forcereg.lowrank.ranks import Choice
from forcereg.lowrank.rewrite import Weights
from forcereg.net.module import Net
from forcereg.schema.text import NetFile, net_from_message
from forcereg.study.moments import TrainingData
from forcereg.system.events import Tell

STATISTICS = ("mean", "variance", "factor")
"""The first blobs of a BatchNorm."""


def recalibrate(
    made: LowrankNet,
    prepared: Prepared,
    weights: Weights,
    choices: Mapping[str, Choice],
    data: TrainingData,
    tell: Tell | None = None,
) -> LowrankNet:
    """A decomposition with the statistics of its BatchNorm layers gathered anew.

    `made`: of `prepared` at `choices`, which was made from `weights`. Where its net reads no training data (a deploy
    net) the solver's net takes its place, cut alike. Raises ForceregError as `recalibrated`.
    """
    file = _for_training(made, prepared, weights, choices, data)
    return replace(made, weights=recalibrated(file, made.weights, data, tell))


def recalibrated(
    file: NetFile, weights: Weights, data: TrainingData, tell: Tell | None = None
) -> dict[str, dict[int, np.ndarray]]:
    """The weights with the statistics of every BatchNorm of a net's train phase over `data.batches` of its own data.

    As `gather`. Raises ForceregError for a net without BatchNorm or training data, for weights that don't fit and for
    activations that aren't finite.
    """
    net = data.net(file, weights)
    try:
        gather(net, data.batches, tell)
        found = {name: dict(blobs) for name, blobs in weights.items()}
        for name in norms(net):
            for index in range(len(STATISTICS)):
                # a blob that another layer owns is copied where that one is
                if f"{name}/{index}" not in net.shared:
                    found[name][index] = net.params[name][index].detach().cpu().numpy().copy()
    finally:
        net.close()
    return found


def norms(net: Net) -> dict[str, BatchNorm]:
    """The BatchNorm layers of a net by name."""
    return {spec.name: module for spec, module in net.built if isinstance(module, BatchNorm)}


@torch.no_grad()
def gather(net: Net, batches: int, tell: Tell | None = None) -> None:
    """Sets the statistics of a net's BatchNorm layers, also frozen ones, to those of so many batches of its own data.

    Each layer normalises by its batch, as in training, and adds up the batches' means, unbiased variances and number:
    Caffe's blobs with a moving_average_fraction of 1, so that the net tests with the plain means over the batches. All
    else runs as in the test phase: no dropout. Raises ForceregError for a net without BatchNorm and for statistics
    that aren't finite.
    """
    found = norms(net)
    if not found:
        raise ForceregError(f"{net.spec.filename}: the net has no BatchNorm, so there are no statistics to recompute")
    step = (tell or Tell()).steps("gathering statistics", batches)
    with _gathering(net, found):
        for _ in range(batches):
            net()
            step("")
    for name, module in found.items():
        # at the end: sums keep what isn't finite
        if not all(bool(module.weight_blob(one).isfinite().all()) for one in STATISTICS):
            raise ForceregError(f"{net.spec.filename}: the input of layer '{name}' isn't finite on the training data")


@contextmanager
def _gathering(net: Net, found: Mapping[str, BatchNorm]) -> Iterator[None]:
    """All in the test phase but BatchNorm, whose statistics begin at zero; afterwards as before."""
    before = net.training
    settings = [(module, module.training, module.fraction, module.global_stats) for module in found.values()]
    net.eval()
    try:
        for module in found.values():
            module.train()
            # a fraction of 1 adds batches up unweighted; frozen layers gather, too
            module.fraction, module.global_stats = 1.0, False
            for name in STATISTICS:
                module.weight_blob(name).zero_()
        yield
    finally:
        net.train(before)
        # behind net.train, which sets all layers alike
        for module, training, module.fraction, module.global_stats in settings:
            module.train(training)


def _for_training(
    made: LowrankNet, prepared: Prepared, weights: Weights, choices: Mapping[str, Choice], data: TrainingData
) -> NetFile:
    source = data.source(prepared.file)
    if source is prepared.file:
        return net_from_message(made.net, source.name)
    if prepared.folded:
        # as the net was that was cut
        source = net_from_message(fold_bn(source.message, weights)[0], source.name)
    known = {layer.name for layer in source.message.layer}
    firsts = {name: chain.parts[0] for name, chain in prepared.chains.items()}
    for name in (layer.name for layer in made.layers):
        if firsts.get(name, name) not in known:
            raise ForceregError(f"{source.name}: the solver's net lacks layer '{name}' of the net that is decomposed")
    return net_from_message(replace(prepared, file=source).apply(choices).net, source.name)
