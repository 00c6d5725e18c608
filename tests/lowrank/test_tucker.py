"""tucker2: bounds on the errors of all pairs of ranks, the search among them, and budgets that use them."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import forcereg.lowrank
from forcereg.cost import chain_cost
from forcereg.errors import UsageError
from forcereg.lowrank import Ladder, tucker2
from forcereg.lowrank.budget import Measure, by_budget
from forcereg.lowrank.factor import IN, LINEAR, LOWRANK, Method, Rank, Slot
from forcereg.lowrank.ranks import Candidate, Whole, by_error
from forcereg.lowrank.search import EFFICIENT, cheapest, efficient
from forcereg.lowrank.tucker import Tucker2, improved
from forcereg.registry import factorizer
from tests.golden_cases import Case, golden_cases
from tests.lowrank.candidates import total

SHAPES = (
    (8, 6, 3, 3),
    (12, 4, 3, 3),
    (20, 1, 5, 5),
    (16, 16, 3, 3),
    (10, 20, 5, 5),
    (6, 12, 1, 1),
    (32, 8, 3, 3),
    (5, 7, 3),
)
kernels = st.builds(lambda at, seed: kernel(SHAPES[at], seed), st.integers(0, len(SHAPES) - 1), st.integers(0, 10**6))
MET = 1 + 1e-9


def kernel(shape: tuple[int, ...], seed: int) -> Tensor:
    """Random; two of three as training makes them: energies that fall along outputs and inputs, unevenly fast."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(*shape, generator=generator, dtype=torch.float64)
    if seed % 3:
        falls = 0.2 + 1.8 * torch.rand(2, generator=generator, dtype=torch.float64)
        mixes = [
            torch.randn(size, size, generator=generator, dtype=torch.float64) * torch.arange(1.0, size + 1) ** -fall
            for size, fall in zip(shape[:2], falls, strict=True)
        ]
        weight = torch.einsum("nc...,mn,dc->md...", weight, *mixes)
    return weight


def layer(weight: Tensor, places: tuple[int, int, int] = (49, 36, 36), name: str = "a", groups: int = 1) -> Candidate:
    """A convolution whose first 1x1 layer works at more positions than the rest."""
    dense = chain_cost([weight.numel()], [places[1]])
    return Candidate(name, "Convolution", name, "tucker2", Ladder(weight, "tucker2", groups), dense, places)


def macs(one: Candidate, rank: Rank) -> int:
    return one.cost(rank).macs or 0


def tied(one: Candidate, error: float) -> Rank:
    """The smallest of the ranks at equal shares that meets the bound."""
    return next(rank for rank in one.ranks if one.ladder.error(rank) <= error * MET)


# -- bounds


@given(weight=kernels)
@settings(max_examples=15, deadline=None)
def test_bounds_of_all_pairs_are_those_of_each_alone(weight: Tensor) -> None:
    """The upper one: the error between the leading singular vectors; the lower one: the larger of the two tails."""
    method = Tucker2(weight)
    lower, upper = method.bounds()
    unfolded = weight.flatten(1), weight.transpose(0, 1).flatten(1)
    (out, _, _), (into, _, _) = (torch.linalg.svd(rows, full_matrices=False) for rows in unfolded)
    tails = [torch.linalg.svdvals(rows).square() for rows in unfolded]
    assert lower.shape == upper.shape == method.full_ranks
    for r, s in itertools.product(*(range(1, full + 1) for full in method.full_ranks)):
        near = torch.einsum("nc...,mn,dc->md...", weight, out[:, :r] @ out[:, :r].T, into[:, :s] @ into[:, :s].T)
        exact, most = float((weight - near).square().sum()), float(upper[r - 1, s - 1])
        assert most == pytest.approx(exact, rel=1e-6, abs=1e-12 * method.scale)
        least = float(max(tails[0][r:].sum(), tails[1][s:].sum()))
        assert float(lower[r - 1, s - 1]) == pytest.approx(least, rel=1e-6, abs=1e-12 * method.scale)
        found = method.squared_error((r, s))
        assert float(lower[r - 1, s - 1]) - 1e-12 * method.scale <= found <= most


