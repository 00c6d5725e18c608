"""Decomposing a net: choose layers, choose ranks, factor, rewrite, and account for the cost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from forcereg.cost import Cost, Shapes, chain_cost, places
from forcereg.errors import ForceregError, UsageError, did_you_mean
from forcereg.lowrank.factor import Factors, Rank
from forcereg.lowrank.fold import fold_bn
from forcereg.lowrank.ladder import Ladder, Watched
from forcereg.lowrank.merge import Chain, find_chains, merge
from forcereg.lowrank.ranks import Candidate, Criterion, Whole
from forcereg.lowrank.rewrite import Weights, reason_to_skip, rewrite
from forcereg.net.load import costed_state
from forcereg.registry import factorizer
from forcereg.schema import TEST
from forcereg.schema.rules import included
from forcereg.schema.text import NetFile, net_from_message

TYPES = ("Convolution",)
FC_TYPES = ("Convolution", "InnerProduct")


@dataclass(frozen=True)
class Selection:
    """Which layers to decompose and how.

    `methods`: layer name -> method where it isn't `method`. `fc`: InnerProduct layers too. `only`: just these layers;
    `without`: not these. `moments`: layer name -> (groups, K, K), see `Method`. `seed`: for what is random.
    `fold_bn`: BatchNorm and Scale go into the layers before them first. `state`: of the net that costs are of, whose
    layers alone are decomposed; None: `load.costed_state`. `multiple`: the ranks of a group are multiples of it, or
    full.
    """

    method: str = "pca"
    methods: Mapping[str, str] = field(default_factory=dict)
    fc: bool = False
    only: Collection[str] | None = None
    without: Collection[str] = ()
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0
    fold_bn: bool = False
    state: Any = None
    multiple: int = 1

    def method_of(self, name: str) -> str:
        """The method for the layer `name`."""
        return self.methods.get(name, self.method)


@dataclass(frozen=True)
class LayerReport:
    """What the decomposition did to one layer. MACs are for one image, None where shapes are unknown.

    `ranks` and `full_ranks`: of a method of several ranks all of them (tucker2: outputs, inputs), of which `rank` and
    `full_rank` are the first. `widths`: outputs of each layer of the chain but the last. `cheaper_up_to`: the largest
    rank at which the chain costs less than the layer did, 0 if there is none; of several those at equal shares of the
    full ones. `rounding`: which rank was asked for, where another had to be taken; or empty.
    """

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
    widths: tuple[int, ...]
    cheaper_up_to: Rank
    ranks: tuple[int, ...] = ()
    full_ranks: tuple[int, ...] = ()
    rounding: str = ""


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

    `file` and `weights`: before any layer is replaced, BatchNorms folded. `chains`: name of a candidate -> the chain of
    an earlier decomposition that it stands for. `folded`: layer name -> the layers folded into it. `shapes`: of the
    blobs of the net that costs are of, None where unknown; `state`: that net's.
    """

    file: NetFile
    weights: Weights
    candidates: tuple[Candidate, ...]
    skipped: Mapping[str, str]
    chains: Mapping[str, Chain] = field(default_factory=dict)
    folded: Mapping[str, Sequence[str]] = field(default_factory=dict)
    shapes: Shapes | None = None
    state: Any = None

    def watched(self, tell: Callable[[str], None]) -> Prepared:
        """The same, which tells of each layer's work when it is done, two steps a layer at most."""

        def layer(one: Candidate) -> Candidate:
            return replace(one, ladder=Watched(one.ladder, lambda text: tell(f"{one.name}: {text}")))

        return replace(self, candidates=tuple(map(layer, self.candidates)))

    def apply(self, choices: Mapping[str, Rank | Whole]) -> Decomposition:
        """Factors and rewrites at the ranks chosen; names that `choices` lacks stay whole. Raises ForceregError."""
        factors: dict[str, tuple[Factors, str]] = {}
        skipped = dict(self.skipped)
        for one in self.candidates:
            choice = choices.get(one.name, Whole("no rank was given for it"))
            if isinstance(choice, Whole):
                skipped[one.name] = choice.reason
                continue
            try:
                factors[one.name] = one.ladder.factors(choice), one.ladder.rounding(choice)
            except ValueError as error:
                raise ForceregError(f"{one.where}: cannot be decomposed: {error}") from error
        merged = merge(self.file.message, self.weights, [self.chains[name] for name in factors if name in self.chains])
        net, blobs = rewrite(*merged, {name: found for name, (found, _) in factors.items()})
        layers = [layer_report(one, *factors[one.name]) for one in self.candidates if one.name in factors]
        return Decomposition(net, blobs, tuple(layers), skipped)


def decompose(
    file: NetFile,
    weights: Weights,
    criterion: Criterion,
    shapes: Shapes | None = None,
    selection: Selection | None = None,
) -> Decomposition:
    """Replace the net's layers by chains of smaller ones at the ranks that `criterion` chooses.

    shapes: blob shapes for the MACs (`load.net_shapes`). A layer that the TEST net is without costs nothing where the
    net is deployed, and stays whole. Raises ForceregError for weights that do not fit
    the net or are not finite, and for ranks out of range.
    """
    prepared = prepare(file, weights, shapes, selection or Selection())
    return prepared.apply(criterion(prepared.candidates))


