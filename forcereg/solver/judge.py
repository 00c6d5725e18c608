"""What is decided at tests: whether the net is the best so far, and whether the run has come to its end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from forcereg.errors import ForceregError, did_you_mean
from forcereg.net.module import Net
from forcereg.net.scoring import Score
from forcereg.solver.average import ENDING, leaves_traces
from forcereg.solver.goal import DEFAULT, MAX, MIN, Aims, Goal, Watched
from forcereg.solver.run import Nets, Run

ROUNDING = 1e-6
"""What a mean over batches may differ by, relatively, without being another."""
LOSS = "loss"
"""An output; of a test net without one of this name its total loss."""


@dataclass(frozen=True)
class Place:
    """An output of one number: `output` of test net `net`, and whether its `way` is known: "max", "min" or ''."""

    net: int
    output: str
    way: str
    total: bool = False
    """Whether it is the total loss of that net, which is no output."""

    def value(self, scores: Sequence[Score]) -> float:
        """What it was in a test."""
        score = scores[self.net]
        return score.loss if self.total else score.mean(self.output)


@dataclass
class Best:
    """The best `value` so far, of `output`, at which iteration (-1: none yet); how many tests `since` were no better.

    What a state holds of it.
    """

    output: str = ""
    value: float = 0.0
    iteration: int = -1
    since: int = 0


@dataclass(frozen=True)
class Verdict:
    """What came of a test: what is told of its net if that is the `best`, why the run is to `stop`, by which keyword.

    The latter are '' if it isn't.
    """

    best: Mapping[str, Any] | None = None
    stop: str = ""
    reason: str = ""


class Judge:
    """Judges the tests of a run by its aims.

    Raises ForceregError for outputs that aren't there, or of several numbers, and where it isn't known which way of
    one is better.
    """

    def __init__(self, run: Run, nets: Nets, aims: Aims) -> None:
        self._run, self.aims = run, aims
        p = run.param
        tested = {index: net for index, net in enumerate(nets.tests) if p.test_iter[index] > 0}
        if not (tested and p.test_interval > 0):
            raise ForceregError(f"{run.name}: there are no tests to judge by; set test_interval and test_iter")
        goal = aims.best or (Goal(Watched(DEFAULT)) if aims.patience is not None else None)
        self._goal = None if goal is None else self._place(goal.watched, tested)
        self._limit = None if aims.stop is None else self._place(aims.stop.watched, tested)
        self.best = Best()
        if goal is not None and self._goal is not None:
            self._way = goal.way or self._goal.way
            self.best.output = f"{self._goal.output}#{self._goal.net}:{self._way}"
            if not self._way:
                name = goal.watched.output
                raise ForceregError(
                    f"{run.name}: whether more or less of output '{name}' is better isn't known; say {name}:max or "
                    f"{name}:min"
                )

    def _place(self, asked: Watched, tested: Mapping[int, Net]) -> Place:
        nets = {index: net for index, net in tested.items() if asked.net in (None, index)}
        if not nets:
            raise ForceregError(
                f"{self._run.name}: there is no test net #{asked.net} to judge by; tested are "
                f"{', '.join(f'#{index}' for index in tested)}"
            )
        for index, net in nets.items():
            output = self._scored(net, asked.output)
            if output in net.spec.outputs:
                if (count := prod(net.shapes[output])) != 1:
                    raise ForceregError(
                        f"{net.spec.filename}: output '{asked.output}' has {count:,} elements; nets are judged by an "
                        "output of one number"
                    )
                return Place(index, asked.output, _way(net, output))
        for index, net in nets.items():
            if asked.output == DEFAULT and (named := _accuracies(net)):
                return Place(index, named[0], MAX)
            if asked.output == LOSS and net.loss_weights:
                return Place(index, LOSS, MIN, total=True)
        index, first = next(iter(nets.items()))
        names = first.spec.outputs
        unnamed = self.aims.patience is not None and self.aims.best is None and asked.output == DEFAULT
        raise ForceregError(
            f"{first.spec.filename}: test net #{index} has no output '{asked.output}'"
            + (did_you_mean(asked.output, names) or f"; outputs are {', '.join(names) or 'none'}")
            + ("; name one by keep_best, by which patience goes" if unnamed and names else "")
        )

    def _scored(self, net: Net, name: str) -> str:
        """The net's output that a score of this name is of: X_ema of X, by averaged weights."""
        output = name.removesuffix(ENDING)
        averaged = self._run.param.ema_decay and output in net.spec.outputs and not leaves_traces(net)
        return output if averaged else name

    def take(self, iteration: int, scores: Sequence[Score]) -> Verdict:
        """What comes of the tests of an iteration. All ranks have to give the same scores."""
        found, goal = None, self._goal
        if goal is not None:
            value, before = goal.value(scores), self.best
            # NaN is no better than anything
            if math.isfinite(value) and (before.iteration < 0 or self._better(value, before.value)):
                known = {"value": before.value, "iteration": before.iteration} if before.iteration >= 0 else None
                found = {"net": goal.net, "output": goal.output, "value": value, "way": self._way, "before": known}
                self.best = Best(before.output, value, iteration)
            elif iteration > before.iteration:  # else the run has gone back, and has had this test before
                before.since += 1
        return Verdict(found, *self._ended(scores))

    def _better(self, value: float, than: float) -> bool:
        # a mean of the same numbers in another order is another float32
        if math.isclose(value, than, rel_tol=ROUNDING):
            return False
        return value > than if self._way == MAX else value < than

    def _ended(self, scores: Sequence[Score]) -> tuple[str, str]:
        limit, place = self.aims.stop, self._limit
        if limit is not None and place is not None and limit.reached(value := place.value(scores)):
            return f"{place.output} is {value:g}, {limit.sign} {limit.value:g} as asked for", "stop_when"
        patience, best, goal = self.aims.patience, self.best, self._goal
        if patience is not None and goal is not None and best.since >= patience:
            tests = "test has" if patience == 1 else f"{best.since} tests have"
            known = f"{best.value:g} at iteration {best.iteration}" if best.iteration >= 0 else "none yet"
            return f"the last {tests} brought no better {goal.output} (best: {known})", "patience"
        return "", ""

    # -- for snapshots

    def state_dict(self) -> dict[str, Any]:
        """What a state holds; nothing where no best is looked for."""
        return {} if self._goal is None else dict(vars(self.best))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from that; begins anew where another output was looked at, or none."""
        fresh = Best(self.best.output)
        self.best = Best(**state) if state.get("output") == fresh.output else fresh

    def keep(self, best: Best) -> None:
        """Behind going back: the `best` so far stays, whose files are there; tests that come again count once."""
        since = self.best.since if self.best.iteration == best.iteration else 0
        self.best = replace(best, since=since)


def _way(net: Net, output: str) -> str:
    if output in _accuracies(net):
        return MAX
    weight = net.loss_weights.get(output, 0.0)
    return MIN if weight > 0 else MAX if weight < 0 else ""


def _accuracies(net: Net) -> list[str]:
    """The outputs that are Accuracy layers' means."""
    return [spec.tops[0] for spec in net.spec.layers if spec.type == "Accuracy" and spec.tops[0] in net.spec.outputs]
