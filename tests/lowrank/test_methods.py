"""Properties that every decomposition method has, and what each has of its own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forcereg.lowrank import Ladder, cp, factorize, kmeans, pca, svd, tucker2, vh
from forcereg.lowrank.factor import compose, ungrouped
from forcereg.registry import factorizer
from tests.golden_cases import Case, golden_cases

METHODS = list(factorizer)
shapes = st.sampled_from([(6, 2, 3, 3), (8, 5, 3, 2), (2, 3, 1, 4), (12, 1, 5, 5), (4, 6, 1, 1)])


def random_weight(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Rows of uneven length, so that ranks matter."""
    generator = np.random.default_rng(seed)
    rows = generator.uniform(0.05, 1, (shape[0], *[1] * (len(shape) - 1)))
    return torch.from_numpy(generator.normal(size=shape) * rows)


def squared_error(weight: torch.Tensor, found: torch.Tensor) -> float:
    return float((weight - found).square().sum() / weight.square().sum())


@pytest.mark.parametrize("method", METHODS)
@given(shape=shapes, groups=st.sampled_from([1, 2]), seed=st.integers(0, 10**6), error=st.floats(1e-3, 0.99))
@settings(max_examples=12, deadline=None)
def test_the_error_is_what_is_stated_and_within_the_bound(
    method: str, shape: tuple[int, ...], groups: int, seed: int, error: float
) -> None:
    weight = random_weight(shape, seed)
    found = factorize(weight, error=error, groups=groups, method=method)
    assert abs(found.error - squared_error(weight, found.reconstruct())) <= 1e-9
    assert found.error <= error + 1e-9
    for block, near in zip(weight.chunk(groups), found.reconstruct().chunk(groups), strict=True):
        assert squared_error(block, near) <= error + 1e-9


@pytest.mark.parametrize("method", METHODS)
@given(shape=shapes, seed=st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_the_error_never_rises_with_the_rank_and_ends_at_zero(method: str, shape: tuple[int, ...], seed: int) -> None:
    weight = random_weight(shape, seed)
    ladder = Ladder(weight, method)
    errors = [ladder.error(rank) for rank in range(1, ladder.full_rank + 1)]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(errors))
    assert errors[-1] <= 1e-20
    assert squared_error(weight, ladder.factors(ladder.full_rank).reconstruct()) <= 1e-20


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"tucker2"}))
@given(shape=shapes, seed=st.integers(0, 10**6), error=st.floats(0.01, 0.9))
@settings(max_examples=8, deadline=None)
def test_no_smaller_rank_would_do(method: str, shape: tuple[int, ...], seed: int, error: float) -> None:
    ladder = Ladder(random_weight(shape, seed), method)
    rank = ladder.smallest_rank(error)
    assert ladder.error(rank) <= error * (1 + 1e-9)
    assert rank == 1 or ladder.error(rank - 1) > error


@pytest.mark.parametrize("method", METHODS)
@given(groups=st.sampled_from([2, 3]), seed=st.integers(0, 10**6), rank=st.integers(1, 6))
@settings(max_examples=6, deadline=None)
def test_groups_equal_calls_for_each_alone(method: str, groups: int, seed: int, rank: int) -> None:
    weight = random_weight((12, 2, 3, 3), seed)
    each = min(rank, Ladder(weight[: 12 // groups], method).full_rank)
    together = factorize(weight, rank=each * groups, groups=groups, method=method).reconstruct()
    alone = [factorize(block, rank=each, method=method).reconstruct() for block in weight.chunk(groups)]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_sizes_are_those_of_the_parts(method: str, groups: int) -> None:
    ladder = Ladder(random_weight((6, 4, 3, 2), 1), method, groups)
    for rank in (2, 4):
        assert ladder.sizes(rank) == [tuple(part.weight.shape) for part in ladder.factors(rank).parts]


@pytest.mark.parametrize("method", METHODS)
def test_the_chain_of_convolutions_computes_what_the_composed_weight_does(method: str) -> None:
    found = factorize(random_weight((6, 4, 3, 2), 1), rank=4, groups=2, method=method)
    images = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 8, 7, 6)))
    blob = images
    for part in found.parts:
        blob = torch.nn.functional.conv2d(blob, part.weight, groups=part.groups)
    expected = torch.nn.functional.conv2d(images, found.reconstruct(), groups=2)
    assert torch.allclose(blob, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["pca", "svd", "kmeans"])
