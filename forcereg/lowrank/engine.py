"""The engine: weights of layers in, candidates and their factors out, whatever kind of net the layers are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from forcereg.cost import Cost, Extent, chain_cost, positions
from forcereg.errors import ForceregError
from forcereg.lowrank.account import Accounted, LayerReport, layer_report
from forcereg.lowrank.factor import Factors, Rank
from forcereg.lowrank.ladder import Ladder
from forcereg.lowrank.ranks import Candidate, Whole


@dataclass(frozen=True, eq=False)
class LayerWeight:
    """A layer that could be decomposed: all that the engine asks of it.

    type: "Convolution" or "InnerProduct", or a class of torch.nn. where: opens errors. weight: Tensor or array (N, C
    / groups, *kernel), for an InnerProduct (N, C). bias: its number of values. extents: where the layer works, for
    the MACs; None: unknown. limit: the rank that the weight has by construction, None: full. now: what stands in its
    place costs, where that isn't the layer itself.
    """

    name: str
    type: str
    where: str
    weight: Any
    bias: int = 0
    groups: int = 1
    extents: Sequence[Extent] | None = None
    limit: int | None = None
    now: Cost | None = None


def candidate(
    layer: LayerWeight, method: str = "pca", moments: Any = None, seed: int = 0, multiple: int = 1
) -> Candidate:
    """A layer with the method's ladder of ranks; the rest as for `Ladder`.

    Raises ForceregError, which opens with where the layer stands, for a weight that the method can't take.
    """
    try:
        ladder = Ladder(layer.weight, method, layer.groups, moments, seed, layer.limit, multiple)
    except ValueError as error:
        raise ForceregError(f"{layer.where}: cannot be decomposed: {error}") from error
    places = tuple(positions(layer.extents, [slot.axes for slot in ladder.slots]))
    # a chain of an earlier decomposition is cheaper than the layer that it stands for: a new one has to beat it
    dense = layer.now or chain_cost([prod(layer.weight.shape)], positions(layer.extents, [None]), layer.bias)
    return Candidate(layer.name, layer.type, layer.where, method, ladder, dense, places, layer.bias)


@dataclass(frozen=True)
class Factored(Accounted):
    """The layers that are replaced: name -> factors, and a report of each; `skipped`: name -> why it stays whole."""

    factors: dict[str, Factors]
    layers: tuple[LayerReport, ...]
    skipped: dict[str, str]


def factored(candidates: Sequence[Candidate], choices: Mapping[str, Rank | Whole]) -> Factored:
    """The candidates at the ranks chosen; those that `choices` lacks stay whole.

    Raises ForceregError for a rank out of range.
    """
    made = Factored({}, (), {})
    for one in candidates:
        choice = choices.get(one.name, Whole("no rank was given for it"))
        if isinstance(choice, Whole):
            made.skipped[one.name] = choice.reason
            continue
        try:
            found, rounding = one.ladder.factors(choice), one.ladder.rounding(choice)
        except ValueError as error:
            raise ForceregError(f"{one.where}: cannot be decomposed: {error}") from error
        made.factors[one.name] = found
        made = replace(made, layers=(*made.layers, layer_report(one, found, rounding)))
    return made
