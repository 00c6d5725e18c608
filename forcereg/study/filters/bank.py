"""A layer's filters, as a snapshot has them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from forcereg.errors import ForceregError, UsageError, did_you_mean
from forcereg.lowrank.merge import Chain, find_chains, occurrences, outer_groups, whole_weight
from forcereg.net.made import stem
from forcereg.net.read import asked_net, in_form, read_weights
from forcereg.schema.text import NetFile
from forcereg.snapshot import NET, ModelFile
from forcereg.study.several import labels_of
from forcereg.system.events import Tell
from forcereg.system.paths import StrPath

ITERATION = re.compile(r"(.+)_iter_(\d{1,10})", re.DOTALL)
"""How a snapshot's name ends: the run's prefix and the iteration."""


@dataclass(frozen=True)
class Bank:
    """The filters of a layer: rows of its `weight` (N, C, *kernel), float64, in `groups` equal blocks.

    `label`: the snapshot's, in pictures. `iteration`: of the one run that all are of, or None.
    """

    label: str
    weight: Tensor
    groups: int = 1
    iteration: int | None = None

    @property
    def blocks(self) -> Tensor:
        """The filters as vectors: (groups, N / groups, K)."""
        return self.weight.reshape(self.groups, len(self.weight) // self.groups, -1)

    def directions(self) -> Tensor:
        """The filters that aren't zero, as vectors of length 1: (M, K)."""
        rows = self.weight.flatten(1)
        norms = rows.norm(dim=1, keepdim=True)
        return (rows / norms)[norms[:, 0] > 0]


def banks(
    snapshots: Sequence[StrPath], layer: str, labels: str | Sequence[str] | None, model: StrPath | None, tell: Tell
) -> list[Bank]:
    """The layer's filters in each snapshot, those of one run in the order of its iterations.

    Raises UsageError for snapshots given twice and labels that don't fit, ForceregError for files that can't be read,
    and for a layer that has no filters.
    """
    if not snapshots:
        raise UsageError("snapshots is empty; give one or several")
    named = labels_of(snapshots, labels)
    iterations = iterations_of(snapshots)
    if iterations and labels is None:
        named = [f"iteration {one:,}" for one in iterations]
    found = []
    for place, (path, name) in enumerate(zip(snapshots, named, strict=True)):
        weight, groups = filters_of(path, layer, model, tell)
        found.append(Bank(name, weight, groups, iterations[place] if iterations else None))
    return sorted(found, key=lambda bank: bank.iteration or 0)


def iterations_of(snapshots: Sequence[StrPath]) -> list[int]:
    """The iterations of snapshots of one run, none if their names don't say so or there is only one."""
    names = [Path(os.path.abspath(path)) for path in snapshots]
    matches = [ITERATION.fullmatch(stem(path)) for path in names]
    prefixes = {(path.parent, match and match[1]) for path, match in zip(names, matches, strict=True)}
    numbers = [int(match[2]) for match in matches if match]
    return numbers if len(prefixes) == 1 and len(set(numbers)) == len(names) > 1 else []


def filters_of(snapshot: StrPath, layer: str, model: StrPath | None, tell: Tell) -> tuple[Tensor, int]:
    """The weight of a layer, (N, C, *kernel) float64, and its groups, 1 where no net tells. Raises ForceregError.

    Of a decomposed net also that of a layer that has become a chain: what the chain computes.
    """
    weights, file = read_weights(snapshot), None
    if model is not None or NET in weights.attrs:
        file = asked_net(model, weights, warn=tell.warn)[0]
        weights = in_form(weights, file, tell.warn)
    return filters_in(weights, file, layer, snapshot)


def filters_in(weights: ModelFile, file: NetFile | None, layer: str, snapshot: StrPath) -> tuple[Tensor, int]:
    """The same of a model in the form of its net, where there is one; `snapshot`: what errors call it."""
    chains = {} if file is None else {one.name: one for one in find_chains(file.message, weights.layers)}
    if layer in chains and file is not None:
        values, groups = composed(chains[layer], file, weights)
    else:
        values, groups = own_weight(snapshot, layer, weights, file, list(chains))
    weight = torch.from_numpy(np.array(values, np.float64))
    if not weight.isfinite().all():
        raise ForceregError(f"{snapshot}: the weights of layer '{layer}' have NaN or infinite entries")
    return weight, groups


def composed(chain: Chain, file: NetFile, weights: ModelFile) -> tuple[np.ndarray, int]:
    """The weight and the groups of the layer that a chain stands for."""
    parts = next(occurrences(file.message, chain))
    values = whole_weight(parts, weights.layers)
    if parts[0].type == "InnerProduct":
        return values.T if parts[0].inner_product_param.transpose else values, 1
    return values, outer_groups(parts)


def own_weight(
    snapshot: StrPath, layer: str, weights: ModelFile, file: NetFile | None, others: Sequence[str]
) -> tuple[np.ndarray, int]:
    """The first blob of a layer as filters, and its groups; `others` could be asked for, too. Raises ForceregError."""
    known = {name: without_ones(blobs[0], weights.legacy) for name, blobs in weights.layers.items() if 0 in blobs}
    known = {name: values for name, values in known.items() if values.ndim > 1 and values.size}
    if layer not in known:
        if layer in weights.layers:
            raise ForceregError(f"{snapshot}: layer '{layer}' has no weights of two axes or more, so no filters")
        names = [*known, *others]
        hint = did_you_mean(layer, names) or f"; layers with filters are {', '.join(names) or 'none'}"
        raise ForceregError(f"{snapshot}: has no layer '{layer}'{hint}")
    values = known[layer]
    spec = file and next((one for one in file.message.layer if one.name == layer), None)
    transposed = layer in weights.transposed or bool(spec and spec.inner_product_param.transpose)
    groups = spec.convolution_param.group if spec else 1
    fits = groups > 0 and len(values) % groups == 0
    return values.T if transposed and values.ndim == 2 else values, groups if fits else 1


def without_ones(values: np.ndarray, legacy: bool) -> np.ndarray:
    """A blob of an old file, which always has four axes, without the leading ones that its layer hasn't."""
    return values.reshape(values.shape[2:]) if legacy and values.ndim == 4 and values.shape[:2] == (1, 1) else values
