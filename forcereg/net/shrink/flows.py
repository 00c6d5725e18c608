"""How layers hand channels on: which are constant, which are needed (pure functions on arrays, whatever holds the net).

A blob has C channels, of each of which two things are known. Its value (float64, NaN where it varies): what the channel
is for every item and at every position, in the test phase. And whether it is needed: marks that only grow. What isn't
needed in the end can go without changing any output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

Values: TypeAlias = np.ndarray
"""(C,) float64: the channel's constant, NaN where it varies."""
Mask: TypeAlias = np.ndarray
"""(C,) bool."""


def varying(size: int) -> Values:
    """Of a blob of which nothing is known."""
    return np.full(size, np.nan)


class Flow:
    """One layer. This one is any layer at all: nothing is known of its tops, and it needs all channels."""

    def values(self, bottoms: Sequence[Values], sizes: Sequence[int]) -> list[Values]:
        """The values of its tops, which have `sizes` channels, by those of its bottoms."""
        return [varying(size) for size in sizes]

    def needs(self, bottoms: Sequence[Mask], tops: Sequence[Mask], values: Sequence[Values]) -> None:
        """Marks, in place, what else is needed if that is which is marked; `values`: of the bottoms."""
        for mask in (*bottoms, *tops):
            mask[:] = True


class Unread(Flow):
    """What its bottoms hold is of no interest to it."""

    def needs(self, bottoms: Sequence[Mask], tops: Sequence[Mask], values: Sequence[Values]) -> None:
        """Nothing."""


def together(masks: Sequence[Mask]) -> None:
    """Channel i of one is needed where that of another is."""
    joint = np.logical_or.reduce(masks)
    for mask in masks:
        mask[:] = joint


@dataclass
class Together(Flow):
    """Channel i of the tops hangs on channel i of the bottoms alone; `compute`: the tops' constants of the bottoms'.

    Bottoms behind the first `readers` give their form only: one channel of theirs is enough.
    """

    compute: Callable[[Sequence[Values]], Sequence[Values]]
    readers: int | None = None

    def values(self, bottoms: Sequence[Values], sizes: Sequence[int]) -> list[Values]:
        read = bottoms[: self.readers]
        known = ~np.isnan(read).any(axis=0)
        if not known.any():
            return super().values(bottoms, sizes)
        found = self.compute([np.where(known, one, 0) for one in read])
        # what overflows is nobody's constant
        return [np.where(known & np.isfinite(top), top, np.nan) for top in found]

    def needs(self, bottoms: Sequence[Mask], tops: Sequence[Mask], values: Sequence[Values]) -> None:
        # a layer that nobody reads goes, whoever else reads its bottoms
        if any(top.any() for top in tops):
            together([*bottoms[: self.readers], *tops])
            for mask in bottoms[len(bottoms) if self.readers is None else self.readers :]:
                fill(mask, 1)


class Copies(Together):
    """Each top is the bottom; those that nobody reads go."""

    def needs(self, bottoms: Sequence[Mask], tops: Sequence[Mask], values: Sequence[Values]) -> None:
        if read := [top for top in tops if top.any()]:
            together([*bottoms, *read])


class Sum(Together):
    """The sum of the bottoms, which can go without those that are constant."""

    def needs(self, bottoms: Sequence[Mask], tops: Sequence[Mask], values: Sequence[Values]) -> None:
        if tops[0].any():
            together([*(bottoms[at] for at in self.summed(tops[0], values)), tops[0]])

    def summed(self, top: Mask, values: Sequence[Values]) -> list[int]:
        """Which bottoms stay, where of the top these channels do: all that vary, and all if none or too many do.

        One that varies can take constants as a bias; beside several only zeros are left out.
        """
        varied = [at for at, one in enumerate(values) if np.isnan(one[top]).any()]
        if not varied:
            return list(range(len(values)))
        return varied if len(varied) == 1 else [at for at, one in enumerate(values) if at in varied or one[top].any()]


class Nearby(Together):
    """What becomes of channel i hangs on the `reach` channels to each side of it, too; of 0 it is 0."""

    def __init__(self, reach: int) -> None:
        super().__init__(lambda bottoms: [np.where(bottoms[0] == 0, 0.0, np.nan)])
        self.reach = reach

    def needs(self, bottoms: Sequence[Mask], tops: Sequence[Mask], values: Sequence[Values]) -> None:
        if not (mask := tops[0]).any():
            return
        super().needs(bottoms, tops, values)
        # of 0 it is 0 whatever lies around
        varied = values[0] != 0
        if len(places := np.flatnonzero(mask & varied)):
            mask |= (np.abs(np.arange(len(mask))[:, None] - places).min(1) <= self.reach) & varied
        # what comes closer would be counted: a gap may close to `reach` channels, not further
        for start, end in pairwise(np.flatnonzero(mask & varied)):
            fill(mask[start + 1 : end], self.reach)
        bottoms[0][:] |= mask


