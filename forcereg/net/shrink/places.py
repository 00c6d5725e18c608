"""The layers of a net file as the nets of its phases have them: shapes, weights, who reads what; all phases as one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch

from forcereg.layers import Layer, make_layer
from forcereg.layers.base import Shape
from forcereg.lowrank.rewrite import Weights
from forcereg.net.module import Net
from forcereg.net.shrink.flows import Values
from forcereg.schema import TRAIN
from forcereg.schema.rules import included
from forcereg.schema.spec import LayerSpec
from forcereg.schema.text import NetFile

Key: TypeAlias = tuple[int, int]
"""A blob: the layer that writes it, by its position in the file, and the top. In place is another blob."""
Phase: TypeAlias = tuple[Any, Net]
"""What layers' rules are matched against, and the net of it, which needs no values."""

TRAINED = frozenset({"BatchNorm", "Dropout", "Pooling"})
"""Types that do something else in training."""
SPREAD = 1e-12
"""Relative differences between positions below which a channel is constant: what vectorized functions differ by."""


@dataclass
class Place:
    """One layer of the file. `shapes`: of its bottoms; `inputs`: all shapes of the first one, of several phases.

    `blobs`: its weights, also borrowed ones. `alone`: whether no other layer has these weights. `reason`: why its
    channels stay as they are, whatever its type; empty if nothing speaks against.
    """

    index: int
    spec: LayerSpec
    module: Layer | None
    bottoms: tuple[Key, ...]
    shapes: tuple[Shape, ...]
    out_shapes: tuple[Shape, ...]
    inputs: set[Shape] = field(default_factory=set)
    blobs: dict[int, np.ndarray] = field(default_factory=dict)
    alone: bool = True
    reason: str = ""

    @property
    def tops(self) -> tuple[Key, ...]:
        """The blobs that it writes."""
        return tuple((self.index, slot) for slot in range(len(self.out_shapes)))

    def compute(self, bottoms: Sequence[Values]) -> list[Values]:
        """The constants of its tops' channels for constant bottoms, by the layer itself, in float64; NaN for others."""
        # what a layer does only in training, it doesn't do alike each time
        if self.spec.type in TRAINED and self.spec.message.HasField("phase") and self.spec.phase == TRAIN:
            return [np.full(channels(shape), np.nan) for shape in self.out_shapes]
        shapes = [(1, *shape[1:]) for shape in self.shapes]
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # told where the net is made
            module = make_layer(self.spec, shapes).double().eval()
            for at, blob in enumerate(module.blobs):
                blob.copy_(torch.from_numpy(np.array(self.blobs[at], np.float64)))
            values = [*bottoms, *(np.zeros(channels(shape)) for shape in shapes[len(bottoms) :])]
            inputs = [
                torch.from_numpy(one).reshape(1, -1, *(1,) * (len(shape) - 2)).expand(shape).contiguous()
                for one, shape in zip(values, shapes, strict=True)
            ]
            tops = module(*inputs)
        return [constant(top.numpy()) for top in (tops if isinstance(tops, tuple | list) else (tops,))]


def constant(top: np.ndarray) -> Values:
    """The values of a blob's channels, NaN for those that aren't the same everywhere."""
    rows = top.reshape(top.shape[1], -1)
    low, high = rows.min(1), rows.max(1)
    with np.errstate(invalid="ignore"):
        return np.where(high - low <= SPREAD * np.maximum(1, np.abs(high)), rows[:, 0], np.nan)


def channels(shape: Shape) -> int:
    """How many channels a blob of this shape has, 0 without an axis for them."""
    return shape[1] if len(shape) > 1 else 0


class Classes:
    """Blobs that are cut alike, since one layer reads them in different phases, or layers of the same weights do."""

    def __init__(self) -> None:
        self._above: dict[Key, Key] = {}

    def of(self, key: Key) -> Key:
        """The one that stands for all of its class."""
        while key in self._above:
            key = self._above[key]
        return key

    def join(self, one: Iterable[Key], other: Iterable[Key]) -> None:
        """These are cut alike, pair by pair."""
        for a, b in zip(one, other, strict=True):
            if self.of(a) != self.of(b):
                self._above[self.of(b)] = self.of(a)


def placed(file: NetFile, state: Any, net: Net) -> Iterator[Place]:
    """The layers of one phase's net that stand in the file."""
    messages = file.message.layer
    own = iter([index for index, message in enumerate(messages) if included(message, state)])
    index = next(own, None)
    written: dict[str, Key] = {}
    shapes: dict[Key, Shape] = {}
    for spec, module in net.built:
        # Splits that the net has put in only hand on what they read
        if index is None or (spec.name, spec.type) != (messages[index].name, messages[index].type):
            written.update(dict.fromkeys(spec.tops, written[spec.bottoms[0]]))
            continue
        bottoms = tuple(written[name] for name in spec.bottoms)
        tops = tuple(net.shapes[name] for name in spec.tops) if module is None else module.out_shapes
        place = Place(index, spec, module, bottoms, tuple(shapes[key] for key in bottoms), tuple(tops))
        place.inputs.update(place.shapes[:1])
        written.update(zip(spec.tops, place.tops, strict=True))
        shapes.update(zip(place.tops, tops, strict=True))
        yield place
        index = next(own, None)


