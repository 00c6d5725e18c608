"""Pruning while training: at intervals the smallest weights of some layers become zero, and layers are judged.

Guided sparsity learning (Park et al., "Faster CNNs with Direct Sparse Convolutions and Guided Pruning", ICLR 2017,
section 2.3) prunes only what can win: a layer that can't be faster than dense is left out, one that has reached its
useful bound is stopped, and one whose sparsity has settled above its break-even gets its dense weights back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.net.module import Net
from forcereg.solver.run import Run
from forcereg.solver.sparsity.asked import MASKED
from forcereg.solver.sparsity.pruning import cubic, cut_at, kept, smallest
from forcereg.solver.steps import Steps

MAGNITUDE, L1, DNS = METHODS = ("magnitude", "l1", "dns")
"""The smallest weights, for good; what L1 has made zero; the smallest ones, which may come back meanwhile."""
SETTLED, POINTS = 0.005, 3
"""A layer's sparsity has settled when less of its weights than that became zero, or came back, at so many points."""
SKIPPED, STOPPED, RESTORED = "skipped", "stopped", "restored"
"""What may be decided on a layer."""


@dataclass(frozen=True)
class Limit:
    """Between which shares of weights that aren't zero pruning a layer pays, as measured.

    `most`: below it the layer is faster than dense, None if it never is; `least`: below it it gets no faster.
    """

    most: float | None
    least: float = 0.0
    alpha: float | None = None
    """The sparse kernel's time for a multiplication, of the dense one's, at the share `most`."""

    @property
    def text(self) -> str:
        """For people."""
        if self.most is None:
            return "dense is fastest at every share of its weights"
        alpha = "" if self.alpha is None else f", alpha {self.alpha:.2f}"
        return f"faster than dense below {self.most:.1%} of its weights{alpha}; below {self.least:.1%} no gain"


Aim = tuple[float | None, Mapping[str, float] | None]
"""A target, or shares by layer."""


@dataclass(frozen=True)
class How:
    """What to prune: of `layers` the share `target` of all weights, or of each its share in `shares`.

    By `method`, every `every` iterations before `until`; with `limits` guided by these. `dense` has the weights that
    a layer may get back. Without target and shares zeros come as they do (L1), and `aim` says both in the end.
    """

    layers: Sequence[str]
    method: str = MAGNITUDE
    target: float | None = None
    shares: Mapping[str, float] | None = None
    until: int = 0
    every: int = 100
    limits: Mapping[str, Limit] | None = None
    dense: Mapping[str, Tensor] = field(default_factory=dict)
    aim: Callable[[], Aim] | None = None


def prunable(net: Net) -> dict[str, Tensor]:
    """The weights that can be pruned, by layer in net order: those of MASKED types that learn."""
    types = {spec.name: spec.type for spec in net.spec.layers}
    learning = (one for one in net.learnable if one.index == 0 and one.lr_mult and one.blob.requires_grad)
    return {one.layer: one.blob.detach() for one in learning if types[one.layer] in MASKED}