@dataclass
class Joined(Flow):
    """Blobs one behind the other: the bottoms as the top, or with `apart` the bottom as the tops.

    `every`: a bottom of which the top needs nothing stays in it all the same.
    """

    apart: bool = False
    every: bool = False

    def values(self, bottoms: Sequence[Values], sizes: Sequence[int]) -> list[Values]:
        return np.split(bottoms[0], np.cumsum(sizes)[:-1]) if self.apart else [np.concatenate(bottoms)]

    def needs(self, bottoms: Sequence[Mask], tops: Sequence[Mask], values: Sequence[Values]) -> None:
        (whole,), parts = (bottoms, tops) if self.apart else (tops, bottoms)
        if not any(top.any() for top in tops):
            return
        for part, piece in zip(parts, pieces(whole, parts), strict=True):
            # a part that the whole doesn't need stays out of it; a top can't be told apart from its neighbours
            if self.apart or self.every or piece.any():
                together([part, piece])


def pieces(whole: np.ndarray, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Views of the whole, as long as the parts."""
    return np.split(whole, np.cumsum([len(part) for part in parts])[:-1])


@dataclass
class Blocks(Flow):
    """Each channel becomes `size` of them."""

    size: int

    def values(self, bottoms: Sequence[Values], sizes: Sequence[int]) -> list[Values]:
        return [np.repeat(bottoms[0], self.size)]

    def needs(self, bottoms: Sequence[Mask], tops: Sequence[Mask], values: Sequence[Values]) -> None:
        if tops[0].any():
            bottoms[0][:] |= tops[0].reshape(-1, self.size).any(1)
            tops[0][:] |= np.repeat(bottoms[0], self.size)


@dataclass
class Mixing(Flow):
    """Products with a weight, N outputs of C/groups inputs each: a convolution or a matrix.

    weight: (N, C/groups, T), T products of a channel. whole: (T,) bool, which of them every output sees; at a border
    that is filled up with zeros others may be missing, so that a constant isn't one there. can_take: whether constants
    may go into the bias, which may have to be made. Constants that can't go there go into another one's weights.
    """

    weight: np.ndarray
    bias: np.ndarray | None
    groups: int
    whole: np.ndarray
    can_take: bool = True
    _nonzero: np.ndarray = field(init=False)
    _edge: np.ndarray = field(init=False)
    _total: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.groups, -1, self.weight.shape[1])
        # groups x outputs x inputs
        self._nonzero = self.weight.any(2).reshape(shape)
        self._edge = self.weight[:, :, ~self.whole].any(2).reshape(shape)
        self._total = self.weight.sum(2, dtype=np.float64).reshape(shape)

    def _grouped(self, channels: np.ndarray) -> np.ndarray:
        return channels.reshape(self.groups, -1)

    def values(self, bottoms: Sequence[Values], sizes: Sequence[int]) -> list[Values]:
        inputs = self._grouped(bottoms[0])[:, None]
        varied = (self._nonzero & (np.isnan(inputs) | (self._edge & (inputs != 0)))).any(2)
        found = self._sums(bottoms[0]) + (0 if self.bias is None else self.bias)
        return [np.where(varied.reshape(-1) | ~np.isfinite(found), np.nan, found)]

    def _sums(self, inputs: Values) -> np.ndarray:
        """What the constants among these inputs add to each output (N,)."""
        known = np.nan_to_num(self._grouped(inputs), nan=0.0)
        return np.asarray((self._total * known[:, None]).sum(2).reshape(-1))

    def _fixed(self, outputs: Mask, values: Values) -> Mask:
        """Constant inputs that no bias of these outputs can take (groups, C/groups)."""
        weights = self._nonzero & self._edge if self.can_take else self._nonzero
        seen = (weights & self._grouped(outputs)[:, :, None]).any(1)
        return np.asarray(seen & self._grouped(constants_of(values)))

    def needs(self, bottoms: Sequence[Mask], tops: Sequence[Mask], values: Sequence[Values]) -> None:
        inputs, outputs = self._grouped(bottoms[0]), self._grouped(tops[0])
        if not outputs.any():
            return
        varied = np.isnan(self._grouped(values[0]))
        inputs |= (self._nonzero & outputs[:, :, None]).any(1) & varied
        known, fixed = self._grouped(constants_of(values[0])), self._fixed(tops[0], values[0])
        for group in np.flatnonzero(fixed.any(1) & ~(inputs & known).any(1)):
            # one stands for all of its group
            inputs[group, largest(fixed[group], self._grouped(values[0])[group])] = True
        alive = np.flatnonzero(outputs.any(1) | inputs.any(1))
        # groups are of one size, and have an input, though it may add nothing
        for masks in (inputs, outputs):
            most = max(1, int(masks[alive].sum(1).max()))
            for group in alive:
                fill(masks[group], most)

    def without(self, inputs: Mask, outputs: Mask, values: Values) -> tuple[np.ndarray, np.ndarray]:
        """The weight (N, C/groups, T), and what to add to the bias (N,), if these outputs alone have these inputs."""
        gone = ~inputs & constants_of(values)
        moved = self._fixed(outputs, values) & self._grouped(gone)
        weight = self.weight
        if moved.any():
            weight = weight.astype(np.float64).reshape(self.groups, -1, *weight.shape[1:])
            for group in np.flatnonzero(moved.any(1)):
                own = self._grouped(values)[group]
                one = largest(self._grouped(inputs & constants_of(values))[group], own)
                shares = np.where(moved[group], own / own[one], 0.0)
                weight[group, :, one] += np.einsum("nct,c->nt", weight[group], shares)
            weight = weight.reshape(self.weight.shape).astype(self.weight.dtype)
        return weight, self._sums(np.where(gone & ~moved.reshape(-1), values, 0.0))


def constants_of(values: Values) -> Mask:
    """Channels that are constant, and not zero."""
    return ~np.isnan(values) & (values != 0)


def largest(mask: Mask, values: Values) -> int:
    """The channel of the largest value among those that are marked."""
    return int(np.argmax(np.where(mask, np.abs(values), -1.0)))


def fill(mask: Mask, count: int) -> None:
    """Marks the first channels that aren't, until so many are."""
    mask[np.flatnonzero(~mask)[: max(0, count - int(mask.sum()))]] = True


@dataclass(frozen=True)
class Node:
    """A layer: its flow, and the blobs that it reads and writes, by number."""

    flow: Any
    bottoms: tuple[int, ...]
    tops: tuple[int, ...]


def settle(
    nodes: Sequence[Node], sizes: Sequence[int], pinned: Iterable[int], least: int = 0
) -> tuple[list[Values], list[Mask]]:
    """Of each blob its channels' values, and which of them are needed. `sizes`: channels; `pinned`: needed whole.

    Nodes in the order in which they run; several may write one blob, whose channels are then kept alike. `least`: so
    many channels of every blob stay, whether needed or not.
    """
    values, masks = constants(nodes, sizes), [np.zeros(size, bool) for size in sizes]
    for mask in masks:
        mask[:least] = True
    for at in pinned:
        masks[at][:] = True
    mark(nodes, masks, values)
    return values, masks


def constants(nodes: Sequence[Node], sizes: Sequence[int]) -> list[Values]:
    """The channels' values: those on which all writers of a blob agree."""
    found: list[Values | None] = [None] * len(sizes)
    before = -1
    # a blob of several writers may be read between them: again until nothing changes
    while (left := sum(int((~np.isnan(one)).sum()) for one in found if one is not None)) != before:
        before = left
        for node in nodes:
            bottoms = [varying(sizes[at]) if (one := found[at]) is None else one for at in node.bottoms]
            tops = node.flow.values(bottoms, [sizes[at] for at in node.tops])
            for at, top in zip(node.tops, tops, strict=True):
                found[at] = top if (one := found[at]) is None else np.where(one == top, one, np.nan)
    return [varying(size) if one is None else one for one, size in zip(found, sizes, strict=True)]


def mark(nodes: Sequence[Node], masks: Sequence[Mask], values: Sequence[Values]) -> None:
    """Marks which channels are needed beside those that are: the least that satisfies all layers."""
    before = -1
    while (marked := sum(int(mask.sum()) for mask in masks)) != before:
        before = marked
        for node in reversed(nodes):
            node.flow.needs(
                [masks[at] for at in node.bottoms], [masks[at] for at in node.tops], [values[at] for at in node.bottoms]
            )