def test_small_errors_do_not_drown_in_rounding() -> None:
    """A weight of rank (3, 2) but for a millionth part in each of the other directions."""
    core = torch.zeros(10, 8, 9, dtype=torch.float64)
    core[:3, :2] = torch.randn(3, 2, 9, generator=torch.Generator().manual_seed(1))
    tiny = 1e-6 * torch.randn(10, 8, 9, generator=torch.Generator().manual_seed(2))
    ladder = Ladder((core + tiny).reshape(10, 8, 3, 3), "tucker2")
    share = float(tiny.square().sum() / core.square().sum())
    assert 0.5 * share < ladder.error((3, 2)) < share
    assert ladder.smallest_rank(2 * share) == (3, 2)
    assert ladder.smallest_rank(1e-3 * share) > (3, 2)
    assert ladder.smallest_rank(0) == (10, 8) and ladder.error((10, 8)) == 0


@pytest.mark.parametrize("rank", [1, 4, 12, 19])
def test_leading_directions_are_found_beside_many_others(rank: int) -> None:
    rows = torch.randn(64, 90, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    rows *= torch.logspace(0, -1.5, 64, dtype=torch.float64)[:, None]
    vectors, _, _ = torch.linalg.svd(rows, full_matrices=False)
    turned = vectors.T @ rows + 0.02 * torch.randn(64, 90, generator=torch.Generator().manual_seed(9))
    basis, held = improved(turned, torch.eye(64, rank, dtype=torch.float64))
    assert torch.allclose(basis.T @ basis, torch.eye(rank, dtype=torch.float64), atol=1e-12)
    best = float(torch.linalg.svdvals(turned).square()[:rank].sum())
    assert best * (1 - 1e-4) <= held <= best * MET
    assert held == pytest.approx(float((basis.T @ turned).square().sum()))


# -- error bounds


@pytest.mark.parametrize("start", range(0, 200, 25))
def test_pairs_never_cost_more_than_one_share_for_both(start: int) -> None:
    saved = 0
    for seed in range(start, start + 25):
        one = layer(kernel(SHAPES[seed % len(SHAPES)], seed), (1 + seed % 4, 1, 1))
        for error in (0.02, 0.1, 0.3):
            pair, other = one.smallest_rank(error), tied(one, error)
            assert one.ladder.error(pair) <= error * MET
            assert macs(one, pair) <= macs(one, other)
            saved += macs(one, pair) < macs(one, other)
    assert saved > 20


@pytest.mark.parametrize("case", golden_cases("decompose", lambda case: case.load("weights").ndim == 4))
def test_nor_for_recorded_weights(case: Case) -> None:
    one = layer(torch.tensor(case.load("weights")), (4, 1, 1))
    for error in (0, 0.01, 0.05, 0.2):
        pair = one.smallest_rank(error)
        assert one.ladder.error(pair) <= error * MET and macs(one, pair) <= macs(one, tied(one, error))


@given(weight=kernels, error=st.floats(0.005, 0.9))
@settings(max_examples=25, deadline=None)
def test_hardly_any_pair_would_be_cheaper(weight: Tensor, error: float) -> None:
    """Against all pairs, each with its own error."""
    one = layer(weight)
    full = one.ladder.full_ranks
    pairs = itertools.product(*(range(1, most + 1) for most in full))
    best = min(macs(one, pair) for pair in pairs if one.ladder.error(pair) <= error)
    assert best <= macs(one, one.smallest_rank(error)) <= 1.2 * best


def test_the_cost_is_the_layers_own() -> None:
    """Where the first part works at many more positions fewer inputs pay, where it doesn't fewer outputs."""
    weight = kernel((16, 16, 3, 3), 1)
    (r, s), (p, q) = (layer(weight, places).smallest_rank(0.1) for places in ((100, 1, 1), (1, 1, 100)))  # type: ignore[misc]
    assert s < q and r > p
    assert layer(weight, (1, 1, 1)).smallest_rank(0.1) == tucker2(weight, error=0.1).ranks


@given(weight=kernels, groups=st.sampled_from([1, 2]), error=st.floats(0.01, 0.9))
@settings(max_examples=25, deadline=None)
def test_every_group_meets_the_bound(weight: Tensor, groups: int, error: float) -> None:
    weight = weight[: len(weight) // groups * groups]
    found = tucker2(weight, error=error, groups=groups)
    assert all(rank % groups == 0 for rank in found.ranks)
    for block, near in zip(weight.chunk(groups), found.reconstruct().chunk(groups), strict=True):
        assert float((block - near).square().sum()) <= error * MET * float(block.square().sum())


def test_a_single_number_is_the_outputs_rank_and_the_same_share_of_the_inputs() -> None:
    weight = kernel((8, 6, 3, 3), 1)
    assert tucker2(weight, rank=4).ranks == (4, 3) and tucker2(weight, rank=5).ranks == (5, 4)
    assert tucker2(weight, rank=4).error == tucker2(weight, rank=(4, 3)).error
    assert tucker2(kernel((8, 6, 3, 3), 1), rank=(5, 3), groups=2).ranks == (4, 2)


# -- the search


def test_bounds_decide_where_they_can() -> None:
    costs, errors = np.array([1, 2, 3, 4, 5]), np.array([0.5, 0.4, 0.3, 0.2, 0.0])
    asked: list[int] = []

    def error(at: int) -> float:
        asked.append(at)
        return float(errors[at])

    assert cheapest(costs, errors, errors, 0.35, error) == 2
    assert asked == [2]  # the others' bounds say enough
    asked.clear()  # bounds twice as wide: what may be within them is tried, the most hopeful first
    assert cheapest(costs, errors, 2 * errors, 0.35, error) == 2
    assert asked == [4, 3, 2]
    assert cheapest(costs, errors, 2 * errors, 0.35, error, first=range(5)) == 2


@given(seed=st.integers(0, 10**6), limit=st.integers(1, 2000), count=st.integers(1, 3000))
@settings(max_examples=40, deadline=None)
def test_efficient_combinations(seed: int, limit: int, count: int) -> None:
    random = np.random.default_rng(seed)
    costs, errors = random.integers(1, 1000, count), random.random(count)
    also = [0, count - 1]
    kept = efficient(costs, errors, limit, also)
    assert len(kept) <= EFFICIENT + 2 and len(set(kept)) == len(kept)
    assert (costs[kept] < limit).all() and (np.diff(costs[kept]) >= 0).all()
    for at in set(kept) - set(also):
        beats = (costs <= costs[at]) & (errors < errors[at])
        assert not beats.any()
    under = np.flatnonzero(costs < limit)
    assert set(also) & set(under) <= set(kept)
    if len(under):
        cheap = under[costs[under] == costs[under].min()]
        assert cheap[errors[cheap].argmin()] in kept


class Three(Method):
    """A method of one's own with three ranks: 1x1 layers in and out, and two of them between.

    Its error falls along all three; nothing but that and the shapes is said of it.
    """

    slots = (IN, Slot("one"), LOWRANK, LINEAR)

    @property
    def full_rank(self) -> int:
        return 6

    @property
    def full_ranks(self) -> tuple[int, ...]:
        return 6, 4, 3

    def squared_error(self, rank: Any) -> float:
        parts = (weight * (1 - one / full) for weight, one, full in zip((5, 1, 3), rank, self.full_ranks, strict=True))
        return self.scale * sum(parts) / 9

    def tensors(self, rank: Any) -> tuple[Tensor, ...]:
        return tuple(torch.zeros(size, dtype=torch.float64) for size in self.sizes(rank))

    def sizes(self, rank: Any) -> list[tuple[Any, ...]]:
        first, second, third = rank
        return [(third, 4, 1, 1), (second, third, 1, 1), (first, second, 3, 3), (6, first, 1, 1)]


def test_a_method_may_have_three_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(factorizer._known, "three", Three)
    ladder = Ladder(torch.ones(6, 4, 3, 3), "three")
    places = (4, 4, 1, 1)
    one = Candidate("a", "Convolution", "a", "three", ladder, chain_cost([216], [4]), places)
    every = list(itertools.product(range(1, 7), range(1, 5), range(1, 4)))
    for error in (0, 0.2, 0.5, 0.9):
        found = one.smallest_rank(error)
        best = min(macs(one, rank) for rank in every if ladder.error(rank) <= error * MET)
        assert ladder.error(found) <= error * MET and macs(one, found) == best
    assert ladder.rounded(3) == (3, 2, 2) and ladder.alike[-1] == (6, 4, 3)
    choice = by_budget("macs", 0.5, one.dense)([one])["a"]
    within = [rank for rank in every if macs(one, rank) <= 432]
    assert macs(one, choice) <= 432 and ladder.error(choice) == min(map(ladder.error, within))  # type: ignore[arg-type]


# -- budgets


def lenet(seed: int = 0) -> list[Candidate]:
    """LeNet's convolutions as strong force leaves them: few different outputs, of all the inputs."""
    random = torch.Generator().manual_seed(seed)

    def forced(outputs: int, channels: int, rank: int) -> Tensor:
        basis = torch.randn(rank, channels, 5, 5, generator=random, dtype=torch.float64)
        mix = torch.randn(outputs, rank, generator=random, dtype=torch.float64)
        noise = torch.randn(outputs, channels, 5, 5, generator=random, dtype=torch.float64)
        return torch.einsum("nr,rcyx->ncyx", mix, basis) + 0.05 * noise

    return [
        layer(forced(20, 1, 4), (784, 576, 576), "conv1"),
        layer(forced(50, 20, 4), (144, 64, 64), "conv2"),
    ]


def test_few_outputs_of_all_inputs_are_no_reason_to_drop_inputs() -> None:
    """The fault: with one share for both ranks 4 of 50 outputs meant 2 of 20 inputs."""
    net = lenet()
    pair = by_budget("macs", 0.2, total(net))(net)["conv2"]
    assert isinstance(pair, tuple) and pair[0] <= 7 and pair[1] >= 16
    best_tied = min(
        net[1].error(rank) for rank in net[1].cheaper() if macs(net[1], rank) <= 0.2 * (total(net).macs or 0)
    )
    assert net[1].error(pair) < 0.01 < 0.3 < best_tied
    pair = by_error(0.05)(net)["conv2"]
    assert not isinstance(pair, Whole) and pair[0] == 4 and macs(net[1], pair) < 0.3 * macs(net[1], tied(net[1], 0.05))  # type: ignore[index]


@given(seed=st.integers(0, 10**6), share=st.floats(0.15, 0.95), measure=st.sampled_from(["macs", "params"]))
@settings(max_examples=25, deadline=None)
def test_budgets_are_kept_and_pairs_lose_no_more(seed: int, share: float, measure: Measure) -> None:
    shapes = (12, 4, 3, 3), (16, 16, 3, 3), (6, 12, 1, 1)
    net = [layer(kernel(shape, seed + at), (64 >> at, 49 >> at, 49 >> at), f"l{at}") for at, shape in enumerate(shapes)]
    whole = total(net)
    room = int(share * getattr(whole, measure))
    ways = [[*one.cheaper(measure), Whole("")] for one in net]  # one share for both ranks
    spent = {
        picked: sum(getattr(one.cost(choice), measure) for one, choice in zip(net, picked, strict=True))
        for picked in itertools.product(*ways)
    }
    within = [picked for picked, cost in spent.items() if cost <= room]

    def lost(picked: tuple) -> float:
        return sum(getattr(one.dense, measure) * one.error(choice) for one, choice in zip(net, picked, strict=True))

    try:
        found = by_budget(measure, share, whole, fill=False)(net)
    except UsageError:
        assert not within
        return
    picked = tuple(found[one.name] for one in net)
    assert sum(getattr(one.cost(choice), measure) for one, choice in zip(net, picked, strict=True)) <= room
    assert not within or lost(picked) <= min(map(lost, within)) * MET


def test_a_large_layers_budget_takes_few_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its errors are looked up as bounds; only what is chosen is improved."""
    monkeypatch.setattr("forcereg.lowrank.tucker.QUICK", 100)
    net = [layer(kernel((32, 32, 3, 3), at), name=f"l{at}") for at in (1, 2)]
    by_budget("macs", 0.4, total(net))(net)
    assert all(len(one.ladder._methods[0]._found) <= 2 for one in net)  # type: ignore[attr-defined]


# -- multiples


@pytest.mark.parametrize("method", ["pca", "vh", "kmeans", "tucker2"])
@pytest.mark.parametrize("groups", [1, 2])
@given(seed=st.integers(0, 10**6), multiple=st.sampled_from([1, 2, 3, 4, 16]), error=st.floats(0, 1))
@settings(max_examples=10, deadline=None)
def test_ranks_are_multiples_or_full(method: str, groups: int, seed: int, multiple: int, error: float) -> None:
    weight = kernel((12, 8, 3, 3), seed)
    ladder = Ladder(weight, method, groups, multiple=multiple)
    ranks = ladder.smallest_rank(error)
    assert ladder.error(ranks) <= error * MET
    each = zip(ranks if isinstance(ranks, tuple) else [ranks], ladder.full_ranks, strict=True)
    assert all(rank == full or rank % (multiple * groups) == 0 for rank, full in each)
    assert all(ladder.rounded(rank) == rank for rank in ladder.alike)


@pytest.mark.parametrize("method", ["pca", "tucker2"])
def test_budgets_choose_among_multiples(method: str) -> None:
    weights = [kernel((24, 20, 3, 3), seed) for seed in (1, 2)]
    net = [
        Candidate(
            str(at), "Convolution", "", method, ladder, chain_cost([one.numel()], [36]), (36,) * len(ladder.slots)
        )
        for at, one in enumerate(weights)
        for ladder in [Ladder(one, method, multiple=8)]
    ]
    found = by_budget("macs", 0.6, total(net))(net)
    assert sum(macs(one, found[one.name]) for one in net) <= 0.6 * (total(net).macs or 0)  # type: ignore[arg-type]
    for choice in found.values():
        ranks = choice if isinstance(choice, tuple) else (choice,)
        assert all(rank in (8, 16, 20, 24) for rank in ranks)


def test_what_is_taken_for_another_rank_is_told() -> None:
    weight = kernel((12, 8, 3, 3), 1)
    assert Ladder(weight, "pca", 2).rounding(6) == Ladder(weight, "tucker2", 2).rounding(6) == ""
    text = "rank 7 was asked for, 6 is taken: the same in each of the 2 groups"
    assert Ladder(weight, "pca", 2).rounding(7) == text
    text = "rank 5-3 was asked for, 8-4 is taken: a multiple of 4"
    assert Ladder(weight, "tucker2", multiple=4).rounding((5, 3)) == text
    assert Ladder(weight, "tucker2", multiple=4).rounding(5) == "rank 5 was asked for, 8-4 is taken: a multiple of 4"


# -- functions


@pytest.mark.parametrize("name", ["pca", "svd", "vh", "kmeans", "tucker2", "cp"])
def test_each_function_has_its_own_help(name: str) -> None:
    function = getattr(forcereg.lowrank, name)
    text = inspect.getdoc(function) or ""
    assert inspect.isfunction(function) and function.__name__ == name
    assert "Raises ValueError" in text or "errors raised are those of `pca`" in text
    assert "weight" in inspect.signature(function).parameters