@pytest.mark.parametrize("shape", [(5, 7), (6, 2, 4), (4, 2, 3, 2, 2)], ids=str)
def test_pairs_take_kernels_of_any_number_of_axes(method: str, shape: tuple[int, ...]) -> None:
    weight = random_weight(shape, 3)
    found = factorize(weight, rank=2, method=method)
    assert found.basis.shape == (2, *shape[1:]) and found.combine.shape == (shape[0], 2)
    assert abs(found.error - squared_error(weight, found.reconstruct())) <= 1e-12


@pytest.mark.parametrize("method", ["vh", "cp", "tucker2"])
def test_a_matrix_has_no_kernel_to_split(method: str) -> None:
    with pytest.raises(ValueError, match="needs a kernel"):
        factorize(torch.ones(4, 6), rank=1, method=method)


def has_vh(case: Case) -> bool:
    return bool(case.tree("tai"))


@pytest.mark.parametrize("case", golden_cases("decompose", has_vh))
@pytest.mark.parametrize("error", ["0.01", "0.05", "0.1", "0.2"])
def test_vh_needs_the_recorded_ranks(case: Case, error: str) -> None:
    assert vh(case.load("weights"), error=float(error)).rank == case.tree(f"tai/e_{error}")["rank"]


@pytest.mark.parametrize("case", golden_cases("decompose", has_vh))
def test_vh_equals_the_recorded_approximations(case: Case) -> None:
    weight, recorded = case.load("weights"), case.tree("tai")
    ranks = {int(path.split("/")[0].removeprefix("K_")) for path in recorded if path.startswith("K_")}
    assert ranks
    for rank in ranks:
        found = vh(weight, rank=rank)
        assert abs(found.error - recorded[f"K_{rank}/relative_error"]) <= 1e-6
        if f"K_{rank}/reconstruction" in recorded:
            assert np.abs(found.reconstruct().numpy() - recorded[f"K_{rank}/reconstruction"]).max() <= 1e-5


@pytest.mark.parametrize("case", golden_cases("decompose", has_vh))
def test_vh_has_the_recorded_singular_values(case: Case) -> None:
    weight, expected = case.load("weights"), case.load("tai/singular_values")
    ladder, total = Ladder(weight, "vh"), np.square(expected).sum()
    for rank in range(1, ladder.full_rank + 1):
        assert abs(ladder.error(rank) * total - np.square(expected[rank:]).sum()) <= 1e-6 * max(total, 1e-30)


def test_svd_is_the_same_approximation_as_pca_with_balanced_parts() -> None:
    weight = random_weight((8, 5, 3, 2), 1)
    first, second = pca(weight, rank=4), svd(weight, rank=4)
    assert first.error == second.error
    assert torch.allclose(first.reconstruct(), second.reconstruct(), rtol=1e-9, atol=1e-12)
    lengths = second.basis.flatten(1).norm(dim=1), second.combine.norm(dim=0)
    assert torch.allclose(*lengths, rtol=1e-9)


def test_kmeans_shares_filters() -> None:
    found = kmeans(random_weight((12, 2, 3, 3), 4), rank=5)
    assert set(found.combine.unique().tolist()) == {0.0, 1.0}
    assert (found.combine.sum(1) == 1).all()
    members = found.combine.T @ random_weight((12, 2, 3, 3), 4).flatten(1) / found.combine.sum(0)[:, None]
    assert torch.allclose(found.basis.flatten(1), members)


def test_kmeans_finds_copies_and_stops_there() -> None:
    weight = random_weight((3, 2, 3, 3), 4).repeat(4, 1, 1, 1)
    found = kmeans(weight, error=1e-9)
    assert found.rank == 3 and found.error < 1e-20
    assert kmeans(weight, rank=9).error < 1e-20


