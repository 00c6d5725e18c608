"""A model whose layers wait for their ranks: what the engine is told of each, and the model that comes of a choice."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from forcereg.cost import Cost, chain_cost, positions
from forcereg.errors import ForceregError, UsageError
from forcereg.lowrank.config import LayerRules
from forcereg.lowrank.engine import Factored, LayerWeight, candidate, factored
from forcereg.lowrank.kinds import factorizer
from forcereg.lowrank.ladder import Watched
from forcereg.lowrank.ranks import Candidate, Choice
from forcereg.nn import fold
from forcereg.nn.kinds import (
    CONVS,
    KINDS,
    Standing,
    chain,
    filters,
    groups_of,
    is_transposed,
    no_plain_weight,
    oddity,
    stands_for,
)
from forcereg.nn.select import Layers, bare, picked
from forcereg.nn.trace import Seen, Trace, trace

MIXED = "mixed"
"""The method that says: each layer by its own."""
READS_WEIGHTS: tuple[Any, ...] = (nn.TransformerEncoderLayer, nn.MultiheadAttention)
"""Modules that read the weights of the layers in them."""


class Site(NamedTuple):
    """A layer that could be decomposed: the module in the model, and the layer that it is or stands for."""

    module: nn.Module
    layer: Any
    standing: Standing | None


@dataclass(frozen=True)
class Asked:
    """Which layers, and how. `moments`: gives those of the inputs of sites, by name, for a data-aware method."""

    method: str = "pca"
    layers: Layers | None = None
    fc: bool = False
    multiple: int = 1
    seed: int = 0
    fold_bn: bool = False
    rules: LayerRules | None = None
    moments: Callable[[nn.Module, Mapping[str, Site]], Mapping[str, Tensor]] | None = None

    def method_of(self, name: str) -> str:
        """The method for a layer."""
        return self.method if self.rules is None else self.rules.methods.get(name, self.method)


@dataclass(frozen=True)
class Prepared:
    """A copy of a model. `before`: its cost as it was, `whole`: as it is, with BatchNorms folded (layer -> norm)."""

    model: nn.Module
    sites: Mapping[str, Site]
    candidates: tuple[Candidate, ...]
    skipped: Mapping[str, str]
    trace: Trace
    before: Cost
    whole: Cost
    folded: Mapping[str, str]

    def apply(self, choices: Mapping[str, Choice]) -> tuple[nn.Module, Factored, dict[str, nn.Module]]:
        """A new model at these ranks, what was done, and the chains by name. Raises ForceregError."""
        made = factored(self.candidates, choices)
        memo: dict[int, Any] = {}
        model, chains = copy.deepcopy(self.model, memo), dict[str, nn.Module]()
        for name, factors in made.factors.items():
            site = self.sites[name]
            chains[name] = chain(site.layer, factors)
            model = fold.replace(model, memo[id(site.module)], chains[name])
        return model, replace(made, skipped={**self.skipped, **made.skipped}), chains

    def watched(self, tell: Callable[[str], None]) -> Prepared:
        """The same, which tells of each layer's work when it is done."""

        def layer(one: Candidate) -> Candidate:
            return replace(one, ladder=Watched(one.ladder, lambda text: tell(f"{one.name}: {text}")))

        return replace(self, candidates=tuple(map(layer, self.candidates)))


def prepare(model: nn.Module, example: Any, asked: Asked) -> Prepared:
    """The candidates of a copy of the model; chains of an earlier decomposition are the layers that they stand for.

    Raises UsageError for unknown layers and methods, ForceregError if the model can't be copied or doesn't run.
    """
    for method in {asked.method} - {MIXED}:
        factorizer.get(method)
    own = copied(model)
    sites = sites_of(own)
    seen = trace(own, example, {name: site.module for name, site in sites.items()})
    before = Cost(seen.macs, learned(own))
    folded: Mapping[str, str] = {}
    if asked.fold_bn:
        parts = {name: one for name, one in own.named_modules() if type(one) in KINDS}
        folded = fold.fold(own, trace(own, example, parts))
        sites = sites_of(own)
    chosen, skipped = chosen_of(own, sites, seen.seen, asked)
    moments = asked.moments(own, chosen) if asked.moments is not None else {}
    candidates = [
        candidate(described(name, site, seen.seen[name]), asked.method_of(name), moments.get(name), asked.seed,
                  asked.multiple)
        for name, site in chosen.items()
    ]  # fmt: skip
    return Prepared(own, sites, tuple(candidates), skipped, seen, before, Cost(seen.macs, learned(own)), folded)