def prepare(file: NetFile, weights: Weights, shapes: Shapes | None, selection: Selection) -> Prepared:
    """The candidates of a net, chains of an earlier decomposition as the one layer that they stand for.

    Raises ForceregError for weights that don't fit the net, UsageError for unknown names.
    """
    net, state = file.message, selection.state or costed_state(file)
    folded: Mapping[str, Sequence[str]] = {}
    if selection.fold_bn:
        net, weights, folded = fold_bn(net, weights)
    whole_file = net_from_message(net, file.name) if folded else file
    chains = {chain.name: chain for chain in find_chains(net, weights)}
    merged, whole = merge(net, weights, list(chains.values()))
    chosen, skipped = choose_layers(file.name, merged, whole, replace(selection, state=state))
    first = {chain.parts[0]: name for name, chain in chains.items()}
    where: dict[str, str] = {}
    for index, layer in enumerate(file.message.layer):
        where.setdefault(first.get(layer.name, layer.name), file.where(index))
    candidates = []
    for layer in chosen:
        one = candidate(layer, where[layer.name], whole[layer.name], shapes, selection, _limit(layer, chains, weights))
        if layer.name in chains:
            one = replace(one, dense=cost_now(chains[layer.name], layer, weights, shapes, one.bias))
        candidates.append(one)
    return Prepared(whole_file, weights, tuple(candidates), skipped, chains, folded, shapes, state)


def _limit(layer: Any, chains: Mapping[str, Chain], weights: Weights) -> int | None:
    return chains[layer.name].limit(weights) if layer.name in chains else None


def cost_now(chain: Chain, layer: Any, weights: Weights, shapes: Shapes | None, bias: int) -> Cost:
    """What the chain in place of `layer` costs before it is decomposed again."""
    positions = places(layer, shapes, [slot.axes for slot in chain.slots])
    return chain_cost([weights[part][0].size for part in chain.parts], positions, bias)


def choose_layers(filename: str, net: Any, weights: Weights, selection: Selection) -> tuple[list[Any], dict[str, str]]:
    """The layers to decompose, and those that cannot be, name -> why.

    Raises UsageError for a name in the selection that the net lacks.
    """
    types = FC_TYPES if selection.fc else TYPES
    known = {layer.name for layer in net.layer if layer.type in FC_TYPES}
    for name in [*(selection.only or ()), *selection.without, *selection.methods]:
        if name not in known:
            hint = did_you_mean(name, known) or f"; it has {', '.join(sorted(known)) or 'none'}"
            raise UsageError(f"{filename}: there is no Convolution or InnerProduct layer '{name}'{hint}")
    deployed = {layer.name: layer for layer in reversed(net.layer) if included(layer, selection.state)}
    chosen: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for layer in net.layer:
        name = layer.name
        if layer.type == "Deconvolution" and selection.only is None and name not in selection.without:
            if weights.get(name):
                skipped[name] = "it is a Deconvolution; Convolution and InnerProduct layers are decomposed"
            continue
        asked = layer.type in types or (layer.type in FC_TYPES and name in (selection.only or selection.methods))
        if not asked or name in chosen or name in skipped or name in selection.without:
            continue
        if selection.only is not None and name not in selection.only:
            continue
        method = factorizer.get(selection.method_of(name))
        if reason := reason_to_skip(net, name, weights, method.slots):
            skipped[name] = reason
        elif reason := method.misfit(weights[name][0].shape[2:]):
            skipped[name] = f"{selection.method_of(name)} {reason}"
        elif name not in deployed:
            phase = "TEST" if selection.state.phase == TEST else "TRAIN"
            skipped[name] = f"the {phase} net is without it, and costs are those of that net"
        else:
            chosen[name] = deployed[name]
    return list(chosen.values()), skipped


def candidate(
    layer: Any,
    where: str,
    blobs: Mapping[int, np.ndarray],
    shapes: Shapes | None,
    selection: Selection,
    limit: int | None = None,
) -> Candidate:
    """One layer with its ladder. Raises ForceregError that opens with `where` the layer stands."""
    weight, bias = blobs[0], sum(values.size for at, values in blobs.items() if at > 0)
    fully_connected = layer.type == "InnerProduct"
    param = layer.inner_product_param if fully_connected else layer.convolution_param
    if fully_connected and param.transpose:
        weight = weight.T
    if weight.ndim < (2 if fully_connected else 3) or len(weight) != param.num_output:
        found = f"the snapshot's weights have shape {weight.shape}"
        raise ForceregError(f"{where}: {found}, the net's num_output is {param.num_output}")
    method = selection.method_of(layer.name)
    groups = 1 if fully_connected else param.group
    try:
        moments = selection.moments.get(layer.name)
        ladder = Ladder(weight, method, groups, moments, selection.seed, limit, selection.multiple)
    except ValueError as error:
        raise ForceregError(f"{where}: cannot be decomposed: {error}") from error
    positions = tuple(places(layer, shapes, [slot.axes for slot in ladder.slots]))
    dense = chain_cost([weight.size], places(layer, shapes, [None]), bias)
    return Candidate(layer.name, layer.type, where, method, ladder, dense, positions, bias)


def layer_report(one: Candidate, factors: Factors, rounding: str = "") -> LayerReport:
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
        widths=tuple(len(part.weight) for part in factors.parts[:-1]),
        cheaper_up_to=one.cheaper_up_to,
        ranks=factors.ranks,
        full_ranks=factors.full_ranks,
        rounding=rounding,
    )
