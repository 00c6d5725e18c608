"""Group lasso's mathematics against loops over blocks: every tiling, shape, layout and number of terms."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forcereg.solver.sparsity.blocks import LassoField, Term, block_norms, lasso_gradient, misfit
from forcereg.solver.sparsity.masks import elementwise, groupwise
from forcereg.solver.sparsity.statistics import block, element
from forcereg.solver.sparsity.zeroing import adaptive_threshold, soft_, zero_below


def divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))


@st.composite
def tiled_weights(draw: st.DrawFn) -> tuple[torch.Tensor, list[Term]]:
    shape = draw(shapes())
    random = np.random.default_rng(draw(st.integers(0, 99)))
    # some blocks are zero
    values = random.normal(size=shape) * (random.random(size=shape) < draw(st.sampled_from([0.2, 1.0])))
    terms = [
        Term(draw(st.sampled_from(divisors(prod(shape[1:])))), draw(st.sampled_from(divisors(shape[0]))), decay)
        for decay in draw(st.lists(st.sampled_from([0.5, -0.25, 2.0]), min_size=1, max_size=3))
    ]
    weight = torch.from_numpy(values.astype(np.float32))
    return weight.to(memory_format=torch.channels_last) if len(shape) == 4 and draw(st.booleans()) else weight, terms


def naive(weight: np.ndarray, terms: list[Term]) -> np.ndarray:
    """A loop over blocks, in float64."""
    matrix = weight.reshape(len(weight), -1).astype(np.float64)
    grad = np.zeros_like(matrix)
    for x, y, decay in terms:
        for i in range(0, matrix.shape[0], y):
            for j in range(0, matrix.shape[1], x):
                tile = matrix[i : i + y, j : j + x]
                norm = np.sqrt((tile**2).sum())
                grad[i : i + y, j : j + x] += decay * tile / norm if norm else 0
    return grad.reshape(weight.shape)


@given(tiled_weights())
def test_gradient(given_: tuple[torch.Tensor, list[Term]]) -> None:
    weight, terms = given_
    np.testing.assert_allclose(lasso_gradient(weight, terms).numpy(), naive(weight.numpy(), terms), rtol=0, atol=2e-6)


@given(tiled_weights(), st.integers(2, 3))
def test_weights_of_one_shape_are_computed_together(given_: tuple[torch.Tensor, list[Term]], count: int) -> None:
    """Each with decays of its own."""
    first, terms = given_
    weights = [first * (1 - 0.5 * place) for place in range(count)]
    decays = [[term._replace(decay=term.decay + place) for term in terms] for place in range(count)]
    field = LassoField(weights, decays)
    for _ in range(2):  # kept memory is written anew
        field.compute()
    grads = [torch.ones_like(weight) for weight in weights]
    field.add(grads)
    for weight, grad, own in zip(weights, grads, decays, strict=True):
        np.testing.assert_allclose(grad.numpy(), 1 + naive(weight.numpy(), own), rtol=0, atol=5e-6)


@given(tiled_weights(), st.sampled_from([1e-3, 0.25]))
def test_a_step_shortens_every_block_by_rate_times_decay(given_: tuple[torch.Tensor, list[Term]], rate: float) -> None:
    weight, (term, *_) = given_
    before = block_norms(weight, *term.tile)
    after = block_norms(weight - rate * lasso_gradient(weight, [term]), *term.tile)
    # one that is shorter than that overshoots
    expected = torch.where(before > 0, (before - rate * term.decay).abs(), before)
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-6)


@given(shapes(), st.integers(0, 9), st.integers(0, 9))
def test_misfit_is_what_does_not_divide(shape: tuple[int, ...], x: int, y: int) -> None:
    fits = bool(x and y) and prod(shape[1:]) % x == 0 and shape[0] % y == 0
    assert (misfit(shape, x, y) == "") == fits


@given(tiled_weights())
def test_shares_of_zeros(given_: tuple[torch.Tensor, list[Term]]) -> None:
    weight, (term, *_) = given_
    norms = block_norms(weight, *term.tile)
    assert float(block(weight, *term.tile)) == pytest.approx(100 * float((norms == 0).float().mean()), abs=1e-4)
    assert float(element(weight, 1e-9)) == pytest.approx(100 * float((weight == 0).float().mean()), abs=1e-4)


@given(tiled_weights(), st.data())
def test_masks(given_: tuple[torch.Tensor, list[Term]], data: st.DataObject) -> None:
    weight, _ = given_
    groups = data.draw(st.sampled_from(divisors(len(weight))))
    free = np.ones(weight.shape, bool).reshape(groups, len(weight) // groups, -1)
    matrices = weight.numpy().reshape(free.shape)
    for group in range(groups):
        free[group][~matrices[group].any(1)] = False
        free[group][:, ~matrices[group].any(0)] = False
    np.testing.assert_array_equal(groupwise(weight, groups).numpy().reshape(free.shape), free)
    assert torch.equal(elementwise(weight), weight != 0)


@given(st.lists(st.floats(-(2**-10), 2**-10, width=32), min_size=1, max_size=9), st.sampled_from([0.0, 1e-4, 5e-4]))
def test_zeros_below_a_threshold(values: list[float], threshold: float) -> None:
    """As in the branch: < in float32, so that a weight that equals it stays."""
    t = np.float32(threshold)
    weight = torch.tensor([*values, float(t), -float(t), float(np.nextafter(t, np.float32(0)))])
    found = zero_below(weight.clone(), threshold).numpy()
    np.testing.assert_array_equal(found, np.where(np.abs(weight.numpy()) < t, np.float32(0), weight.numpy()))
    assert zero_below(torch.tensor([float("nan")] * 40), threshold).isnan().all()  # a bad weight isn't hidden


def test_thresholds_of_skimcaffe() -> None:
    found = adaptive_threshold(torch.tensor([0.0, 1.0, -1.0]), 1e-4, 10)
    torch.testing.assert_close(found, torch.tensor([1e-3, 1e-3 / 11, 1e-3 / 11]))
    torch.testing.assert_close(soft_(torch.tensor([1.0, -0.5, 0.1]), 0.2), torch.tensor([0.8, -0.3, 0.0]))
