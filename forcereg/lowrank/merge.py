"""Chains that an earlier decomposition made, composed into the one layer that they stand for (pure functions).

So that decomposing a decomposed net gives one shorter chain and not a chain of chains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from math import gcd
from typing import Any

import numpy as np
import torch

from forcereg.lowrank.factor import Slot, compose, composed, rank_limit
from forcereg.lowrank.kinds import factorizer
from forcereg.lowrank.rewrite import AXES, NEUTRAL, Weights, part_name, per_axis, set_field
from forcereg.schema import NetParameter


@dataclass(frozen=True)
class Chain:
    """Layers in a row, and the name of the layer in whose place they stand."""

    name: str
    parts: tuple[str, ...]
    slots: tuple[Slot, ...]

    def limit(self, weights: Weights) -> int:
        """A bound on the rank of the chain's weight, see `rank_limit`."""
        return rank_limit([weights[part][0].shape for part in self.parts])


def find_chains(net: Any, weights: Weights) -> list[Chain]:
    """All chains of a NetParameter with the names that the registered methods give; longer ones first."""
    # longer first: vh's two names are the middle ones of cp's four
    kinds = sorted({factorizer.get(name).slots for name in factorizer}, key=lambda slots: -len(slots))
    chains: list[Chain] = []
    for slots in kinds:
        ending = f"_{slots[0].suffix}"
        for name in dict.fromkeys(
            layer.name.removesuffix(ending) for layer in net.layer if layer.name.endswith(ending)
        ):
            chain = Chain(name, tuple(part_name(name, slot) for slot in slots), slots)
            # longer ones came first: the last two parts of a tucker2 aren't a pair besides
            taken = {part for known in chains for part in known.parts}
            if not taken.intersection(chain.parts) and is_chain(net, weights, chain):
                chains.append(chain)
    return chains


def written_chains(net: Any) -> list[Chain]:
    """`find_chains` by what a NetParameter says, without weights: for a net that hasn't been built yet."""
    standins = {layer.name: _standins(layer) for layer in net.layer if layer.type in ("Convolution", "InnerProduct")}
    return find_chains(net, standins)


def _standins(layer: Any) -> dict[int, np.ndarray]:
    """Blobs of the right number and axes for a layer; none where its windows don't agree on the number."""
    fully_connected = layer.type == "InnerProduct"
    param = layer.inner_product_param if fully_connected else layer.convolution_param
    axes = 0
    if not fully_connected:
        sizes = {len(values) for field in NEUTRAL if len(values := getattr(param, field)) > 1}
        sizes |= {len(names) for names in AXES.values() if any(map(param.HasField, names))}
        if len(sizes) > 1:
            return {}
        axes = max(sizes, default=2)
    return {index: np.empty((0,) * (2 + axes)) for index in range(1 + param.bias_term)}


def is_chain(net: Any, weights: Weights, chain: Chain) -> bool:
    """Whether the layers so named feed each other only, and equal one layer: no bias between, each axis one's own."""
    rows = [[layer for layer in net.layer if layer.name == part] for part in chain.parts]
    if not rows[0] or any(len(row) != len(rows[0]) for row in rows):
        return False
    if any(0 not in weights.get(part, {}) for part in chain.parts) or any(
        1 in weights[part] for part in chain.parts[:-1]
    ):
        return False
    # the one layer couldn't have its name
    if any(layer.name == chain.name for layer in net.layer):
        return False
    first = rows[0][0]
    if first.type not in ("Convolution", "InnerProduct"):
        return False
    return all(_joined(net, parts) and _one_window(parts, weights) for parts in zip(*rows, strict=True))


def _joined(net: Any, parts: Sequence[Any]) -> bool:
    """Whether each layer's tops are the next one's bottoms and nobody else's, and no weight is shared by name.

    The last one's bias may be: it stays as it is.
    """
    shared = {spec.name for part in parts for spec in part.param[:1] if spec.name}
    names = {part.name for part in parts}
    others = [layer for layer in net.layer if layer.name not in names]
    inner = {top for part in parts[:-1] for top in part.top}
    return (
        all(part.type == parts[0].type for part in parts)
        and all(list(a.top) == list(b.bottom) for a, b in pairwise(parts))
        and not any(inner.intersection([*layer.bottom, *layer.top]) for layer in others)
        and not shared.intersection(spec.name for layer in others for spec in layer.param)
    )


