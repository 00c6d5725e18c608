"""Ranks under a budget: never over it, best within it, better the more it allows."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forcereg.cost import Cost
from forcereg.errors import ForceregError, UsageError
from forcereg.lowrank.budget import MET, Measure, by_budget
from forcereg.lowrank.choosers import Chooser, Energy, Minmax
from forcereg.lowrank.ladder import Ladder
from forcereg.lowrank.ranks import Candidate, Whole
from tests.lowrank.candidates import candidate, total, weight

MEASURES = st.sampled_from(["macs", "params"])
REST = Cost(5_000, 700)
"""Of the layers that aren't decomposed."""


def layers(seed: int) -> list[Candidate]:
    shapes = [(6, 3, 3, 3, 1), (8, 3, 3, 3, 2), (7, 8, 1, 1, 1)]  # the last is cheapest whole at nearly all ranks
    return [
        candidate(f"l{at}", weight(*shape, seed=seed + at), groups, places=40 - 9 * at)
        for at, (*shape, groups) in enumerate(shapes)
    ]


def spent(candidates: list[Candidate], choices: Any, measure: Measure) -> int:
    return sum(getattr(one.cost(choices[one.name]), measure) for one in candidates)


def lost(candidates: list[Candidate], choices: Any, measure: Measure = "macs") -> float:
    return sum(getattr(one.dense, measure) * one.error(choices[one.name]) for one in candidates)


def largest(candidates: list[Candidate], choices: Any) -> float:
    return max(one.error(choices[one.name]) for one in candidates)


def every(candidates: list[Candidate], measure: Measure) -> Any:
    """All that could be chosen: ranks that cost less than the layer, and the layer."""
    for picked in itertools.product(*([*one.cheaper(measure), Whole("")] for one in candidates)):
        yield dict(zip([one.name for one in candidates], picked, strict=True))


def reachable(candidates: list[Candidate], measure: Measure) -> float:
    least = sum(min(getattr(one.cost(rank), measure) for rank in (*one.ranks, Whole(""))) for one in candidates)
    rest = getattr(REST, measure)
    return (rest + least) / (rest + getattr(total(candidates), measure))


@given(seed=st.integers(0, 1000), share=st.floats(0.2, 1), measure=MEASURES)
@settings(max_examples=40)
def test_none_of_all_choices_is_better(seed: int, share: float, measure: Measure) -> None:
    found = layers(seed)
    whole = total(found) + REST
    if share < reachable(found, measure):
        with pytest.raises(UsageError, match="can't be reached"):
            by_budget(measure, share, whole)(found)
        return
    choices = by_budget(measure, share, whole)(found)
    room = int(share * getattr(whole, measure)) - getattr(REST, measure)
    assert spent(found, choices, measure) <= room
    within = [(spent(found, one, measure), lost(found, one, measure)) for one in every(found, measure)]
    within = [pair for pair in within if pair[0] <= room]
    full = [pair for pair in within if pair[0] >= room - int(MET * share * getattr(whole, measure))]
    best = min(loss for _, loss in full or within)
    assert lost(found, choices, measure) == pytest.approx(best, abs=1e-6)
    thrifty = by_budget(measure, share, whole, fill=False)(found)
    assert lost(found, thrifty, measure) == pytest.approx(min(loss for _, loss in within), abs=1e-6)


@given(seed=st.integers(0, 1000), share=st.floats(0.2, 1), measure=MEASURES)
@settings(max_examples=40)
def test_none_of_all_choices_has_a_smaller_largest_error(seed: int, share: float, measure: Measure) -> None:
    """And of those with the least one the sum is the least."""
    found = layers(seed)
    whole, share = total(found) + REST, max(share, reachable(found, measure))
    room = int(share * getattr(whole, measure)) - getattr(REST, measure)
    slack = int(MET * share * getattr(whole, measure))
    within = [one for one in every(found, measure) if spent(found, one, measure) <= room]
    full = [one for one in within if spent(found, one, measure) >= room - slack]
    for fill, among in ((True, full or within), (False, within)):
        choices = by_budget(measure, share, whole, fill, Minmax())(found)
        assert spent(found, choices, measure) <= room
        least = min(largest(found, one) for one in among)
        assert largest(found, choices) == least
        best = min(lost(found, one, measure) for one in among if largest(found, one) == least)
        assert lost(found, choices, measure) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("choose", [Energy(), Minmax()], ids=["energy", "minmax"])
@given(seed=st.integers(0, 1000), shares=st.tuples(st.floats(0.2, 1), st.floats(0.2, 1)), measure=MEASURES)
@settings(max_examples=20)
def test_a_larger_budget_never_loses_more(
    choose: Chooser, seed: int, shares: tuple[float, float], measure: Measure
) -> None:
    found = layers(seed)
    whole, low = total(found) + REST, reachable(found, measure)
    small, large = (by_budget(measure, max(share, low), whole, False, choose)(found) for share in sorted(shares))
    if choose.worst:
        assert largest(found, large) <= largest(found, small)
    else:
        assert lost(found, large, measure) <= lost(found, small, measure) + 1e-6


def test_minmax_spends_on_the_layer_that_is_cut_worst() -> None:
    """Of a dear layer that loses little and a cheap one that would lose much."""
    found = [candidate("dear", weight(24, 12, 3, 3), places=400), candidate("cheap", weight(24, 12, 3, 3, seed=2))]
    whole = total(found)
    energy, minmax = (by_budget("macs", 0.4, whole, choose=choose)(found) for choose in (Energy(), Minmax()))
    assert found[1].error(energy["cheap"]) > 2 * found[1].error(minmax["cheap"])
    assert largest(found, minmax) < largest(found, energy) and lost(found, minmax) > lost(found, energy)