def copied(model: Any) -> nn.Module:
    """A deep copy of a model, or of what DistributedDataParallel and torch.compile wrap. Raises ForceregError."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    try:
        return copy.deepcopy(bare(model))
    except Exception as error:  # whatever is in it
        problems = [(name, no_plain_weight(one)) for name, one in model.named_modules() if isinstance(one, KINDS)]
        why = next((f"layer '{name}': {problem}" for name, problem in problems if problem), str(error))
        raise ForceregError(f"{type(model).__name__} can't be copied: {why}") from error


def learned(model: nn.Module) -> int:
    """Values of all parameters, each once."""
    return sum(one.numel() for one in model.parameters())


def sites_of(model: nn.Module) -> dict[str, Site]:
    """All layers with filters, and all chains, by the first name of each."""
    found: dict[str, Site] = {}
    within: set[int] = set()
    for name, module in model.named_modules():
        name = name or type(module).__name__
        if (standing := stands_for(module)) is not None:
            within |= {id(part) for part in module.modules()}
            found[name] = Site(module, standing.layer, standing)
        elif isinstance(module, KINDS) and id(module) not in within:
            found[name] = Site(module, module, None)
    return found


def chosen_of(
    model: nn.Module, sites: Mapping[str, Site], seen: Mapping[str, Seen], asked: Asked
) -> tuple[dict[str, Site], dict[str, str]]:
    """The sites to decompose, and name -> why another that was meant stays whole."""
    known = {name: site.layer for name, site in sites.items()}
    meant = picked(asked.layers, known, KINDS if asked.fc else CONVS)
    if asked.rules is not None:
        named = picked(list(asked.rules.layers), known, KINDS)
        if without := [name for name in named if asked.method_of(name) == MIXED]:
            raise UsageError(f"{asked.rules.name}: layer '{without[0]}' has no method; method=\"mixed\" needs one")
        meant = {name: one for name, one in named.items() if asked.layers is None or name in meant}
    elif asked.method == MIXED:
        raise UsageError('method "mixed" takes each layer\'s method from a rule RankConfig; give that')
    readers = {id(one) for module in model.modules() if isinstance(module, READS_WEIGHTS) for one in module.children()}
    users = fold.shared(model)
    skipped = {}
    for name in meant:
        reason = why_whole(sites[name], seen[name], users, asked, name)
        if id(sites[name].module) in readers:
            reason = "the module that it is in reads its weight"
        if reason:
            skipped[name] = reason
    return {name: sites[name] for name in meant if name not in skipped}, skipped


def why_whole(site: Site, seen: Seen, users: Mapping[int, Collection[str]], asked: Asked, name: str) -> str:
    """Why a layer that was meant stays whole; '' if it needn't."""
    if site.standing is None and (problem := oddity(site.layer)):
        return problem
    tied = [users[id(one)] for one in site.module.parameters() if id(one) in users]
    if tied:
        return f"its weights are shared with {', '.join(repr(one) for one in tied[0] if one != name)}"
    if seen.problem or not seen.extents:
        return seen.problem or "it never ran on the example"
    method = factorizer.get(asked.method_of(name))
    if problem := method.misfit(site.layer.weight.shape[2:]):
        return f"{asked.method_of(name)} {problem}"
    if asked.moments is not None and is_transposed(site.layer):
        return "responses are known of convolutions and Linear layers only, not of transposed ones"
    return ""


def described(name: str, site: Site, seen: Seen) -> LayerWeight:
    """What the engine is told of a layer."""
    layer, now = site.layer, None
    module: Any = site.module
    bias = 0 if layer.bias is None else layer.bias.numel()
    weight = filters(layer) if site.standing is None else site.standing.weight
    if site.standing is not None:
        places = positions(seen.extents, [slot.axes for slot in site.standing.slots])
        now = chain_cost([part.weight.numel() for part in module], places, bias)
    # float64: parts are rounded once, to the layer's dtype
    return LayerWeight(
        name, type(layer).__name__, f"layer '{name}'", weight.double().cpu(), bias, groups_of(layer), seen.extents,
        None if site.standing is None else site.standing.limit, now,
    )  # fmt: skip
