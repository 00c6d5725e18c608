"""Rank clipping's mathematics: the best approximation, gradients in the new coordinates, scales, lacking ranks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forcereg.lowrank.clipping import Cut, Kind, cut

# groups, N, R, K: more and fewer filters than outputs and than inputs
SIZES = [(1, 8, 6, 20), (2, 5, 7, 12), (3, 4, 4, 4), (1, 9, 8, 3), (2, 1, 3, 5)]
sizes = st.sampled_from(SIZES)
seeds = st.integers(0, 10**6)
shares = st.floats(0.2, 1.0)
Pair = tuple[Tensor, Tensor]


def pair(size: tuple[int, int, int, int], seed: int, ranks: int | None = None, combine: int | None = None) -> Pair:
    """A (groups, R, K) and C (groups, N, R), of rank `ranks` and `combine` if given."""
    groups, outputs, rank, inputs = size
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(groups, *shape, generator=random, dtype=torch.float64)

    first, second = draw(rank, inputs), draw(outputs, rank)
    if ranks is not None:
        first = draw(rank, ranks) @ draw(ranks, inputs)
    if combine is not None:
        second = draw(outputs, combine) @ draw(combine, rank)
    return first, second


def best(whole: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    return left[..., :rank] * values[..., None, :rank] @ right[..., :rank, :]


def squared(tensor: Tensor) -> Tensor:
    return tensor.square().sum((-2, -1))


def reduced(first: Tensor, second: Tensor, share: float) -> tuple[Cut, Tensor, Tensor] | None:
    found = cut(first, second, share)
    return None if found is None else (found, *found.project(Kind.WEIGHT, first, second))


@given(size=sizes, seed=seeds, share=shares)
@settings(max_examples=60, deadline=None)
def test_is_the_best_approximation_of_the_smallest_rank(
    size: tuple[int, int, int, int], seed: int, share: float
) -> None:
    first, second = pair(size, seed)
    whole = second @ first
    energies = torch.linalg.svdvals(whole).square()
    enough = energies.cumsum(-1) >= share * energies.sum(-1, keepdim=True) * (1 - 1e-12)
    needed = int((~enough).sum(-1).max()) + 1
    found = reduced(first, second, share)
    if found is None:
        assert min(needed, energies.shape[-1]) == size[2]
        return
    maps, one, other = found
    each = maps.rank // size[0]
    assert each == min(needed, energies.shape[-1]) < size[2]
    torch.testing.assert_close(other @ one, best(whole, each), atol=1e-9, rtol=0)
    torch.testing.assert_close(maps.left @ maps.right, torch.eye(each).double().expand(size[0], -1, -1))
    kept = squared(other @ one) / squared(whole)
    assert (kept >= share - 1e-9).all()
    assert maps.share == pytest.approx(float(squared(other @ one).sum() / squared(whole).sum()))


@given(size=sizes, seed=seeds, share=shares)
@settings(max_examples=40, deadline=None)
def test_scales_do_not_grow(size: tuple[int, int, int, int], seed: int, share: float) -> None:
    first, second = pair(size, seed)
    found = reduced(first, second, share)
    if found is None:
        return
    maps, one, other = found
    eye = torch.eye(maps.right.shape[-1], dtype=torch.float64)
    torch.testing.assert_close(maps.right.mT @ maps.right, eye.expand(size[0], -1, -1))
    for new, old in ((one, first), (other, second)):
        assert (torch.linalg.matrix_norm(new, 2) <= torch.linalg.matrix_norm(old, 2) * (1 + 1e-9)).all()


@given(size=sizes, seed=seeds, rank=st.integers(1, 2))
@settings(max_examples=30, deadline=None)
def test_gradients_are_those_of_the_new_weights(size: tuple[int, int, int, int], seed: int, rank: int) -> None:
    """Where nothing is lost, that is: a pair of a lower rank than it has room for."""
    first, second = pair(size, seed, ranks=rank)
    found = cut(first, second, 1 - 1e-12)
    assert found is not None
    target = torch.randn(second.shape[0], second.shape[1], first.shape[2], dtype=torch.float64)

    def gradients(*weights: Tensor) -> list[Tensor]:
        one, other = (weight.clone().requires_grad_() for weight in weights)
        loss = (other @ one - target).tanh().square().sum()
        return list(torch.autograd.grad(loss, (one, other)))

    old = gradients(first, second)
    new = gradients(*found.project(Kind.WEIGHT, first, second))
    for projected, expected in zip(found.project(Kind.GRADIENT, *old), new, strict=True):
        torch.testing.assert_close(projected, expected, atol=1e-7, rtol=1e-6)


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_a_balanced_pair_is_projected_orthogonally(seed: int) -> None:
    """C^T C = A A^T, as after long training: then both maps are transposes, and a gradient goes like a weight."""
    random = torch.Generator().manual_seed(seed)
    left, turn, right = (
        torch.linalg.qr(torch.randn(n, 5, generator=random, dtype=torch.float64)).Q for n in (8, 5, 12)
    )
    root = torch.linspace(2, 0.1, 5, dtype=torch.float64)
    first, second = turn @ (root[:, None] * right.mT), left * root @ turn.mT
    found = cut(first[None], second[None], 0.9)
    assert found is not None
    torch.testing.assert_close(found.left, found.right.mT)


@given(size=sizes, seed=seeds, share=shares, kind=st.sampled_from([Kind.SQUARED_GRADIENT, Kind.SQUARED_STEP]))
@settings(max_examples=30, deadline=None)
def test_squares_stay_squares(size: tuple[int, int, int, int], seed: int, share: float, kind: Kind) -> None:
    """Never negative, and what the mean of squares is for entries that are independent of each other."""
    first, second = pair(size, seed)
    found = cut(first, second, share)
    if found is None:
        return
    one, other = found.project(kind, first.square(), second.square())
    assert (one >= 0).all() and (other >= 0).all()
    plain = Kind.GRADIENT if kind is Kind.SQUARED_GRADIENT else Kind.WEIGHT
    alone = torch.zeros_like(first)  # a single entry has nothing to be correlated with
    alone[..., 0, 0] = 3.0
    linear, _ = found.project(plain, alone, second)
    of_squares, _ = found.project(kind, alone.square(), second)
    torch.testing.assert_close(of_squares, linear.square())


@pytest.mark.parametrize("share", [0.9, 1 - 1e-10], ids=["some", "all"])
@pytest.mark.parametrize(
    ("lacking", "left"), [("first", 2), ("second", 3), ("one group", None), ("noise", 3)], ids=lambda value: str(value)
)
def test_pairs_that_lack_ranks(lacking: str, left: int | None, share: float) -> None:
    """The product stays as exact as the dtype, and no number grows, also in a group that lacks what another needs."""
    first, second = pair((2, 9, 6, 20), 1, left if lacking == "first" else None, left if lacking == "second" else None)
    if lacking == "one group":
        second[1] = 0
        second[1, 0, 0] = 1.0
        second[0, :, 5] = 0
    if lacking == "noise":
        second[:, :, 3:] *= 1e-9
        first, second = first.float(), second.float()
    found = reduced(first, second, share)
    assert found is not None
    maps, one, other = found
    each = maps.rank // 2
    assert each <= (left or 5) and (share == 0.9 or each == (left or 5))
    whole = second.double() @ first.double()
    torch.testing.assert_close(other @ one, best(whole, each), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(maps.right.mT @ maps.right, torch.eye(each).double().expand(2, -1, -1))
    assert (torch.linalg.matrix_norm(one, 2) <= torch.linalg.matrix_norm(first.double(), 2) * (1 + 1e-6)).all()


def test_all_of_the_norm_is_cut_to_what_shapes_allow() -> None:
    """Seven filters that five outputs combine are five; a lower rank that only float64 sees is left alone."""
    found = cut(*pair((2, 5, 7, 12), 0, ranks=3), 1.0)
    assert found is not None and found.rank == 10
    assert cut(*pair((1, 9, 6, 20), 0, ranks=3), 1.0) is None


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_nothing_to_go_by(value: float) -> None:
    first, second = pair((1, 4, 3, 5), 0)
    assert cut(first, second * value, 0.5) is None
