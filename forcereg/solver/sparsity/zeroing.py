"""What a step does to weights behind the update: zeros below a threshold, dynamic surgery, soft thresholds.

The SSL branch makes every |w| < 1e-4 zero, of all blobs. SkimCaffe does so by the type of a blob's weight decay:

    L1      with max_threshold_factor F >= 2 below t F / (1 + F |d|), d the update; a blob of type L2 stays
    L1_DNS  of weights with four axes: a dense copy takes the update, the weight is that copy where it isn't below t
            (dynamic network surgery), so that pruned weights come back
    ISTA    w moves by rate * decay towards 0 and stops there; that is its only penalty
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcereg.net.module import Learnable
from forcereg.solver.sparsity.asked import DNS, ISTA, kind_of

FACTOR = 2
"""From which max_threshold_factor on the threshold goes by the update."""


def zero_below(weight: Tensor, threshold: float) -> Tensor:
    """Makes every |w| < threshold 0, in place; the threshold is a float32, a weight that equals it stays."""
    # |w| > the number before it is |w| >= threshold, in one pass over memory
    before = float(np.nextafter(np.float32(threshold), np.float32(0)))
    return torch.ops.aten.hardshrink.out(weight, before, out=weight) if threshold else weight


def adaptive_threshold(update: Tensor, threshold: float, factor: float) -> Tensor:
    """SkimCaffe's threshold by the size of the last update: threshold * F / (1 + F |d|)."""
    return update.abs().mul_(factor).add_(1).reciprocal_().mul_(threshold * factor)


def soft_(weight: Tensor, by: float | Tensor) -> Tensor:
    """Moves each value by `by` towards 0, and not beyond, in place: the proximal step of by * sum |w|."""
    return weight.copy_(weight.sign() * (weight.abs() - by).clamp_(min=0))


class Zeroing:
    """Applies it, by the settings `p` and a `threshold` (0: none), to all blobs of a net (`every`).

    `learning`: places of those that an update changes. Between `before` and `behind` an update is made.
    """

    def __init__(
        self, every: Sequence[Learnable], learning: Sequence[int], p: Any, threshold: float, device: torch.device
    ) -> None:
        self._threshold, self._factor = threshold, float(p.max_threshold_factor)
        blobs, kinds = [one.blob.detach() for one in every], [kind_of(one, p) for one in every]
        decays = [p.weight_decay * one.decay_mult for one in every]
        own = [place for place in learning if decays[place]]
        dense = [place for place in own if kinds[place] == DNS and blobs[place].dim() == 4]
        soft = [place for place in own if kinds[place] == ISTA]
        left = [place for place in range(len(every)) if place not in (*dense, *soft)]
        constant, by_update = threshold > 0 and self._factor < FACTOR, threshold > 0 and self._factor >= FACTOR
        self._hard = [blobs[place] for place in left if constant]
        adaptive = [place for place in left if by_update and place in learning and kinds[place] != "L2"]
        self._adaptive = [(blobs[place], learning.index(place)) for place in adaptive]
        self._dense = {f"{every[place].layer}/{every[place].index}": blobs[place] for place in dense}
        self._shadows = {name: torch.zeros_like(blob) for name, blob in self._dense.items()}
        self._cuts: dict[str, Tensor] = {}
        self._soft = [(blobs[place], decays[place] * every[place].lr_mult) for place in soft]
        self._rate = torch.zeros((), device=device)

    def set(self, rate: float) -> None:
        """The learning rate of the next update, before any graph of it."""
        if self._soft:
            self._rate.fill_(rate)

    def before(self) -> None:
        """In front of the update: that of a surgery changes the dense weights."""
        for name, weight in self._dense.items():
            # what isn't zero equals its copy, unless it was loaded or set since
            torch.where(weight != 0, weight, self._shadows[name], out=weight)

    def behind(self, updates: Sequence[Tensor], stop: Tensor | None = None) -> None:
        """Behind the update, of which `updates` was subtracted. `stop` is 1 where it wasn't made."""
        for name, weight in self._dense.items():
            self._shadows[name].copy_(weight)
            if name in self._cuts:
                weight.masked_fill_(weight.abs() < self._cuts[name], 0)
            else:
                zero_below(weight, self._threshold)
        for weight in self._hard:
            zero_below(weight, self._threshold)
        for weight, place in self._adaptive:
            small = weight.abs() < adaptive_threshold(updates[place], self._threshold, self._factor)
            weight.masked_fill_(small, 0)
        rate = self._rate if stop is None else self._rate * (1 - stop)
        for weight, decay in self._soft:
            soft_(weight, rate * decay)

    def forget(self) -> None:
        """Weights were loaded: zeros among them are zeros."""
        for shadow in self._shadows.values():
            shadow.zero_()

    def carried(self) -> Mapping[str, Tensor]:
        """The dense weights of a surgery, which an exact resume needs."""
        return self._shadows

    def spare(self, weight: Tensor) -> None:
        """Leaves a weight's values as they are from now on, by whatever rule they would become zero."""
        same = weight.data_ptr()
        self._hard = [one for one in self._hard if one.data_ptr() != same]
        self._adaptive = [(one, place) for one, place in self._adaptive if one.data_ptr() != same]
        self._soft = [(one, decay) for one, decay in self._soft if one.data_ptr() != same]

    # -- a surgery of a caller's own: of any weight, at a threshold that may change

    def operate(self, name: str, weight: Tensor) -> None:
        """Begins one on the weight "layer/index", from its values as they are: nothing is below its `cut` yet."""
        self._dense[name], self._shadows[name] = weight.detach(), weight.detach().clone()
        self._cuts[name] = torch.zeros((), device=weight.device)

    def cut(self, name: str, below: float) -> None:
        """From the next update on its values below that are zeros."""
        self._cuts[name].fill_(below)

    def dense(self, name: str) -> Tensor:
        """Its weights with those behind the zeros, a copy."""
        weight = self._dense[name]
        return torch.where(weight != 0, weight, self._shadows[name])

    def close(self, name: str) -> None:
        """Ends it: the weight stays as it is."""
        for held in (self._dense, self._shadows, self._cuts):
            held.pop(name, None)