class Pruning:
    """Prunes a run's net as `how` says; `settle` behind the run makes the masks final, which are `masks` then.

    Raises ForceregError for a layer without weights that learn.
    """

    def __init__(self, run: Run, net: Net, steps: Steps, how: How) -> None:
        self._run, self._steps, self.how = run, steps, how
        weights = prunable(net)
        if missing := [name for name in how.layers if name not in weights]:
            raise ForceregError(f"{net.spec.filename}: layer '{missing[0]}' has no weights that learn; none is pruned")
        self._weights = {name: weights[name] for name in weights if name in how.layers}
        self._decided: dict[str, str] = {}
        self._left: dict[str, float] = {}
        self._still: dict[str, int] = {}
        self._cuts: dict[str, float] = {}
        self._at = -1
        self.masks: dict[str, Tensor] = {}
        self._operated = set(self._weights) if how.method == DNS else set[str]()
        for name in self._weights if how.method == DNS else ():
            steps.updater.zeroing.operate(self._key(name), self._weights[name])

    @staticmethod
    def _key(name: str) -> str:
        return f"{name}/0"

    @property
    def decided(self) -> Mapping[str, str]:
        """What was decided on layers: SKIPPED, STOPPED or RESTORED."""
        return dict(self._decided)

    @property
    def _active(self) -> list[str]:
        return [name for name in self._weights if name not in self._decided]

    # -- while it trains

    def due(self, iteration: int) -> bool:
        """Whether to prune in front of this iteration."""
        # a snapshot among the tests behind it holds what it has come to
        return self._at < iteration < self.how.until and iteration % self.how.every == 0

    @torch.no_grad()
    def prune(self, iteration: int) -> None:
        """Prunes as far as it is to be by then, and judges each layer."""
        if not iteration:
            self._skip()
        self._cut(cubic(min(1.0, (iteration + self.how.every) / self.how.until)))
        self._judge(iteration)
        self._at = iteration
        self._tell(iteration)
        self._steps.forget()

    def _skip(self) -> None:
        """Leaves out what can't win."""
        for name in self._active if self.how.limits is not None else ():
            limit = self._limit(name)
            if limit is None or limit.most is None:
                self._close(name)
                why = "no sparse form runs it" if limit is None else "no share of zeros makes it faster than dense here"
                self._decide(0, name, SKIPPED, f"is skipped: {why}")

    def _cut(self, part: float) -> None:
        """Brings active layers to the part of what is asked for."""
        if self.how.method == L1:
            return
        for name, count in self._counts(part, self.how.target, self.how.shares).items():
            if self.how.method == DNS:
                self._cuts[name] = cut_at(self._dense(name), count)
                self._steps.updater.zeroing.cut(self._key(name), self._cuts[name])
            else:
                self._mask(name, kept(self._weights[name], count))

    def _counts(self, part: float, target: float | None, shares: Mapping[str, float] | None) -> dict[str, int]:
        """How many weights of each active layer are to be zeros: none more than where it gets no faster."""
        active = {name: self._dense(name) for name in self._active}
        most = {name: self._most(name) for name in active}
        if shares is not None:
            return {name: min(most[name], round(part * shares[name] * w.numel())) for name, w in active.items()}
        frozen = [name for name, decision in self._decided.items() if decision == STOPPED]
        total = sum(weight.numel() for weight in active.values()) + sum(self._weights[name].numel() for name in frozen)
        zeros = sum(int((self._weights[name] == 0).sum()) for name in frozen)
        return smallest(active, round(part * (target or 0.0) * total) - zeros, most)

    def _most(self, name: str) -> int:
        limit, size = self._limit(name), self._weights[name].numel()
        return size if limit is None else size - ceil(limit.least * size)

    def _limit(self, name: str) -> Limit | None:
        return (self.how.limits or {}).get(name)

    def _dense(self, name: str) -> Tensor:
        """A layer's weights with those that may come back."""
        if name in self._operated:
            return self._steps.updater.zeroing.dense(self._key(name))
        return self._weights[name]

    def _share(self, name: str) -> float:
        """Of a layer's weights those that aren't zero; of a surgery those that won't be behind the next update."""
        weight = self._dense(name)
        left = weight.abs() >= self._cuts[name] if {name} <= self._operated & self._cuts.keys() else weight != 0
        return int(left.sum()) / weight.numel()

    # -- what it comes to

    def _judge(self, iteration: int) -> None:
        """Stops layers at their useful bound, restores those that have settled above their break-even."""
        for name in self._active:
            share = self._share(name)
            moved = abs(share - self._left.get(name, 2.0)) > SETTLED
            self._still[name] = 0 if moved else self._still.get(name, 0) + 1
            if moved:
                self._left[name] = share
            limit = self._limit(name)
            if limit is None:
                continue
            zeros = round((1 - share) * self._weights[name].numel())
            if zeros >= self._most(name):
                self._freeze(name, zeros)
                self._decide(
                    iteration, name, STOPPED, f"is stopped with {share:.1%} of its weights left: fewer gain nothing"
                )
            elif self._still[name] >= POINTS:
                self._judge_settled(iteration, name, share, limit)

    def _judge_settled(self, iteration: int, name: str, share: float, limit: Limit) -> None:
        # before a schedule has begun to bite a layer stands still too
        if limit.most is not None and share >= limit.most and iteration >= self.how.until / 2:
            self._restore(name)
            self._give_back(iteration, name, share, f"settled, and faster than dense only below {limit.most:.1%}")

    def _close(self, name: str) -> None:
        """Nothing makes zeros in a layer any more."""
        self._operated.discard(name)
        self._steps.updater.zeroing.close(self._key(name))
        self._steps.updater.spare(name, 0)

    def _restore(self, name: str) -> None:
        self._close(name)
        self._weights[name].copy_(self.how.dense[name])
        self._mask(name, torch.ones_like(self._weights[name], dtype=torch.bool))
        # what drew at the pruned weights isn't the dense ones'
        for _, held in self._steps.updater.history_of(name, 0):
            held.zero_()

    def _freeze(self, name: str, count: int) -> None:
        """Makes the `count` smallest weights of a layer zeros for good, and with them what is zero already."""
        weight = self._dense(name)
        mask = kept(weight, count) & (weight != 0)
        self._weights[name].copy_(weight)
        self._close(name)
        self._mask(name, mask)

    def _mask(self, name: str, mask: Tensor) -> None:
        self._weights[name].masked_fill_(~mask, 0)
        self._steps.updater.masks.set({self._key(name): mask})

    @torch.no_grad()
    def settle(self, iteration: int) -> None:
        """Ends the pruning: each layer has at least as many zeros as is asked for, under a mask.

        With limits those that aren't faster than dense with them get their dense weights back. A run's last snapshot
        is from before.
        """
        if not self.how.until:
            self._skip()
        asked = (self.how.target, self.how.shares) if self.how.aim is None else self.how.aim()
        for name, count in self._counts(1.0, *asked).items():
            size, limit = self._weights[name].numel(), self._limit(name)
            share = 1 - max(count, int((self._dense(name) == 0).sum())) / size
            if limit is not None and limit.most is not None and share >= limit.most:
                self._restore(name)
                self._give_back(iteration, name, share, f"faster than dense only below {limit.most:.1%}")
            else:
                self._freeze(name, count)
        self._tell(iteration)
        self._steps.forget()
        pruned = [name for name in self._weights if self._decided.get(name, STOPPED) == STOPPED]
        self.masks = {self._key(name): self._weights[name] != 0 for name in pruned}

    # -- what is told and kept

    def _give_back(self, iteration: int, name: str, share: float, why: str) -> None:
        text = f"is restored, its dense weights are back: {share:.1%} were left, {why}"
        self._decide(iteration, name, RESTORED, text, share)

    def _decide(self, iteration: int, name: str, decision: str, why: str, share: float | None = None) -> None:
        share = self._share(name) if share is None else share
        self._decided[name] = decision
        text = f"{name} {why}"
        self._run.tell.emit("decision", iteration=iteration, layer=name, decision=decision, share=share, text=text)

    def _tell(self, iteration: int) -> None:
        layers = [{"layer": name, "share": self._share(name)} for name in self._weights]
        self._run.tell.emit("pruning", iteration=iteration, layers=layers)

    def state_dict(self) -> dict[str, Any]:
        """What a snapshot keeps of it."""
        return {
            "at": self._at,
            "decided": dict(self._decided),
            "left": dict(self._left),
            "still": dict(self._still),
            "cuts": dict(self._cuts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken; the weights and what a surgery carries are there already."""
        self._at = state.get("at", -1)
        self._decided, self._left = dict(state.get("decided", {})), dict(state.get("left", {}))
        self._still, self._cuts = dict(state.get("still", {})), dict(state.get("cuts", {}))
        for name in self._weights:
            if name in self._decided:
                self._close(name)
            elif name in self._operated & self._cuts.keys():
                self._steps.updater.zeroing.cut(self._key(name), self._cuts[name])