def test_kmeans_is_about_as_good_as_many_random_starts() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    rows = random_weight((40, 2, 3, 3), 5).flatten(1).numpy()
    for rank in (5, 15, 30):
        started = cluster.KMeans(rank, n_init=10, random_state=1).fit(rows).inertia_ / np.square(rows).sum()
        assert kmeans(rows, rank=rank).error <= 1.05 * started


@pytest.mark.parametrize("method", METHODS)
def test_twice_is_the_same(method: str) -> None:
    weight = random_weight((6, 4, 3, 3), 7)
    first, second = (factorize(weight, rank=3, method=method, seed=1) for _ in range(2))
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(first.parts, second.parts, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_zeros_are_exact_at_every_rank(method: str) -> None:
    found = factorize(torch.zeros(4, 2, 3, 3), error=0.05, method=method)
    assert (found.rank, found.error) == (1, 0.0) and not found.reconstruct().any()


def test_tucker2_takes_both_ranks() -> None:
    weight = random_weight((8, 6, 3, 3), 8)
    found = tucker2(weight, rank=(5, 2))
    assert [tuple(part.weight.shape) for part in found.parts] == [(2, 6, 1, 1), (5, 2, 3, 3), (8, 5, 1, 1)]
    assert abs(found.error - squared_error(weight, found.reconstruct())) <= 1e-12
    with pytest.raises(ValueError, match=r"one number, or 2 up to \[8, 6\]"):
        tucker2(weight, rank=(9, 2))


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"tucker2"}))
def test_the_others_take_one(method: str) -> None:
    with pytest.raises(ValueError, match="only tucker2 takes a pair"):
        factorize(random_weight((8, 6, 3, 3), 8), rank=(5, 2), method=method)


def test_cp_finds_what_is_a_sum_of_products() -> None:
    generator = torch.Generator().manual_seed(1)
    sides = [torch.randn(size, 3, generator=generator, dtype=torch.float64) for size in (10, 8, 5, 5)]
    weight = torch.einsum("nr,cr,yr,xr->ncyx", *sides)
    assert cp(weight, rank=3).error < 1e-4 < cp(weight, rank=2).error


def test_moments_make_the_responses_best() -> None:
    weight = random_weight((8, 3, 2, 2), 9)
    mix = torch.from_numpy(np.random.default_rng(1).normal(size=(12, 12)))
    inputs = torch.from_numpy(np.random.default_rng(2).normal(size=(500, 12))) @ (mix * torch.logspace(0, -2, 12))
    moments = (inputs.T @ inputs / len(inputs)).unsqueeze(0)
    exact = inputs @ weight.flatten(1).T

    def missed(found: torch.Tensor) -> float:
        return float((exact - inputs @ found.flatten(1).T).square().sum() / exact.square().sum())

    for method in (pca, svd):
        for rank in range(1, 8):
            aware, blind = method(weight, rank=rank, moments=moments), method(weight, rank=rank)
            assert missed(aware.reconstruct()) <= missed(blind.reconstruct()) * (1 + 1e-4)
            assert abs(aware.error - missed(aware.reconstruct())) <= 1e-3
    assert squared_error(weight, pca(weight, error=0, moments=moments).reconstruct()) <= 1e-20


@pytest.mark.parametrize("method", ["vh", "kmeans", "tucker2", "cp"])
def test_methods_that_know_nothing_of_inputs_say_so(method: str) -> None:
    with pytest.raises(ValueError, match="data-aware are pca, svd"):
        factorize(random_weight((4, 2, 2, 2), 1), rank=1, method=method, moments=torch.eye(8).unsqueeze(0))


def test_ungrouped_weights_have_zeros_between_groups() -> None:
    weight = random_weight((4, 2, 3, 3), 1)
    images = torch.from_numpy(np.random.default_rng(2).normal(size=(1, 4, 5, 5)))
    expected = torch.nn.functional.conv2d(images, weight, groups=2)
    assert torch.allclose(torch.nn.functional.conv2d(images, ungrouped(weight, 2)), expected)
    assert torch.equal(compose([weight], [1]), weight)