def _one_window(parts: Sequence[Any], weights: Weights) -> bool:
    if parts[0].type == "InnerProduct":
        first, *rest = (part.inner_product_param for part in parts)
        # -1 is what `rewrite` gives the parts behind a negative axis
        return all(one.transpose == first.transpose and one.axis in (first.axis, -1) for one in rest)
    dims = weights[parts[0].name][0].ndim - 2
    windows = [windows_of(part.convolution_param, dims) for part in parts]
    neutral = tuple(NEUTRAL.values())
    # two windows on one axis would make a larger kernel, which `compose` doesn't do
    return all(sum(window[axis] != neutral for window in windows) <= 1 for axis in range(dims))


def windows_of(param: Any, dims: int) -> list[tuple[int, ...]]:
    """A ConvolutionParameter's (kernel, pad, stride, dilation) on every axis, by Caffe's rules."""
    columns = []
    for field in NEUTRAL:
        named = [getattr(param, name) if param.HasField(name) else None for name in AXES.get(field, ())]
        columns.append(per_axis(getattr(param, field), named, dims, NEUTRAL[field]))
    return list(zip(*columns, strict=True))


def merge(net: Any, weights: Weights, chains: Sequence[Chain]) -> tuple[Any, dict[str, dict[int, np.ndarray]]]:
    """A new NetParameter and new weights (float64) in which each chain is the one layer again."""
    firsts = {chain.parts[0]: chain for chain in chains}
    gone = {part for chain in chains for part in chain.parts}
    rows = {chain.name: occurrences(net, chain) for chain in chains}
    new = NetParameter()
    new.CopyFrom(net)
    del new.layer[:]
    for layer in net.layer:
        if chain := firsts.get(layer.name):
            new.layer.append(whole(chain, next(rows[chain.name]), weights))
        elif layer.name not in gone:
            new.layer.append(layer)
    blobs = {name: dict(values) for name, values in weights.items() if name not in gone}
    for chain in chains:
        # one weight, however often the layers stand in the file
        parts = next(occurrences(net, chain))
        rest = {index: values for index, values in weights[chain.parts[-1]].items() if index > 0}
        blobs[chain.name] = {0: whole_weight(parts, weights), **rest}
    return new, blobs


def occurrences(net: Any, chain: Chain) -> Iterator[Sequence[Any]]:
    """The layers of a chain in a row, once for each time that it stands in the file (for different phases)."""
    return zip(*([one for one in net.layer if one.name == part] for part in chain.parts), strict=True)


def whole(chain: Chain, parts: Sequence[Any], weights: Weights) -> Any:
    """The LayerParameter in place of a chain: the first's bottoms, the last's tops and bias, the window of all."""
    first, last = parts[0], parts[-1]
    new = type(last)()
    new.CopyFrom(last)
    new.name, new.bottom[:] = chain.name, list(first.bottom)
    # it is about bottoms, which are the first part's
    new.propagate_down[:] = list(first.propagate_down)
    # multipliers were the first part's where the last has none
    if not new.param:
        new.param.extend(first.param)
    if first.type == "InnerProduct":
        new.inner_product_param.axis = first.inner_product_param.axis
        return new
    dims = weights[first.name][0].ndim - 2
    param, neutral = new.convolution_param, tuple(NEUTRAL.values())
    windows = [windows_of(part.convolution_param, dims) for part in parts]
    owned = [next((window[axis] for window in windows if window[axis] != neutral), neutral) for axis in range(dims)]
    for index, field in enumerate(NEUTRAL):
        # all forms go: Caffe takes a window in one of them only
        for name in (field, *AXES.get(field, ())):
            param.ClearField(name)
        set_field(param, field, [window[index] for window in owned])
    param.group = outer_groups(parts)
    return new


def outer_groups(parts: Sequence[Any]) -> int:
    """The groups of the layer that a chain of convolutions stands for."""
    # a part that works on each channel alone has more groups than the layer had
    return reduce(gcd, (part.convolution_param.group for part in parts))


def whole_weight(parts: Sequence[Any], weights: Mapping[str, Mapping[int, np.ndarray]]) -> np.ndarray:
    """The composed weight of a chain, float64, as the one layer's blob (a transposed InnerProduct's is too)."""
    # float64: the composed weight is decomposed again, and rounding would count as error
    tensors = [torch.from_numpy(np.asarray(weights[part.name][0])).double() for part in parts]
    if parts[0].type == "InnerProduct":
        transposed = parts[0].inner_product_param.transpose
        found = compose([tensor.T if transposed else tensor for tensor in tensors], [1] * len(parts))
        return (found.T if transposed else found).contiguous().numpy()
    outer = outer_groups(parts)
    return composed(tensors, [part.convolution_param.group for part in parts], outer).contiguous().numpy()
