"""The steps of a pruning: how far, then while training, then fine-tuned under the masks; and what it came to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from forcereg.errors import ForceregError, storable
from forcereg.layers.sparse import DENSE
from forcereg.lowrank.rewrite import Weights
from forcereg.net.read import ReadNet
from forcereg.schema.text import NetFile, SolverFile, to_text
from forcereg.solver.jsonlog import JsonLog
from forcereg.solver.loop import Solver
from forcereg.solver.pruning import L1, SKIPPED, How, Limit, Pruning
from forcereg.solver.state import pack
from forcereg.study.evaluate import Evaluator
from forcereg.study.prune import spread
from forcereg.study.prune.limits import LayerTimes, fastest
from forcereg.study.prune.report import Row
from forcereg.study.scores import digest
from forcereg.study.tuning import tune, tuning, weights_of
from forcereg.system.events import Event, Tell
from forcereg.system.files import make_folder

FACTOR = 10
"""SkimCaffe's max_threshold_factor: weights at rest are zeros below so many times the threshold."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to prune: `layers` by a `method`, to the share `target` of zeros, or as far as `drop` allows.

    `over` iterations (0: at once), looked at `every` so many; then `finetune` under the masks; both at the learning
    `rate`, None for a tenth of base_lr. `decay` and `threshold` are L1's. `guided`: only where it is faster, for inputs
    of `batch` items.
    """

    layers: Sequence[str]
    method: str
    target: float | None
    drop: float | None
    spread: str
    over: int
    every: int
    finetune: int
    rate: float | None
    decay: float
    threshold: float
    guided: bool
    batch: int
    seed: int


@dataclass(frozen=True)
class Scores:
    """Accuracies: of the net as it was, pruned, and fine-tuned behind that (None if it wasn't)."""

    whole: float
    pruned: float
    tuned: float | None


class Session:
    """Prunes the net that was `read`, by a plan; logs and snapshots go to `folder`, named by content.

    What was interrupted goes on, what is done isn't done again. `options` are `Solver`'s.
    """

    def __init__(
        self, plan: Plan, read: ReadNet, evaluator: Evaluator, folder: Path, options: Mapping[str, Any], tell: Tell
    ) -> None:
        self.plan, self._read, self._evaluator, self._tell = plan, read, evaluator, tell
        self._folder, self._options = folder, options

    # -- what it starts from

    @property
    def _tested(self) -> NetFile:
        return self._evaluator.test_file or self._evaluator.train_file

    @property
    def _whole(self) -> Weights:
        return self._read.model.layers

    def _score(self, weights: Weights) -> float:
        found = self._evaluator.score(self._tested, weights).accuracy
        if found is None:
            raise ForceregError(f"{self._tested.name}: has no Accuracy layer in its test phase; add one")
        return found

    @cached_property
    def limits(self) -> dict[str, Limit] | None:
        """Where pruning pays, by layer, without those that no sparse form runs; None if that isn't asked for.

        Measured, or as measured here before. Raises ForceregError if it pays nowhere.
        """
        if not self.plan.guided:
            return None
        make_folder(self._folder)
        net, _ = self._evaluator.net(self._tested, self._whole)
        times = LayerTimes(net, self.plan.batch, self._tell, self._folder / "limits.json")
        found = {name: limit for name in self.plan.layers if (limit := times.limit(name)) is not None}
        net.close()
        if all(limit.most is None for limit in found.values()):
            raise ForceregError(
                f"{self._tested.name}: no layer that is to be pruned becomes faster than dense on this machine, at "
                f"any share of zeros and batch {self.plan.batch}; prune without --guided for smaller files alone"
            )
        for name, limit in found.items():
            self._tell.note(f"{name}: {limit.text}")
        return found

    @property
    def _winning(self) -> list[str]:
        """The layers that are pruned unless they are restored."""
        known = self.limits
        if known is None:
            return list(self.plan.layers)
        return [name for name in self.plan.layers if name in known and known[name].most is not None]

    # -- how far

    def _aim(self, weights: Weights, whole: float) -> tuple[float | None, Mapping[str, float] | None]:
        """The share of zeros of all layers together, or each layer's own, for a net with these weights."""
        plan, layers = self.plan, self._winning

        def accuracy(counts: Mapping[str, int]) -> float:
            return self._score(spread.without(weights, counts))

        known: dict[str, spread.Bearing] = {}
        if plan.spread == spread.SENSITIVITY:
            found = spread.bearings(weights, layers, accuracy, self._score(weights))
            known = dict(self._tell.track(found, "layer", len(layers)))

        def shares(target: float) -> dict[str, float] | None:
            if plan.spread == spread.UNIFORM:
                return dict.fromkeys(layers, target)
            return spread.by_sensitivity(known, target) if known else None

        def at(target: float) -> float:
            return accuracy(spread.counts_of(weights, layers, target, shares(target)))

        target = plan.target
        if target is None:
            target = spread.largest(at, whole - (plan.drop or 0.0))
            self._tell.note(f"{target:.1%} of the weights may go at a drop of at most {plan.drop:g} before fine-tuning")
        by_layer = shares(target)
        return (target, None) if by_layer is None else (None, by_layer)

    # -- training

    def _param(self, iterations: int) -> Any:
        found = self._evaluator
        param = tuning(found.solver, found.train_file, found.test_file, iterations, self.plan.seed)
        param.base_lr = param.base_lr if self.plan.rate is None else self.plan.rate
        # zeros come and stay by what prunes, not by the solver's own
        param.prune_threshold = 0
        return param

    def _trained(
        self, param: Any, weights: Weights, prepare: Callable[[Solver], Any], task: str, named: Sequence[Any]
    ) -> Solver:
        """Trains, or goes on; files are named by the solver, the weights and what else tells the run from others."""
        make_folder(self._folder)
        key = digest([to_text(param), *named], weights)[:12]
        prefix = self._folder.resolve() / f"{task}_{key}"
        param.snapshot_prefix = storable(prefix)
        source = self._evaluator.solver
        file = SolverFile(param, source.name, source.text, self._evaluator.root)
        with JsonLog(f"{prefix}.jsonl") as log:

            def heard(event: Event) -> None:
                log(event)
                self._heard(task, event)

            return tune(file, weights, Path(f"{prefix}.log"), heard, self._options, prepare=prepare)

    def _heard(self, task: str, event: Event) -> None:
        if event.kind == "warning":
            self._evaluator.warn(event.text)
        elif event.kind == "decision":
            self._tell.note(f"iteration {event.iteration:,}: {event.text}")
        elif event.kind == "progress" and event.iteration % self.plan.every == 0:
            self._tell.progress(task, event.iteration, event.max_iter)

    def run(self) -> tuple[Weights, Scores, list[Row]]:
        """The weights of the trained net, the accuracies, and a row for each layer. Raises ForceregError."""
        plan, before = self.plan, self._score(self._whole)
        solver, pruning = self._pruned(before)
        scores = Scores(before, self._score(weights_of(solver)), None)
        if plan.finetune:
            text = f"pruned to an accuracy of {scores.pruned:.4f}, fine-tuning for {plan.finetune:,} iterations"
            self._tell.note(text)
            param, masks = self._param(plan.finetune), pruning.masks
            solver = self._trained(param, all_of(solver), lambda one: one.set_masks(masks), "tune", sorted(masks))
            scores = replace(scores, tuned=self._score(weights_of(solver)))
        return pack(solver.net), scores, self._rows(weights_of(solver), pruning.decided)

    def _pruned(self, before: float) -> tuple[Solver, Pruning]:
        """The solver behind the pruning, and what pruned."""
        plan, late = self.plan, self.plan.method == L1
        target, shares = (None, None) if late else self._aim(self._whole, before)
        dense = {name: torch.from_numpy(self._whole[name][0]) for name in plan.layers}
        how = How(plan.layers, plan.method, target, shares, plan.over, plan.every, self.limits, dense)
        param = self._param(plan.over)
        if late:
            with_l1(param, self._winning, self._whole, plan.decay)
            param.prune_threshold, param.max_threshold_factor = plan.threshold, FACTOR
        limits = {name: asdict(limit) for name, limit in (self.limits or {}).items()}
        made: list[Pruning] = []

        def prepare(solver: Solver) -> None:
            # L1 makes zeros as they come: how far it may go is known by the weights that it leaves
            aim = (lambda: self._aim(all_of(solver), before)) if late else None
            made.append(solver.prune_by(replace(how, aim=aim)))

        named = [list(plan.layers), plan.method, target, shares, plan.every, plan.guided, limits]
        return self._trained(param, self._whole, prepare, "prune", named), made[0]

    # -- what it came to

    def _rows(self, weights: Weights, decided: Mapping[str, str]) -> list[Row]:
        """Zeros and times of the layers, as they are now."""
        net, _ = self._evaluator.net(self._tested, weights)
        times, rows = LayerTimes(net, self.plan.batch, self._tell), []
        for name in self._tell.track(self.plan.layers, "layer", len(self.plan.layers)):
            values, limit = weights[name][0], (self.limits or {}).get(name)
            ms = times.now(name)
            form, sparse = fastest(ms)
            decision = decided.get(name, SKIPPED if self.plan.guided and limit is None else "")
            bounds = (None, None) if limit is None or limit.most is None else (limit.most, limit.least)
            share = float((values != 0).mean())
            rows.append(Row(name, int(values.size), share, ms[DENSE], form, sparse, decision, *bounds))
        net.close()
        return rows


def all_of(solver: Solver) -> Weights:
    """The weights of the trained net, and of layers that the test net alone has."""
    return {**pack(solver.net), **weights_of(solver)}


def with_l1(param: Any, layers: Sequence[str], weights: Weights, decay: float) -> None:
    """Changes a SolverParameter: the weights of the layers decay by `decay` sign(w), all else as before."""
    whole = param.weight_decay
    param.weight_decay = whole or decay
    for layer in param.net_param.layer:
        blobs = len(weights.get(layer.name, {}))
        if layer.name in layers or not whole:
            while len(layer.param) < blobs:
                layer.param.add()
        for one in layer.param if not whole else ():
            one.decay_mult = 0
    pruned = [layer.param[0] for layer in param.net_param.layer if layer.name in layers]
    names = {one.name for one in pruned if one.name}
    # whoever shares a weight may only agree with its owner
    shared = [one for layer in param.net_param.layer for one in layer.param if one.name in names]
    for one in (*pruned, *shared):
        one.regularization_type, one.decay_mult = "L1", decay / param.weight_decay