@dataclass
class Layout:
    """All of it: layers by their position in the file, in order; `ends`: blobs that stay whole."""

    file: NetFile
    places: dict[int, Place]
    classes: Classes
    ends: set[Key]
    unseen: set[str]
    """Names of blobs that layers read which no phase here has."""

    def sharers(self, key: Key) -> set[Key]:
        """The blobs that are cut like this one."""
        one = self.classes.of(key)
        return {key for place in self.places.values() for key in place.tops if self.classes.of(key) == one}


def layout(file: NetFile, weights: Weights, phases: Sequence[Phase]) -> Layout:
    """The layers of the nets of these phases, and what of them can't be cut whatever it holds."""
    found = Layout(file, {}, Classes(), set(), set())
    for state, net in phases:
        read: set[Key] = set()
        own = list(placed(file, state, net))
        for place in own:
            read.update(place.bottoms)
            if (known := found.places.get(place.index)) is None:
                place.blobs = _blobs(place, net, weights)
                found.places[place.index] = place
            else:
                found.classes.join(known.bottoms, place.bottoms)
                known.inputs |= place.inputs
        found.ends |= {key for place in own for key in place.tops if key not in read}
        found.ends |= {
            key for place in own for key, weight in zip(place.tops, place.spec.loss_weights, strict=True) if weight
        }
        _share(found, own, net)
    found.places = dict(sorted(found.places.items()))
    _same_names(found)
    _unseen(found)
    return found


def _blobs(place: Place, net: Net, weights: Weights) -> dict[int, np.ndarray]:
    """The layer's weights, wherever the snapshot has them; says where one is missing."""
    blobs = {}
    for at in range(len(place.module.blobs) if place.module is not None else 0):
        where = f"{place.spec.name}/{at}"
        name, index = net.shared.get(where, where).rsplit("/", 1)
        value = weights.get(place.spec.name, {}).get(at, weights.get(name, {}).get(int(index)))
        if value is None:
            place.reason = "the snapshot has no weights for it"
            return {}
        blobs[at] = value
    return blobs


def _share(found: Layout, own: Sequence[Place], net: Net) -> None:
    """Layers that share all their weights are cut alike; those that share some of them are not cut."""
    by_name = {place.spec.name: found.places[place.index] for place in own}
    for name, place in by_name.items():
        lent = {at: net.shared.get(f"{name}/{at}") for at in place.blobs}
        for owner in {where.rsplit("/", 1)[0] for where in lent.values() if where}:
            other = by_name[owner]
            whole = lent == {at: f"{owner}/{at}" for at in other.blobs} and place.spec.type == other.spec.type
            tie(found, other, place, whole)


def tie(found: Layout, one: Place, other: Place, whole: bool) -> None:
    """Two layers have the same weights, all of them or (not `whole`) some."""
    one.alone = other.alone = False
    forms = {tuple(map(channels, (*place.shapes, *place.out_shapes))) for place in (one, other)}
    if whole and len(forms) == 1 and len(one.bottoms) == len(other.bottoms):
        found.classes.join((*one.bottoms, *one.tops), (*other.bottoms, *other.tops))
    else:
        one.reason = one.reason or f"shares a part of its weights with '{other.spec.name}'"
        other.reason = other.reason or f"shares a part of its weights with '{one.spec.name}'"


def _same_names(found: Layout) -> None:
    """Layers of one name, in different phases, have one layer's weights."""
    first: dict[str, Place] = {}
    for place in found.places.values():
        other = first.setdefault(place.spec.name, place)
        if other is not place and (place.blobs or other.blobs):
            tie(found, other, place, place.spec.type == other.spec.type)


def _unseen(found: Layout) -> None:
    """What layers read or share that no phase here has stays as it is."""
    missing = [layer for index, layer in enumerate(found.file.message.layer) if index not in found.places]
    found.unseen = {name for layer in missing for name in (*layer.bottom, *layer.top)}
    names = {layer.name for layer in missing} | {spec.name for layer in missing for spec in layer.param if spec.name}
    for place in found.places.values():
        found.ends |= {key for key, name in zip(place.tops, place.spec.tops, strict=True) if name in found.unseen}
        mine = {place.spec.name, *(spec.name for spec in place.spec.message.param if spec.name)}
        if place.blobs and mine & names:
            place.reason = "a layer that is in no net here has the same weights"
