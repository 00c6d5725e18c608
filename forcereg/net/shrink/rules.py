"""How each layer type is shrunk: what it does to channels, and its message and weights without those that go.

One of your own is a function of a `Place` that gives a `Rule`, registered by `forcereg.registry.shrink_rule`; types
without one keep all that they read and write. Convolutions and matrices are in `weighted`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np

from forcereg.net.shrink.flows import Blocks, Copies, Flow, Joined, Mask, Nearby, Sum, Together, Unread, Values
from forcereg.net.shrink.flows import pieces as cut_up
from forcereg.net.shrink.places import Place, channels
from forcereg.registry import shrink_rule

Blobs: TypeAlias = dict[int, np.ndarray]


@dataclass(frozen=True)
class Kept:
    """What stays of a layer's blobs, by bottom and top; `values`: what the channels of the bottoms are."""

    bottoms: Sequence[Mask]
    tops: Sequence[Mask]
    values: Sequence[Values]


@dataclass
class Rule:
    """One layer: `flow` says what it does to channels. This one keeps it as it is."""

    at: Place
    flow: Flow

    def cut(self, layer: Any, kept: Kept) -> Blobs:
        """Changes `layer`, a LayerParameter, to fit what stays; its weights."""
        return dict(self.at.blobs)

    def through(self, kept: Kept) -> int | None:
        """The bottom that its top is now, if it does nothing else any more."""
        return None


def rule_of(at: Place) -> Rule:
    """The rule for a layer; one that keeps it whole if its type has none, or something speaks against it."""
    # a blob without channels has nothing to cut, but for whom it makes no difference
    plain = at.spec.type == "Silence" or all(map(channels, (*at.shapes, *at.out_shapes)))
    if not at.reason and at.module is not None and plain and at.spec.type in shrink_rule:
        found: Rule | None = shrink_rule.get(at.spec.type)(at)
        if found is not None:
            return found
    return Rule(at, Flow())


def without(layer: Any, kind: str, positions: Sequence[int]) -> None:
    """Takes bottoms or tops (`kind`) out of a layer, with what is said of each of them."""
    names = list(getattr(layer, kind))
    field = {"bottom": "propagate_down", "top": "loss_weight"}[kind]
    for name in (kind, field):
        entries = getattr(layer, name)
        if len(entries) == len(names):
            entries[:] = [one for at, one in enumerate(entries) if at not in positions]


# -- what works on each channel alone


ALONE = (
    *("AbsVal", "BNLL", "Clip", "Dropout", "ELU", "Exp", "Log", "Pooling", "Power", "ReLU", "Sigmoid", "Sparsify"),
    *("Swish", "TanH", "Threshold"),
)
"""Types without weights, whose messages need no change."""

for _name in ALONE:

    @shrink_rule(_name)
    def _alone(at: Place) -> Rule:
        return Rule(at, Together(at.compute))


@dataclass
class Channelwise(Rule):
    """Those of its weights that are `cut` have a value, or several, for each channel, along axis 0."""

    along: Sequence[int]

    def cut(self, layer: Any, kept: Kept) -> Blobs:
        """Their values of the channels that stay."""
        return {at: blob[kept.tops[0]] if at in self.along else blob for at, blob in self.at.blobs.items()}


@shrink_rule("BatchNorm")
def _batch_norm(at: Place) -> Rule:
    return Channelwise(at, Together(at.compute), [index for index in at.blobs if index != 2])


@shrink_rule("PReLU")
@shrink_rule("SymmetricRectify")
def _rectify(at: Place) -> Rule:
    # one for all channels has no axes
    return Channelwise(at, Together(at.compute), [0] if at.module.blobs[0].dim() else [])  # type: ignore[union-attr]


@shrink_rule("Scale")
@shrink_rule("Bias")
def _affine(at: Place) -> Rule | None:
    module: Any = at.module
    if len(at.bottoms) == 2:
        # the second has a value for each channel of each item
        return Rule(at, Together(at.compute)) if module.axis == 0 and not module.blobs else None
    if module.axis == 0:
        return None
    return Channelwise(at, Together(at.compute), list(at.blobs) if module.axis == 1 and module.blobs[0].dim() else [])


@shrink_rule("MVN")
def _mvn(at: Place) -> Rule | None:
    return None if at.spec.message.mvn_param.across_channels else Rule(at, Together(at.compute))


