"""Decomposing a net of the prototxt kind: what the engine is told of its layers, and the net that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from torch import Tensor

from forcereg.cost import Cost, Shapes, chain_cost, extents, places
from forcereg.errors import ForceregError, UsageError, did_you_mean
from forcereg.lowrank.account import Accounted, LayerReport
from forcereg.lowrank.engine import LayerWeight, candidate, factored
from forcereg.lowrank.factor import Rank
from forcereg.lowrank.fold import fold_bn
from forcereg.lowrank.kinds import factorizer
from forcereg.lowrank.ladder import Watched
from forcereg.lowrank.merge import Chain, find_chains, merge
from forcereg.lowrank.ranks import Candidate, Criterion, Whole
from forcereg.lowrank.rewrite import Weights, reason_to_skip, rewrite
from forcereg.schema import TEST
from forcereg.schema.rules import included
from forcereg.schema.spec import costed_state
from forcereg.schema.text import NetFile, net_from_message

# as in the paper; InnerProducts by --fc or by name
TYPES = ("Convolution",)
FC_TYPES = ("Convolution", "InnerProduct")

Named = Collection[str]
"""Names of layers, or patterns of them as `fnmatch` has them: conv*, conv[12]."""
Picked = Named | Callable[[LayerWeight], bool]
"""Layers by name, by pattern, or by what is known of each."""


@dataclass(frozen=True)
class Selection:
    """Which layers to decompose and how.

    `methods`: layer name -> method where it isn't `method`. `fc`: InnerProduct layers too. `only`: just these layers,
    of either type; `without`: not these. `moments`: layer name -> (groups, K, K), see `Method`. `seed`: of what is
    random. `fold_bn`: BatchNorm and Scale go into the layers before them first. `state`: of the net that costs are of,
    whose layers alone are decomposed; None: `spec.costed_state`. `multiple`: the ranks of a group are multiples of it,
    or full.
    """

    method: str = "pca"
    methods: Mapping[str, str] = field(default_factory=dict)
    fc: bool = False
    only: Picked | None = None
    without: Named = ()
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0
    fold_bn: bool = False
    state: Any = None
    multiple: int = 1

    def method_of(self, name: str) -> str:
        """The method for the layer `name`."""
        return self.methods.get(name, self.method)


@dataclass(frozen=True)
class LowrankNet(Accounted):
    """The new net (NetParameter) and weights, and what was done; `skipped`: layer name -> why it is whole."""

    net: Any
    weights: dict[str, dict[int, np.ndarray]]
    layers: tuple[LayerReport, ...]
    skipped: dict[str, str]


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

    def apply(self, choices: Mapping[str, Rank | Whole]) -> LowrankNet:
        """Factors and rewrites at the ranks chosen; names that `choices` lacks stay whole. Raises ForceregError."""
        made = factored(self.candidates, choices)
        # those chains alone that are replaced: the others stay chains
        merged = merge(
            self.file.message, self.weights, [self.chains[one] for one in made.factors if one in self.chains]
        )
        net, blobs = rewrite(*merged, made.factors)
        return LowrankNet(net, blobs, made.layers, {**self.skipped, **made.skipped})


def decompose(
    file: NetFile,
    weights: Weights,
    criterion: Criterion,
    shapes: Shapes | None = None,
    selection: Selection | None = None,
) -> LowrankNet:
    """Replace the net's layers by chains of smaller ones at the ranks that `criterion` chooses.

    shapes: blob shapes for the MACs (`net.load.net_shapes`). A layer that the TEST net is without costs nothing where
    the net is deployed, and stays whole. Raises ForceregError for weights that do not fit the net or are not finite,
    and for ranks out of range.
    """
    prepared = prepare(file, weights, shapes, selection or Selection())
    return prepared.apply(criterion(prepared.candidates))


def prepare(file: NetFile, weights: Weights, shapes: Shapes | None, selection: Selection) -> Prepared:
    """The candidates of a net, chains of an earlier decomposition as the one layer that they stand for.

    Raises ForceregError for weights that don't fit the net, UsageError for unknown names.
    """
    net, state = file.message, selection.state or costed_state(file)
    folded: Mapping[str, Sequence[str]] = {}
    if selection.fold_bn:  # first: the last part of a chain takes its BatchNorm in before the chain is one layer
        net, weights, folded = fold_bn(net, weights)
    whole_file = net_from_message(net, file.name) if folded else file
    chains = {chain.name: chain for chain in find_chains(net, weights)}
    merged, whole = merge(net, weights, list(chains.values()))
    # of the file as the user has it: what was folded or merged has no lines
    where = places_of(file, chains)

    def described(layer: Any) -> LayerWeight:
        found = described_layer(layer, where[layer.name], whole[layer.name], shapes)
        return of_chain(found, chains[layer.name], layer, weights, shapes) if layer.name in chains else found

    # on the merged net: names in the selection are of whole layers, not of a chain's parts
    chosen, skipped = choose_layers(file.name, merged, whole, replace(selection, state=state), described)
    candidates = [
        candidate(
            described(layer),
            selection.method_of(layer.name),
            selection.moments.get(layer.name),
            selection.seed,
            selection.multiple,
        )
        for layer in chosen
    ]
    return Prepared(whole_file, weights, tuple(candidates), skipped, chains, folded, shapes, state)


def places_of(file: NetFile, chains: Mapping[str, Chain]) -> dict[str, str]:
    """Layer name -> where it stands in the file, of a chain where its first part does."""
    first = {chain.parts[0]: name for name, chain in chains.items()}
    where: dict[str, str] = {}
    for index, layer in enumerate(file.message.layer):
        # the first of two for different phases
        where.setdefault(first.get(layer.name, layer.name), file.where(index))
    return where


# -- what the engine is told of a layer


def described_layer(layer: Any, where: str, blobs: Mapping[int, np.ndarray], shapes: Shapes | None) -> LayerWeight:
    """A Convolution or InnerProduct LayerParameter with its blobs. Raises ForceregError for blobs that don't fit."""
    weight, bias = blobs[0], sum(values.size for at, values in blobs.items() if at > 0)
    fully_connected = layer.type == "InnerProduct"
    param = layer.inner_product_param if fully_connected else layer.convolution_param
    if fully_connected and param.transpose:
        # Caffe's transpose keeps inputs in rows; the engine's rows are outputs
        weight = weight.T
    if weight.ndim < (2 if fully_connected else 3) or len(weight) != param.num_output:
        found = f"the snapshot's weights have shape {weight.shape}"
        raise ForceregError(f"{where}: {found}, the net's num_output is {param.num_output}")
    groups = 1 if fully_connected else param.group
    return LayerWeight(layer.name, layer.type, where, weight, bias, groups, extents(layer, shapes))


