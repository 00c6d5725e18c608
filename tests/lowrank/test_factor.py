"""pca against numpy's recorded decompositions, and its properties on random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import forcereg.registry as registry
from forcereg.lowrank import Factors, factorize, pca, spectrum
from tests.golden_cases import Case, golden_cases

ERRORS = ("0.01", "0.05", "0.1", "0.2")
shapes = st.sampled_from([(1, 4), (4, 1), (6, 2, 3, 3), (8, 5, 3, 2), (12, 1, 2, 2), (5, 40)])


def random_weight(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def squared_error(weight: torch.Tensor, factors: Factors) -> float:
    return float((weight - factors.reconstruct()).square().sum() / weight.square().sum())


@pytest.mark.parametrize("case", golden_cases("decompose"))
@pytest.mark.parametrize("error", ERRORS)
def test_equals_the_recorded_pca(case: Case, error: str) -> None:
    weight, expected = case.load("weights"), case.tree(f"filters/e_{error}")
    found = pca(weight, error=float(error))
    assert found.rank == expected["rank"]
    assert abs(found.error - expected["relative_error"]) <= 1e-6
    assert np.abs(found.reconstruct().numpy() - expected["reconstruction"]).max() <= 1e-5


@pytest.mark.parametrize("case", golden_cases("decompose"))
def test_equals_the_recorded_spectrum(case: Case) -> None:
    found, expected = spectrum(case.load("weights")).numpy(), case.load("filters/eigenvalues")
    expected, rest = expected[: len(found)], expected[len(found) :]
    assert np.abs(found - expected).max() <= 1e-6 * expected[0]
    assert np.abs(rest).max(initial=0) <= 1e-6 * expected[0]


@given(shape=shapes, seed=st.integers(0, 10**6), error=st.floats(1e-6, 0.99))
@settings(max_examples=60, deadline=None)
def test_smallest_rank_within_the_bound(shape: tuple[int, ...], seed: int, error: float) -> None:
    weight = random_weight(shape, seed)
    found = pca(weight, error=error)
    assert found.error <= error
    assert abs(found.error - squared_error(weight, found)) <= 1e-12
    assert found.rank == 1 or pca(weight, rank=found.rank - 1).error > error


@given(shape=shapes, seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_error_falls_with_rank_to_zero(shape: tuple[int, ...], seed: int) -> None:
    weight = random_weight(shape, seed)
    full = min(shape[0], int(np.prod(shape[1:])))
    errors = [pca(weight, rank=rank).error for rank in range(1, full + 1)]
    assert errors == sorted(errors, reverse=True) and errors[-1] == 0
    exact = pca(weight, error=0)
    assert exact.rank == exact.full_rank == full
    assert torch.allclose(exact.reconstruct(), weight, rtol=1e-12, atol=1e-12)


@given(groups=st.sampled_from([1, 2, 3, 6]), seed=st.integers(0, 10**6), error=st.floats(0.01, 0.5))
@settings(max_examples=30, deadline=None)
def test_groups_are_decomposed_alone(groups: int, seed: int, error: float) -> None:
    weight = random_weight((12, 2, 3, 3), seed)
    blocks = weight.chunk(groups)
    found = pca(weight, error=error, groups=groups)
    each = max(pca(block, error=error).rank for block in blocks)
    assert found.rank == each * groups
    assert found.basis.shape == (found.rank, 2, 3, 3) and found.combine.shape == (12, each)
    alone = torch.cat([pca(block, rank=each).reconstruct() for block in blocks])
    assert torch.allclose(found.reconstruct(), alone, rtol=1e-9, atol=1e-12)
    assert abs(found.error - squared_error(weight, found)) <= 1e-12


@pytest.mark.parametrize(("rank", "total"), [(1, 2), (2, 2), (5, 4), (6, 6)])
def test_total_rank_is_a_multiple_of_groups(rank: int, total: int) -> None:
    assert pca(random_weight((6, 4), 0), rank=rank, groups=2).rank == total


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_results_have_the_weights_dtype(dtype: torch.dtype) -> None:
    found = pca(random_weight((6, 2, 3, 3), 0).to(dtype), error=0.1)
    assert found.basis.dtype == found.combine.dtype == found.reconstruct().dtype == dtype


def test_combining_columns_are_orthonormal() -> None:
    combine = pca(random_weight((8, 5, 3, 2), 1), rank=3).combine
    assert torch.allclose(combine.T @ combine, torch.eye(3, dtype=torch.float64), atol=1e-12)


def test_a_read_only_array_is_taken() -> None:
    weight = np.arange(6.0).reshape(2, 3)
    weight.flags.writeable = False
    assert pca(weight, error=0).rank == 2


def test_zero_weights_have_rank_one() -> None:
    found = pca(np.zeros((4, 2, 3, 3), np.float32), error=0.05)
    assert (found.rank, found.error) == (1, 0.0)
    assert not found.reconstruct().any()


def test_a_group_of_zeros_follows_the_others() -> None:
    weight = random_weight((6, 5), 3)
    weight[:3] = 0
    found = pca(weight, error=0.01, groups=2)
    assert found.rank == 2 * pca(weight[3:], error=0.01).rank


def test_full_rank_even_if_numerically_lower() -> None:
    assert pca(np.ones((4, 9)), error=0).rank == 4
    assert pca(np.ones((4, 9)), error=1e-9).rank == 1


def test_a_bound_met_but_for_rounding_counts() -> None:
    assert pca(np.diag([3.0, 1.0]), error=0.1).rank == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({}, "exactly one", id="neither"),
        pytest.param({"rank": 1, "error": 0.1}, "exactly one", id="both"),
        pytest.param({"rank": 0}, "expected 1 to 4", id="rank-zero"),
        pytest.param({"rank": 5}, "expected 1 to 4", id="rank-too-large"),
        pytest.param({"error": -0.1}, "error is -0.1", id="negative-error"),
        pytest.param({"error": 1.5}, "0 <= error <= 1", id="error-above-one"),
        pytest.param({"error": float("nan")}, "error is nan", id="nan-error"),
        pytest.param({"rank": 1, "groups": 3}, "groups = 3", id="groups"),
    ],
)
def test_wrong_arguments(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pca(torch.ones(4, 9), **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float) -> None:
    weight = torch.ones(4, 9)
    weight[1, 2] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        pca(weight, rank=1)


@pytest.mark.parametrize("shape", [(4,), (0, 3), (3, 0)], ids=str)
def test_shapes_without_rows(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two axes or more"):
        pca(torch.ones(shape), rank=1)


@pytest.mark.parametrize("name", list(registry.factorizer))
@pytest.mark.parametrize("groups", [1, 2])
def test_every_method_is_exact_at_full_rank(name: str, groups: int) -> None:
    weight = random_weight((6, 2, 3, 3), 5)
    found = factorize(weight, error=0, groups=groups, method=name)
    assert torch.allclose(found.reconstruct(), weight, rtol=1e-10, atol=1e-10)