@pytest.mark.parametrize("choose", [Energy(), Minmax()], ids=["energy", "minmax"])
def test_pairs_are_at_least_as_good_as_equal_shares(choose: Chooser) -> None:
    found = [candidate(f"l{at}", weight(12, 8, 3, 3, seed=at), method="tucker2", places=90 >> at) for at in range(3)]
    whole = total(found)
    choices = by_budget("macs", 0.5, whole, fill=False, choose=choose)(found)
    room = int(0.5 * (whole.macs or 0))
    alike = [one for one in every(found, "macs") if spent(found, one, "macs") <= room]
    if choose.worst:
        assert largest(found, choices) <= min(largest(found, one) for one in alike)
    else:
        assert lost(found, choices) <= min(lost(found, one) for one in alike)


@pytest.mark.parametrize("steps", [2_000, 200_000])
def test_coarse_costs_stay_within_the_budget(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a search in single costs would take too long, it rounds them up."""
    monkeypatch.setattr("forcereg.lowrank.budget.STEPS", steps)
    found = layers(3)
    whole = total(found) + REST
    losses = []
    for percent in range(60, 101):
        choices = by_budget("macs", percent / 100, whole)(found)
        assert spent(found, choices, "macs") + (REST.macs or 0) <= percent / 100 * (whole.macs or 0)
        losses.append(lost(found, choices))
    assert losses[0] > losses[20] > losses[-1]


@pytest.mark.parametrize("measure", ["macs", "params"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.75, 0.9])
def test_a_budget_is_met_to_two_percent(share: float, measure: Measure) -> None:
    found = [candidate(f"l{at}", weight(64, 32, 3, 3, seed=at), places=100 >> at) for at in range(4)]
    whole = total(found)
    used = spent(found, by_budget(measure, share, whole)(found), measure) / getattr(whole, measure)
    assert 0.98 * share <= used <= share


def test_a_layer_that_no_rank_makes_cheaper_stays_whole() -> None:
    found = [candidate("big", weight(16, 16, 3, 3)), candidate("thin", weight(2, 1, 1, 1))]
    assert not found[1].cheaper()
    choices = by_budget("macs", 0.5, total(found))(found)
    assert choices["thin"] == Whole("no rank of it costs less than the whole layer")
    assert isinstance(choices["big"], int)


def test_with_room_for_everything_all_stays_whole() -> None:
    found = layers(1)
    choices = by_budget("macs", 1, total(found))(found)
    assert all(isinstance(choice, Whole) for choice in choices.values())


class Counting:
    """A ladder that remembers the ranks whose error was asked for."""

    def __init__(self, ladder: Any) -> None:
        self.ladder, self.asked = ladder, set[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ladder, name)

    def estimate(self, rank: int) -> float:
        self.asked.add(rank)
        return self.ladder.estimate(rank)


def test_ranks_that_can_not_be_chosen_are_not_computed() -> None:
    """cp and kmeans walk to a rank through all lower ones, each slower than the last."""
    pytest.importorskip("tensorly", reason="cp is tensorly's: the extra lowrank")
    counting = Counting(candidate("a", weight(12, 6, 3, 3), method="cp").ladder)
    one = replace(candidate("a", weight(12, 6, 3, 3), method="cp"), ladder=counting)
    limit = max(one.cheaper("macs"))
    by_budget("macs", 1, one.dense)([one])
    assert max(counting.asked) == limit < one.ladder.full_rank
    counting.asked.clear()
    by_budget("macs", 0.5, one.dense)([one])
    assert max(counting.asked) <= limit // 2


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan")])
def test_a_share_out_of_range(share: float) -> None:
    with pytest.raises(UsageError, match="expected above 0, at most 1"):
        by_budget("macs", share, None)


def test_the_lowest_that_can_be_reached_is_told_and_reached() -> None:
    found = layers(1)
    whole = total(found) + REST
    with pytest.raises(UsageError, match="can't be reached: the least is") as caught:
        by_budget("macs", 0.01, whole)(found)
    told = re.search(r"the least is ([\d.]+) \(([\d,]+) of ([\d,]+)\)", str(caught.value))
    assert told is not None and int(told[3].replace(",", "")) == whole.macs
    choices = by_budget("macs", float(told[1]), whole)(found)
    assert spent(found, choices, "macs") + (REST.macs or 0) >= int(told[2].replace(",", ""))


@pytest.mark.parametrize(
    ("kind", "multiple", "way"),
    [
        pytest.param("Convolution", 1, "decompose more layers (--fc)", id="more"),
        pytest.param("Convolution", 4, "take a smaller --multiple or decompose more layers (--fc)", id="both"),
        pytest.param("InnerProduct", 4, "take a smaller --multiple", id="multiple"),
        pytest.param("InnerProduct", 1, "decompose by another --method", id="method"),
    ],
)
def test_what_reaches_further_is_something_that_was_not_asked_for(kind: str, multiple: int, way: str) -> None:
    ladder = Ladder(weight(12, 6, 3, 3), multiple=multiple)
    one = replace(candidate("a", weight(12, 6, 3, 3)), type=kind, ladder=ladder)
    with pytest.raises(UsageError, match=re.escape(f"; allow that, or {way}") + "$"):
        by_budget("macs", 0.001, one.dense)([one])


def test_unknown_macs() -> None:
    found = [candidate("a", weight(16, 16, 3, 3), places=None)]
    with pytest.raises(ForceregError, match="MACs are unknown"):
        by_budget("macs", 0.5, Cost(None, 3000))(found)
    assert isinstance(by_budget("params", 0.5, total(found))(found)["a"], int)
