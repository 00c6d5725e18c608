"""Decomposing a net: choose layers, choose ranks, factor, rewrite, and account for the cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from forcereg.errors import ForceregError
from forcereg.lowrank import cost
from forcereg.lowrank.factor import Factors
from forcereg.lowrank.ranks import Criterion
from forcereg.lowrank.rewrite import Weights, reason_to_skip, rewrite
from forcereg.registry import factorizer
from forcereg.schema.text import NetFile


@dataclass(frozen=True)
class LayerReport:
    """What the decomposition did to one layer. MACs are for one image, None where shapes are unknown."""

    name: str
    type: str
    full_rank: int
    rank: int
    error: float
    macs_before: int | None
    macs_after: int | None
    speedup: float


@dataclass(frozen=True)
class Totals:
    """Sums over the decomposed layers; None where shapes are unknown or no layer was decomposed."""

    macs_before: int | None
    macs_after: int | None
    speedup: float | None


@dataclass(frozen=True)
class Decomposition:
    """The new net (NetParameter) and weights, and what was done; `skipped`: layer name -> why it is whole."""

    net: Any
    weights: dict[str, dict[int, np.ndarray]]
    layers: tuple[LayerReport, ...]
    skipped: dict[str, str]

    @property
    def totals(self) -> Totals:
        """The cost of all decomposed layers together."""
        before = [layer.macs_before for layer in self.layers if layer.macs_before is not None]
        after = [layer.macs_after for layer in self.layers if layer.macs_after is not None]
        if not self.layers or len(before) < len(self.layers):
            return Totals(None, None, None)
        return Totals(sum(before), sum(after), sum(before) / sum(after))

    def report(self) -> dict[str, Any]:
        """Layers, totals and skipped layers as plain data, for JSON."""
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "totals": asdict(self.totals),
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped.items()],
        }


def decompose(
    file: NetFile,
    weights: Weights,
    criterion: Criterion,
    shapes: cost.Shapes | None = None,
    method: str = "pca",
) -> Decomposition:
    """Replace the net's convolutions by low-rank pairs at the ranks that `criterion` chooses.

    shapes: blob shapes for the MACs (`cost.net_shapes`). Raises ForceregError for weights that do not fit
    the net or are not finite, and for ranks out of range.
    """
    chosen, skipped = choose_layers(file, weights)
    factors = {
        name: factor(file, index, weights, options, method)
        for (name, index), options in zip(chosen.items(), criterion(tuple(chosen)).values(), strict=True)
    }
    net, blobs = rewrite(file.message, weights, factors)
    layers = [layer_report(file.message.layer[chosen[name]], found, shapes) for name, found in factors.items()]
    return Decomposition(net, blobs, tuple(layers), skipped)


def choose_layers(file: NetFile, weights: Weights) -> tuple[dict[str, int], dict[str, str]]:
    """The convolutions that can be split, name -> index in the file; and those that cannot, name -> why."""
    chosen: dict[str, int] = {}
    skipped: dict[str, str] = {}
    for index, layer in enumerate(file.message.layer):
        if layer.type != "Convolution" or layer.name in chosen or layer.name in skipped:
            continue
        if reason := reason_to_skip(file.message, layer.name, weights):
            skipped[layer.name] = reason
        else:
            chosen[layer.name] = index
    return chosen, skipped


def factor(file: NetFile, index: int, weights: Weights, options: Mapping[str, Any], method: str) -> Factors:
    """The factors of one layer's weight. Raises ForceregError that opens with where the layer stands."""
    layer = file.message.layer[index]
    weight, param = weights[layer.name][0], layer.convolution_param
    if weight.ndim < 3 or len(weight) != param.num_output:
        found = f"the snapshot's weights have shape {weight.shape}"
        raise ForceregError(f"{file.where(index)}: {found}, the net's num_output is {param.num_output}")
    try:
        return factorizer.get(method)(weight, groups=param.group, **options)
    except ValueError as error:
        raise ForceregError(f"{file.where(index)}: cannot be decomposed: {error}") from error


def layer_report(layer: Any, factors: Factors, shapes: cost.Shapes | None) -> LayerReport:
    """The account of one layer; its speed-up is known without shapes, its MACs are not."""
    rank, groups = factors.rank, factors.groups
    channels, kernel = factors.basis.shape[1], factors.basis[0, 0].numel()
    size = (len(factors.combine), channels, kernel, 1)
    places = cost.positions(layer, shapes)
    return LayerReport(
        name=layer.name,
        type=layer.type,
        full_rank=factors.full_rank,
        rank=rank,
        error=factors.error,
        macs_before=_scaled(places, cost.dense_macs(*size)),
        macs_after=_scaled(places, cost.lowrank_macs(*size, groups, rank)),
        speedup=cost.lowrank_speedup(*size, groups, rank),
    )


def _scaled(places: int | None, macs: float) -> int | None:
    return None if places is None else round(places * macs)
