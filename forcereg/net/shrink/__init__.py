"""Smaller nets for real: a net without the channels, neurons, branches and kernel borders that add nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from forcereg.lowrank.rewrite import Weights
from forcereg.net.deploy.make import unread
from forcereg.net.shrink import weighted as weighted  # registers its rules
from forcereg.net.shrink.flows import Node, settle
from forcereg.net.shrink.places import Key, Layout, Phase, Place, channels, layout
from forcereg.net.shrink.rules import Kept, rule_of
from forcereg.net.shrink.settings import refit
from forcereg.schema import NetParameter
from forcereg.schema.rules import included
from forcereg.schema.text import NetFile

__all__ = ["DIFFERENT", "Change", "Shrunk", "shrink"]

DIFFERENT = 1e-5
"""Relative difference of outputs above which the user is warned: what constants lose that become float32."""


@dataclass(frozen=True)
class Change:
    """A layer with weights, and the shape of its first blob before and after; None where the layer is gone."""

    name: str
    type: str
    before: tuple[int, ...]
    after: tuple[int, ...] | None


@dataclass(frozen=True)
class Shrunk:
    """`net`: NetParameter. `changes`: layers whose weights are others now. `gone`: names of all layers that are.

    `whole`: layer with weights -> why it can't be cut. `remarks`: settings that were left out, a line each.
    """

    net: Any
    weights: dict[str, dict[int, np.ndarray]]
    changes: tuple[Change, ...]
    gone: tuple[str, ...]
    whole: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def shrink(file: NetFile, weights: Weights, phases: Sequence[Phase]) -> Shrunk:
    """The net without what adds nothing to its outputs in the test phase, in all of these phases alike.

    Channels go that are constant, zero or not, where their readers can take the constant into a bias; and those that
    nobody who counts looks at. What layers that no phase here has read stays.
    """
    found = layout(file, weights, phases)
    return _Rewriting(found, weights).made(phases)


class _Rewriting:
    """The net's layers one by one, as what was found says."""

    def __init__(self, found: Layout, weights: Weights) -> None:
        self.found, self.weights = found, weights
        self.rules = {index: rule_of(place) for index, place in found.places.items()}
        self.numbers: dict[Key, int] = {}
        sizes: list[int] = []
        for place in found.places.values():
            for key, shape in zip(place.tops, place.out_shapes, strict=True):
                if self.numbers.setdefault(found.classes.of(key), len(sizes)) == len(sizes):
                    sizes.append(channels(shape))
        nodes = [Node(self.rules[index].flow, *self._blobs(place)) for index, place in found.places.items()]
        self.values, self.masks = settle(nodes, sizes, [self._number(key) for key in found.ends])
        # a reader of what is only handed on reads what that was handed on from
        self.names: dict[Key, str] = {}
        self.remarks: list[str] = []

    def _number(self, key: Key) -> int:
        return self.numbers[self.found.classes.of(key)]

    def _blobs(self, place: Place) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return tuple(map(self._number, place.bottoms)), tuple(map(self._number, place.tops))

    def kept(self, place: Place) -> Kept:
        """What stays of a layer's blobs."""
        bottoms, tops = self._blobs(place)
        read, written = ([self.masks[at] for at in numbers] for numbers in (bottoms, tops))
        return Kept(read, written, [self.values[at] for at in bottoms])

    def made(self, phases: Sequence[Phase]) -> Shrunk:
        """The new net."""
        net = NetParameter()
        net.CopyFrom(self.found.file.message)
        del net.layer[:]
        made: dict[str, dict[int, np.ndarray]] = {}
        for index, message in enumerate(self.found.file.message.layer):
            place = self.found.places.get(index)
            if place is None:
                net.layer.append(message)
            elif (layer := self._layer(message, place, made)) is not None:
                net.layer.append(layer)
        _silence(net, self.found.file.message, phases)
        names = {layer.name for layer in net.layer}
        old = dict.fromkeys(layer.name for layer in self.found.file.message.layer)
        for name, blobs in self.weights.items():
            # those of layers that stand in no net here are kept, of Splits that were there left out
            if name not in made and (name in names or (blobs and name not in old)):
                made[name] = dict(blobs)
        left = tuple(name for name in old if name not in names)
        return Shrunk(net, made, tuple(self._changes(made)), left, self._whole(), tuple(self.remarks))

    def _layer(self, message: Any, place: Place, made: dict[str, dict[int, np.ndarray]]) -> Any | None:
        """The layer as it is now, None if it is gone; its weights go into `made`."""
        rule, kept = self.rules[place.index], self.kept(place)
        if gone(kept):
            return None
        if (at := rule.through(kept)) is not None and self._is_private(place):
            self.names[place.tops[0]] = self._name(place, at)
            return None
        layer = type(message)()
        layer.CopyFrom(message)
        layer.bottom[:] = [self._name(place, at) for at in range(len(place.bottoms))]
        own = self.weights.get(place.spec.name, {})
        if place.reason:
            blobs = dict(own)
        elif not same(blobs := rule.cut(layer, kept), place.blobs):
            # those are of other shapes
            layer.ClearField("blobs")
            self.remarks += refit(layer, place.blobs, blobs)
        # what is borrowed is its owner's, unless the snapshot has it twice
        held = {at: blob for at, blob in blobs.items() if at in own or at not in place.blobs}
        if held or place.spec.name in self.weights:
            made[place.spec.name] = held
        return layer

    def _name(self, place: Place, at: int) -> str:
        """What the layer calls this bottom now."""
        return self.names.get(place.bottoms[at], self.found.file.message.layer[place.index].bottom[at])

    def _is_private(self, place: Place) -> bool:
        """Whether its top's name is nobody's but its readers', who can read another blob in its place."""
        key = place.tops[0]
        return key not in self.found.ends and len(self.found.sharers(key)) == 1

    def _changes(self, made: Weights) -> list[Change]:
        found = {}
        for place in self.found.places.values():
            name = place.spec.name
            if place.blobs and name in self.weights:
                before, after = (of.get(name, {}).get(0) for of in (self.weights, made))
                now = None if after is None else after.shape
                if before is not None and before.shape != now:
                    found[name] = Change(name, place.spec.type, before.shape, now)
        return list(found.values())

    def _whole(self) -> dict[str, str]:
        return {place.spec.name: place.reason for place in self.found.places.values() if place.reason}


def gone(kept: Kept) -> bool:
    """Whether nothing is left of a layer: of all that it gives, or of all that it reads if it gives nothing."""
    masks = kept.tops or kept.bottoms
    return bool(masks) and all(len(mask) and not mask.any() for mask in masks)


def same(blobs: Mapping[int, np.ndarray], others: Mapping[int, np.ndarray]) -> bool:
    """Whether they have the same shapes."""
    return {at: one.shape for at, one in blobs.items()} == {at: one.shape for at, one in others.items()}


def _silence(net: Any, old: Any, phases: Sequence[Phase]) -> None:
    """Blobs that nobody reads any more would be outputs: a layer of each phase that has some takes them."""
    for state, _ in phases:
        now, before = (
            unread(NetParameter(layer=[layer for layer in of.layer if included(layer, state)])) for of in (net, old)
        )
        if spare := [name for name in now if name not in before]:
            layer = net.layer.add(name=f"silence{len(net.layer)}", type="Silence", bottom=spare)
            layer.include.add(phase=state.phase)
