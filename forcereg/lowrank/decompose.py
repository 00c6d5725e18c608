"""Decomposing a net: choose layers, choose ranks, factor, rewrite, and account for the cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from forcereg.cost import Shapes, chain_cost, places
from forcereg.errors import ForceregError, UsageError, did_you_mean
from forcereg.lowrank.factor import Factors, Ladder, Rank
from forcereg.lowrank.ranks import Candidate, Criterion, Whole
from forcereg.lowrank.rewrite import Weights, reason_to_skip, rewrite
from forcereg.registry import factorizer
from forcereg.schema.text import NetFile

TYPES = ("Convolution",)
FC_TYPES = ("Convolution", "InnerProduct")


@dataclass(frozen=True)
class Selection:
    """Which layers to decompose and how.

    `methods`: layer name -> method where it isn't `method`. `fc`: InnerProduct layers too. `only`: just these layers;
    `without`: not these. `moments`: layer name -> (groups, K, K), see `Method`. `seed`: for what is random.
    """

    method: str = "pca"
    methods: Mapping[str, str] = field(default_factory=dict)
    fc: bool = False
    only: Collection[str] | None = None
    without: Collection[str] = ()
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0

    def method_of(self, name: str) -> str:
        """The method for the layer `name`."""
        return self.methods.get(name, self.method)


@dataclass(frozen=True)
class LayerReport:
    """What the decomposition did to one layer. MACs are for one image, None where shapes are unknown."""

    name: str
    type: str
    method: str
    full_rank: int
    rank: int
    error: float
    macs_before: int | None
    macs_after: int | None
    params_before: int
    params_after: int
    speedup: float | None


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


@dataclass(frozen=True)
class Prepared:
    """A net whose layers wait for their ranks: nothing is computed twice, whatever is asked of it.

    `file` and `weights`: with the chains of an earlier decomposition merged where they are candidates.
    """

    file: NetFile
    weights: Weights
    candidates: tuple[Candidate, ...]
    skipped: Mapping[str, str]

    def apply(self, choices: Mapping[str, Rank | Whole]) -> Decomposition:
        """Factors and rewrites at the ranks chosen; names that `choices` lacks stay whole. Raises ForceregError."""
        factors: dict[str, Factors] = {}
        skipped = dict(self.skipped)
        for one in self.candidates:
            choice = choices.get(one.name, Whole("no rank was given for it"))
            if isinstance(choice, Whole):
                skipped[one.name] = choice.reason
                continue
            try:
                factors[one.name] = one.ladder.factors(choice)
            except ValueError as error:
                raise ForceregError(f"{one.where}: cannot be decomposed: {error}") from error
        net, blobs = rewrite(self.file.message, self.weights, factors)
        layers = [layer_report(one, factors[one.name]) for one in self.candidates if one.name in factors]
        return Decomposition(net, blobs, tuple(layers), skipped)


def decompose(
    file: NetFile,
    weights: Weights,
    criterion: Criterion,
    shapes: Shapes | None = None,
    selection: Selection | None = None,
) -> Decomposition:
    """Replace the net's layers by chains of smaller ones at the ranks that `criterion` chooses.

    shapes: blob shapes for the MACs (`load.net_shapes`). Raises ForceregError for weights that do not fit
    the net or are not finite, and for ranks out of range.
    """
    prepared = prepare(file, weights, shapes, selection or Selection())
    return prepared.apply(criterion(prepared.candidates))


def prepare(file: NetFile, weights: Weights, shapes: Shapes | None, selection: Selection) -> Prepared:
    """The candidates of a net. Raises ForceregError for weights that don't fit, UsageError for unknown names."""
    chosen, skipped = choose_layers(file, weights, selection)
    candidates = tuple(candidate(file, index, weights, shapes, selection) for index in chosen.values())
    return Prepared(file, weights, candidates, skipped)


def choose_layers(file: NetFile, weights: Weights, selection: Selection) -> tuple[dict[str, int], dict[str, str]]:
    """The layers to decompose, name -> index in the file; and those that cannot be, name -> why.

    Raises UsageError for a name in the selection that the net lacks.
    """
    types = FC_TYPES if selection.fc else TYPES
    known = {layer.name for layer in file.message.layer if layer.type in FC_TYPES}
    named = [*(selection.only or ()), *selection.without, *selection.methods]
    for name in named:
        if name not in known:
            hint = did_you_mean(name, known) or f"; it has {', '.join(sorted(known)) or 'none'}"
            raise UsageError(f"{file.name}: there is no Convolution or InnerProduct layer '{name}'{hint}")
    chosen: dict[str, int] = {}
    skipped: dict[str, str] = {}
    for index, layer in enumerate(file.message.layer):
        name = layer.name
        asked = layer.type in types or (layer.type in FC_TYPES and name in (selection.only or selection.methods))
        if not asked or name in chosen or name in skipped or name in selection.without:
            continue
        if selection.only is not None and name not in selection.only:
            continue
        method = factorizer.get(selection.method_of(name))
        if reason := reason_to_skip(file.message, name, weights, method.slots):
            skipped[name] = reason
        elif reason := method.misfit(weights[name][0].shape[2:]):
            skipped[name] = f"{selection.method_of(name)} {reason}"
        else:
            chosen[name] = index
    return chosen, skipped


def candidate(file: NetFile, index: int, weights: Weights, shapes: Shapes | None, selection: Selection) -> Candidate:
    """One layer with its ladder. Raises ForceregError that opens with where the layer stands."""
    layer = file.message.layer[index]
    blobs = weights[layer.name]
    weight, bias = blobs[0], sum(values.size for at, values in blobs.items() if at > 0)
    fully_connected = layer.type == "InnerProduct"
    param = layer.inner_product_param if fully_connected else layer.convolution_param
    if fully_connected and param.transpose:
        weight = weight.T
    if weight.ndim < (2 if fully_connected else 3) or len(weight) != param.num_output:
        found = f"the snapshot's weights have shape {weight.shape}"
        raise ForceregError(f"{file.where(index)}: {found}, the net's num_output is {param.num_output}")
    method = selection.method_of(layer.name)
    groups = 1 if fully_connected else param.group
    try:
        ladder = Ladder(weight, method, groups, selection.moments.get(layer.name), selection.seed)
    except ValueError as error:
        raise ForceregError(f"{file.where(index)}: cannot be decomposed: {error}") from error
    positions = tuple(places(layer, shapes, [slot.axes for slot in ladder.slots]))
    dense = chain_cost([weight.size], places(layer, shapes, [None]), bias)
    return Candidate(layer.name, layer.type, file.where(index), method, ladder, dense, positions, bias)


def layer_report(one: Candidate, factors: Factors) -> LayerReport:
    """The account of one layer. A pair's speed-up is known without shapes, MACs never are."""
    after = chain_cost([part.weight.numel() for part in factors.parts], one.positions, one.bias)
    speedup: float | None
    if one.dense.macs is not None and after.macs is not None:
        speedup = one.dense.macs / after.macs
    else:  # every part of a pair works at the output's positions
        pair = all(slot.axes is None or not slot.axes for slot in one.ladder.slots[:2]) and len(factors.parts) == 2
        speedup = (one.dense.params - one.bias) / (after.params - one.bias) if pair else None
    return LayerReport(
        name=one.name,
        type=one.type,
        method=one.method,
        full_rank=factors.full_rank,
        rank=factors.rank,
        error=factors.error,
        macs_before=one.dense.macs,
        macs_after=after.macs,
        params_before=one.dense.params,
        params_after=after.params,
        speedup=speedup,
    )