@shrink_rule("LRN")
def _lrn(at: Place) -> Rule:
    module: Any = at.module
    return Rule(at, Together(at.compute) if module.within else Nearby(module.size // 2))


@shrink_rule("Crop")
@shrink_rule("Tile")
def _spatial(at: Place) -> Rule | None:
    param = at.spec.message.crop_param if at.spec.type == "Crop" else at.spec.message.tile_param
    return Rule(at, Together(at.compute, readers=1)) if param.axis % len(at.shapes[0]) > 1 else None


# -- what joins blobs, takes them apart or gives them another form


@dataclass
class Split(Rule):
    """Copies, of which those that nobody reads go."""

    def cut(self, layer: Any, kept: Kept) -> Blobs:
        """The copies that are read."""
        without(layer, "top", [at for at, top in enumerate(kept.tops) if not top.any()])
        return {}


@shrink_rule("Split")
def _split(at: Place) -> Rule:
    return Split(at, Copies(lambda bottoms: [bottoms[0]] * len(at.out_shapes)))


@dataclass
class Silence(Rule):
    """Reads what is left of its bottoms."""

    def cut(self, layer: Any, kept: Kept) -> Blobs:
        """The bottoms that are left."""
        without(layer, "bottom", [at for at, one in enumerate(kept.bottoms) if len(one) and not one.any()])
        return {}


@shrink_rule("Silence")
def _silence(at: Place) -> Rule:
    return Silence(at, Unread())


@dataclass
class Concat(Rule):
    """Along channels: bottoms of which nothing is left go."""

    def cut(self, layer: Any, kept: Kept) -> Blobs:
        """The bottoms that are left."""
        parts = cut_up(kept.tops[0], kept.bottoms)
        without(layer, "bottom", [at for at, part in enumerate(parts) if not part.any()])
        return {}


@shrink_rule("Concat")
def _concat(at: Place) -> Rule | None:
    module: Any = at.module
    if module.axis == 1:
        return Concat(at, Joined())
    return Rule(at, Together(at.compute)) if module.axis > 1 else None


@dataclass
class Slice(Rule):
    """Along channels: parts of which nothing is left go, the others begin where they do now."""

    def cut(self, layer: Any, kept: Kept) -> Blobs:
        """The parts that are left."""
        sizes = [int(top.sum()) for top in kept.tops]
        without(layer, "top", [at for at, size in enumerate(sizes) if not size])
        left = [size for size in sizes if size]
        param = layer.slice_param
        if param.slice_point or len(set(left)) > 1:
            param.slice_point[:] = np.cumsum(left)[:-1].tolist()
        return {}


@shrink_rule("Slice")
def _slice(at: Place) -> Rule | None:
    module: Any = at.module
    if module.axis == 1:
        return Slice(at, Joined(apart=True))
    return Rule(at, Together(at.compute)) if module.axis > 1 else None


@shrink_rule("Flatten")
def _flatten(at: Place) -> Rule | None:
    module: Any = at.module
    if module.start == 1:
        return Rule(at, Blocks(prod(at.shapes[0][2 : module.end + 1])))
    return Rule(at, Together(at.compute)) if module.start > 1 else None


@shrink_rule("Reshape")
def _reshape(at: Place) -> Rule | None:
    module: Any = at.module
    (bottom,), (top,) = at.shapes, at.out_shapes
    start = module.axis if module.axis >= 0 else module.axis + len(bottom) + 1
    if start > 1:
        return Rule(at, Together(at.compute))
    # channels have to be copied or inferred, items copied, and all behind them part of it
    own = module.dims[1 - start : 2 - start]
    if own not in ((0,), (-1,)) or module.num_axes != -1 or (start == 0 and module.dims[0] != 0):
        return None
    if top[1] == bottom[1]:
        return Rule(at, Together(at.compute))
    leading = np.cumprod(bottom[2:]).tolist()
    return Rule(at, Blocks(top[1] // bottom[1])) if top[1] / bottom[1] in leading else None


@dataclass
class Addition(Rule):
    """A sum without the bottoms that are constant: one left with a constant is a Bias, with a coefficient a Scale."""

    flow: Sum

    def _left(self, kept: Kept) -> tuple[list[int], float, np.ndarray]:
        """Bottoms that stay, the coefficient of the first of them, and what the others add to each channel."""
        top, stay = kept.tops[0], self.flow.summed(kept.tops[0], kept.values)
        coeff = list(self.at.spec.message.eltwise_param.coeff) or [1.0] * len(kept.values)
        gone = [at for at in range(len(coeff)) if at not in stay]
        return stay, coeff[stay[0]], sum((coeff[at] * kept.values[at][top] for at in gone), np.zeros(int(top.sum())))

    def through(self, kept: Kept) -> int | None:
        """The one bottom that is left."""
        stay, coeff, added = self._left(kept)
        return stay[0] if len(stay) == 1 and coeff == 1 and not added.any() else None

    def cut(self, layer: Any, kept: Kept) -> Blobs:
        """Bottoms that stay, or a layer of another type with weights."""
        stay, coeff, added = self._left(kept)
        gone = [at for at in range(len(kept.values)) if at not in stay]
        without(layer, "bottom", gone)
        if len(stay) > 1:
            param = layer.eltwise_param
            param.coeff[:] = [one for at, one in enumerate(param.coeff) if at not in gone]
            return {}
        layer.ClearField("eltwise_param")
        if not added.any():
            layer.type = "Power"
            layer.power_param.scale = coeff
            return {}
        layer.type, bias = "Bias", added.astype(np.float32)
        if coeff == 1:
            return {0: bias}
        layer.type, layer.scale_param.bias_term = "Scale", True
        return {0: np.full_like(bias, coeff), 1: bias}


@shrink_rule("Eltwise")
def _eltwise(at: Place) -> Rule:
    module: Any = at.module
    return Addition(at, Sum(at.compute)) if module.operation == "SUM" else Rule(at, Together(at.compute))