def of_chain(found: LayerWeight, chain: Chain, layer: Any, weights: Weights, shapes: Shapes | None) -> LayerWeight:
    """The layer that a chain stands for, with the chain's cost, and the rank that it has left."""
    return replace(found, limit=chain.limit(weights), now=cost_now(chain, layer, weights, shapes, found.bias))


def cost_now(chain: Chain, layer: Any, weights: Weights, shapes: Shapes | None, bias: int) -> Cost:
    """What the chain in place of `layer` costs before it is decomposed again."""
    positions = places(layer, shapes, [slot.axes for slot in chain.slots])
    return chain_cost([weights[part][0].size for part in chain.parts], positions, bias)


# -- which layers


def choose_layers(
    filename: str, net: Any, weights: Weights, selection: Selection, describe: Callable[[Any], LayerWeight]
) -> tuple[list[Any], dict[str, str]]:
    """The layers to decompose, and those that cannot be, name -> why; `describe`: what `Selection.only` may be asked.

    Raises UsageError for a name in the selection that the net lacks.
    """
    types = FC_TYPES if selection.fc else TYPES
    # the first of a name: a net for both phases may have two
    deployed = {layer.name: layer for layer in reversed(net.layer) if included(layer, selection.state)}
    # as the net has it that costs are of, where the phases' layers of a name differ
    known = {layer.name: deployed.get(layer.name, layer) for layer in net.layer if layer.type in FC_TYPES}
    only: Collection[str] | None
    if callable(selection.only):
        # a predicate is asked about layers that have a weight to show
        of_file = [layer for layer in known.values() if layer.type in FC_TYPES and 0 in weights.get(layer.name, {})]
        only = [layer.name for layer in of_file if selection.only(describe(layer))]
        if of_file and not only:
            names = ", ".join(layer.name for layer in of_file)
            raise UsageError(f"{filename}: nothing to decompose: the function that picks layers takes none of {names}")
    else:
        only = None if selection.only is None else named(selection.only, known, filename)
    without = named(selection.without, known, filename)
    # for its error: a method for a name that nobody has is a slip
    named(selection.methods, known, filename)
    chosen: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for layer in net.layer:
        name = layer.name
        # only where all layers were meant: who names layers isn't told of others
        if layer.type == "Deconvolution" and only is None and name not in without:
            if weights.get(name):
                skipped[name] = "it is a Deconvolution; Convolution and InnerProduct layers are decomposed"
            continue
        asked = layer.type in types or (layer.type in FC_TYPES and name in (only or selection.methods))
        # a name may stand twice, once for each phase: the first says it for both
        if not asked or name in chosen or name in skipped or name in without:
            continue
        if only is not None and name not in only:
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


def named(asked: Named, known: Collection[str], filename: str) -> list[str]:
    """The names asked for, patterns as those that they match. Raises UsageError for one that is nobody's."""
    found: list[str] = []
    for name in asked:
        if not (matches := matching(name, known)):
            hint = did_you_mean(name, known) or f"; it has {', '.join(sorted(known)) or 'none'}"
            raise UsageError(f"{filename}: there is no Convolution or InnerProduct layer '{name}'{hint}")
        found += matches
    return found


def matching(name: str, known: Collection[str]) -> list[str]:
    """The layer of that name, or those that it is a pattern of."""
    # itself first: a layer's name may hold brackets, which mean a set in a pattern
    return [name] if name in known else [one for one in known if fnmatchcase(one, name)]
