"""The search for ranks that keep the accuracy, and the sensitivity of each layer, with accuracies made up."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forcereg.cost import Cost
from forcereg.errors import UsageError
from forcereg.lowrank.accuracy import MOST, Trial, by_accuracy, sensitivity
from forcereg.lowrank.budget import by_budget
from forcereg.lowrank.choosers import Minmax
from forcereg.lowrank.decompose import Prepared, Selection, prepare
from forcereg.lowrank.ranks import Choice, Whole
from forcereg.schema.text import parse_net

NET = """
input: "data" input_shape { dim: 1 dim: 3 dim: 12 dim: 12 }
layer { name: "one" type: "Convolution" bottom: "data" top: "one" convolution_param { num_output: 16 kernel_size: 3 } }
layer { name: "two" type: "Convolution" bottom: "one" top: "two" convolution_param { num_output: 24 kernel_size: 3 } }
"""
SHAPES = {"data": (1, 3, 12, 12), "one": (1, 16, 10, 10), "two": (1, 24, 8, 8)}
MACS = 16 * 27 * 100 + 24 * 144 * 64
REST = 20_000  # of layers that are no candidates
WHOLE = Cost(MACS + REST, 4000)


def prepared(seed: int = 0) -> Prepared:
    random = np.random.default_rng(seed)
    weights = {}
    for name, rows, shape in (("one", 16, (3, 3, 3)), ("two", 24, (16, 3, 3))):
        mixing = random.normal(size=(rows, rows)) * np.logspace(0, -random.uniform(0.5, 2), rows)
        weights[name] = {0: np.tensordot(mixing, random.normal(size=(rows, *shape)), 1).astype(np.float32)}
    return prepare(parse_net(NET), weights, SHAPES, Selection())


class Test:
    """A made-up test set on which the accuracy falls with the errors, the costly layer's most; keeps what is asked."""

    __test__ = False

    def __init__(self, of: Prepared, top: float = 0.9, steps: int = 1000) -> None:
        self.of, self.top, self.steps = of, top, steps
        self.calls: list[Mapping[str, Choice]] = []

    def __call__(self, choices: Mapping[str, Choice]) -> float:
        self.calls.append(choices)
        lost = sum(one.error(choices.get(one.name, Whole(""))) * (one.dense.macs or 0) for one in self.of.candidates)
        kept = 1 - lost / sum(one.dense.macs or 0 for one in self.of.candidates)
        return round(self.top * kept * self.steps) / self.steps


def macs(of: Prepared, choices: Mapping[str, Choice]) -> int:
    return REST + sum(one.cost(choices[one.name]).macs or 0 for one in of.candidates)


@functools.cache
def front(seed: int) -> tuple[Prepared, list[tuple[int, float]]]:
    """A net, and (MACs, accuracy) of the best ranks at many budgets."""
    of = prepared(seed)
    found = []
    for share in np.geomspace(0.2, 1, 25):
        choices = by_budget("macs", float(share), WHOLE, fill=False)(of.candidates)
        found.append((macs(of, choices), Test(of)(choices)))
    return of, found


@settings(max_examples=20)
@given(seed=st.integers(0, 2), drop=st.floats(0, 0.5))
def test_the_bound_is_met_at_nearly_the_least_cost(seed: int, drop: float) -> None:
    of, known = front(seed)
    test = Test(of)
    found = by_accuracy(drop, test, WHOLE)(of.candidates)
    assert test(found) >= test({}) - drop - 1e-6
    assert len(test.calls) <= MOST + 2
    least = min(cost for cost, accuracy in known if accuracy >= test({}) - drop)
    assert macs(of, found) <= 1.1 * least  # ranks are whole numbers, so a larger budget can be the worse one


def test_every_trial_is_told_and_none_is_made_twice() -> None:
    of = prepared()
    test, trials = Test(of), list[Trial]()
    found = by_accuracy(0.05, test, WHOLE, trials.append)(of.candidates)
    assert [trial.number for trial in trials] == list(range(1, len(test.calls) + 1))
    assert trials[0].share == 1 and trials[0].accuracy == 0.9 and trials[0].words == "MACs"
    assert all(test.calls.count(choices) == 1 for choices in test.calls)
    kept = [trial for trial in trials if trial.kept]
    assert min(trial.share for trial in kept) == macs(of, found) / (MACS + REST)
    assert all(trial.kept == (trial.accuracy >= 0.85 - 1e-6) for trial in trials)


def test_the_nets_tried_are_the_best_by_the_way_asked_for() -> None:
    of = prepared()
    test, asked = Test(of), list[int]()

    def moments() -> dict[str, Tensor]:
        asked.append(1)
        return {}

    by_accuracy(0.3, test, WHOLE, choose=Minmax(), moments=moments)(of.candidates)
    shares = [macs(of, choices) / (MACS + REST) for choices in test.calls[1:]]
    assert shares and not asked, "the largest error asks for no inputs"
    for share, tried in zip(shares, test.calls[1:], strict=True):
        by_hand = by_budget("macs", share, WHOLE, False, Minmax())(of.candidates)
        assert worst(of, tried) == pytest.approx(worst(of, by_hand))


def worst(of: Prepared, choices: Mapping[str, Choice]) -> float:
    return max(one.error(choices[one.name]) for one in of.candidates)


def test_a_net_that_bears_nothing_stays_whole() -> None:
    of = prepared()
    found = by_accuracy(0.01, lambda choices: 0.5 + 0.5 * all(isinstance(one, Whole) for one in choices.values()),
                        Cost(MACS, 1))(of.candidates)  # fmt: skip
    assert set(found) == {"one", "two"}
    for choice in found.values():
        assert isinstance(choice, Whole) and choice.reason.endswith("at most 0.01 below 1")


def test_without_shapes_learned_values_count() -> None:
    of = prepared()
    trials: list[Trial] = []
    by_accuracy(1, Test(of), Cost(None, 4000), trials.append)(of.candidates)
    assert {trial.words for trial in trials} == {"learned values"} and trials[-1].share < 0.1


@pytest.mark.parametrize("drop", [-0.1, 1.5, float("nan")])
def test_a_drop_out_of_range(drop: float) -> None:
    with pytest.raises(UsageError, match=r"the accuracy to lose is .*; expected 0 to 1"):
        by_accuracy(drop, lambda choices: 1.0, Cost(1, 1))


def test_sensitivity() -> None:
    of = prepared()
    test = Test(of)
    whole, *points = sensitivity(of.candidates, [0.01, 0.2], test, WHOLE)
    assert (whole.layer, whole.accuracy, whole.share, whole.drop) == ("", 0.9, 1, 0)
    asked = [("one", 0.01), ("one", 0.2), ("two", 0.01), ("two", 0.2)]
    assert [(point.layer, point.bound) for point in points] == asked
    for point, choices in zip(points, test.calls[1:], strict=True):
        assert choices == {point.layer: point.rank}
        assert point.error <= point.bound and point.rank <= point.full_rank
        assert point.accuracy == Test(of)(choices) and point.drop == 0.9 - point.accuracy > 0
    one, _ = of.candidates
    left = MACS + REST - (one.dense.macs or 0) + (one.cost(points[1].rank).macs or 0)
    assert points[1].share == left / (MACS + REST)
