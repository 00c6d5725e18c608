"""Ranks from measured times, with times that are given instead of measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forcereg.cost import Cost
from forcereg.errors import ForceregError, UsageError
from forcereg.lowrank.factor import Rank
from forcereg.lowrank.ladder import Ladder
from forcereg.lowrank.ranks import Candidate, Choice, Criterion, Whole, by_list
from forcereg.lowrank.timed import MULTIPLES, PAIRS, Timed, by_times, is_faster, nearby

POSITIONS = 100


@cache
def layer(name: str = "c", groups: int = 1, method: str = "pca", outputs: int = 96) -> Candidate:
    """A 3x3 convolution from 96 channels; by MACs a pair of it pays up to rank 86 without groups."""
    weight = torch.randn(outputs, 96 // groups, 3, 3, generator=torch.Generator().manual_seed(0))
    ladder = Ladder(weight, method, groups)
    dense = Cost(weight.numel() * POSITIONS, weight.numel())
    return Candidate(
        name, "Convolution", f"net:7: layer '{name}'", method, ladder, dense, (POSITIONS,) * len(ladder.slots)
    )


def given_times(whole: float, ms: Callable[[Rank], float], asked: list[Choice] | None = None):
    """A timer for which every round is the same; `asked` collects what it is asked for."""

    def timer(one: Candidate, choices: Sequence[Choice]) -> list[list[float]]:
        if asked is not None:
            asked.extend(choices)
        return [[whole if isinstance(choice, Whole) else ms(choice)] * 4 for choice in choices]

    return timer


def chosen(found: Timed, name: str = "c") -> Choice:
    return found.choices[name]


@pytest.mark.parametrize(
    ("asked", "groups", "down", "ranks"),
    [
        pytest.param(30, 1, False, [32], id="up"),
        pytest.param(33, 1, False, [36, 40, 48, 64], id="up-four"),
        pytest.param(33, 1, True, [32], id="down"),
        pytest.param(47, 1, True, [44, 40, 32], id="down-three"),
        pytest.param(32, 1, False, [], id="is-one"),
        pytest.param(5, 1, False, [8], id="at-most-twice"),
        pytest.param(3, 1, True, [], id="none-below"),
        pytest.param(18, 2, False, [24, 32], id="of-each-group"),
        pytest.param(34, 2, True, [32], id="of-each-group-down"),
        pytest.param(81, 1, False, [84], id="never-dearer-than-the-layer"),
    ],
)
def test_ranks_nearby(asked: int, groups: int, down: bool, ranks: list[int]) -> None:
    assert nearby(layer(groups=groups), asked, down) == ranks


@pytest.mark.parametrize(
    ("asked", "down", "ranks"),
    [
        pytest.param((30, 21), False, [(32, 21), (30, 24), (32, 24), (30, 32), (32, 32)], id="up"),
        pytest.param((30, 21), True, [(30, 20), (28, 21), (28, 20), (24, 21), (30, 16), (24, 20)], id="down"),
        pytest.param((32, 64), False, [], id="are-both"),
        pytest.param((32, 63), False, [(32, 64)], id="one-is"),
    ],
)
def test_each_rank_of_a_pair_goes_to_its_own_multiple(asked: tuple, down: bool, ranks: list[tuple]) -> None:
    found = nearby(layer(method="tucker2"), asked, down)
    assert found[: len(ranks)] == ranks and len(found) <= PAIRS
    assert down or len(found) == len(ranks)


@given(st.sampled_from([1, 2, 4]), st.integers(1, 24), st.booleans())
def test_ranks_nearby_keep_error_or_cost(groups: int, each: int, down: bool) -> None:
    one, asked = layer(groups=groups), groups * each
    found = nearby(one, asked, down)
    assert asked not in found and len(set(found)) == len(found)
    for rank in found:
        assert isinstance(rank, int)
        assert rank % (min(MULTIPLES) * groups) == 0 and asked / 2 <= rank <= 2 * asked
        assert rank < asked if down else one.error(rank) <= one.error(asked)
        assert (one.cost(rank).macs or 0) < (one.dense.macs or 0)
    assert found == sorted(found, key=lambda rank: abs(rank - asked))


def test_the_fastest_wins() -> None:
    asked: list[Choice] = []
    times = {33: 5.0, 36: 4.0, 40: 3.0, 48: 2.0, 64: 6.0}
    found = by_times([layer()], by_list([33]), given_times(10, lambda rank: times[rank], asked))
    assert chosen(found) == 48
    assert [one for one in asked if not isinstance(one, Whole)] == [33, 36, 40, 48, 64]
    (trial,) = found.trials
    assert (trial.asked, trial.before, trial.after, trial.times) == (33, 10, 2, times)


@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
def test_of_equally_fast_chains_the_rank_asked_for_wins(down: bool) -> None:
    ms = {46: 4.6, 44: 4.38, 40: 3.99, 32: 3.2} if down else {46: 5, 48: 4.95, 64: 5.5}
    found = by_times([layer()], by_list([46]), given_times(10, lambda rank: ms[rank]), down)
    assert chosen(found) == 46
    assert len(found.trials[0].times) == len(ms)


def test_under_a_budget_a_lower_rank_has_to_save_more_time_than_work() -> None:
    ms = {46: 6.0, 44: 5.7, 40: 4.2, 32: 3.9}  # 32 is the fastest, but by less than its share
    found = by_times([layer()], by_list([46]), given_times(10, lambda rank: ms[rank]), budget=True)
    assert chosen(found) == 40


@pytest.mark.parametrize(
    ("chain", "whole", "faster"),
    [
        pytest.param([5.0], [10.0], True, id="twice"),
        pytest.param([9.8], [10.0], False, id="two-percent"),
        pytest.param([9.6], [10.0], True, id="four-percent"),
        pytest.param([12.0], [10.0], False, id="slower"),
        pytest.param([9, 9, 9, 9, 11], [10, 10, 10, 10, 10], True, id="one-round-lost"),
        pytest.param([9, 9, 9, 11, 11], [10, 10, 10, 10, 10], False, id="two-rounds-lost"),
        pytest.param([5, 9, 9, 9, 50], [6, 10, 10, 10, 60], True, id="drift-in-both"),
    ],
)
def test_really_faster(chain: list[float], whole: list[float], faster: bool) -> None:
    assert is_faster(chain, whole) is faster


def test_a_layer_that_no_chain_makes_faster_stays_whole() -> None:
    found = by_times([layer()], by_list([30]), given_times(10, lambda rank: 9.9))
    assert chosen(found) == Whole("measured: 10 ms as it is, 9.9 ms as a chain of rank 30")
    assert found.trials[0].after == found.trials[0].before == 10


def test_a_median_that_few_rounds_bear_out_is_told() -> None:
    ms = {30: [9.0, 9.0, 9.0, 11.0, 11.0]}
    found = by_times(
        [layer()], by_list([30]), lambda one, tried: [[10.0] * 5, *(ms.get(r, [12.0] * 5) for r in tried[1:])]
    )
    text = "measured: 10 ms as it is, 9 ms as a chain of rank 30, faster in 3 of 5 rounds only"
    assert chosen(found) == Whole(text)


def test_a_layer_that_the_criterion_leaves_whole_is_not_measured() -> None:
    asked: list[Choice] = []
    left = Whole("not named")
    found = by_times([layer()], lambda _: {"c": left}, given_times(1, lambda rank: 1, asked))
    assert (chosen(found), found.trials, asked) == (left, (), [])


def test_ranks_are_those_that_the_method_takes() -> None:
    found = by_times([layer(groups=2)], by_list([33]), given_times(10, lambda rank: rank / 10))
    assert (found.trials[0].asked, found.trials[0].choice) == (32, 32)
    assert chosen(found) == 33  # so that its rounding is told, as without times


def test_a_rank_out_of_range_is_told_by_the_layer() -> None:
    with pytest.raises(ForceregError) as info:
        by_times([layer()], by_list([97]), given_times(1, lambda rank: 1))
    assert str(info.value) == "net:7: layer 'c': cannot be decomposed: rank is 97; expected 1 to 96"


def shared(total: int, seen: list[list[str]]) -> Criterion:
    """A budget of ranks in equal shares; layers that aren't there cost 40."""

    def choose(candidates: Sequence[Candidate]) -> dict[str, Choice]:
        seen.append([one.name for one in candidates])
        rank = (total - 40 * (3 - len(candidates))) // len(candidates) if candidates else 0
        if rank < 1:
            raise UsageError("the budget can't be reached")
        return {one.name: rank for one in candidates}

    return choose


def test_a_budget_is_shared_out_again_without_layers_that_stay_whole() -> None:
    layers, seen = [layer("a"), layer("b"), layer("c")], list[list[str]]()

    def timer(one: Candidate, choices: Sequence[Choice]) -> list[list[float]]:
        return [[10.0 if isinstance(choice, Whole) or one.name == "b" else float(choice) / 8] for choice in choices]

    found = by_times(layers, shared(105, seen), timer, budget=True)
    assert seen == [["a", "b", "c"], ["a", "c"]]
    assert isinstance(chosen(found, "b"), Whole)
    assert (chosen(found, "a"), chosen(found, "c")) == (32, 32)  # 65 left for two
    assert [(one.name, one.asked) for one in found.trials] == [("a", 32), ("b", 35), ("c", 32)]


def test_a_budget_that_times_put_out_of_reach() -> None:
    layers = [layer("a"), layer("b"), layer("c")]
    with pytest.raises(UsageError) as info:
        by_times(layers, shared(60, []), given_times(1, lambda rank: 2), budget=True)
    expected = "the budget can't be reached; no chain makes a, b, c faster here, so they stay whole"
    assert str(info.value) == expected
