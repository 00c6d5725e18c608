"""Ternary gradients as mathematics: clipping, scalers, draws, packing, sums of many workers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from forcereg.solver.gradients import ternary
from forcereg.solver.gradients.ternarized import CARRIERS, GATHERED, carrier_of

COUNTS = st.integers(1, 67)
SIZES = st.lists(COUNTS, min_size=1, max_size=5)
WORKERS = st.integers(1, GATHERED)
SEEDS = st.integers(0, 2**32 - 1)


def normal(seed: int, *sizes: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(size, generator=generator) for size in sizes)


def drawn(gradient: Tensor, clip_sigma: float, seed: int = 0, times: int = 1) -> tuple[Tensor, float]:
    """Rows of -s, 0, s drawn for a gradient as one worker alone draws them, and s."""
    bounds = ternary.bounds_of((gradient,), clip_sigma)
    scalers = ternary.scalers_of((gradient,), bounds)
    rows = gradient.expand(times, -1).clone()
    chances = torch.rand(rows.shape, generator=torch.Generator().manual_seed(seed))
    ternary.draw_((rows,), bounds, scalers, (chances,))
    found = ternary.signs_of(rows, chances).float() - 1
    ternary.mean_((found,), scalers, 1)
    return found, float(scalers)


def signs(seed: int, workers: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 3, (workers, count), generator=generator, dtype=torch.uint8)


@given(SEEDS, WORKERS, COUNTS)
def test_packed_signs_add_up_as_they_are(seed: int, workers: int, count: int) -> None:
    """Whatever their number is: what fills the last bytes is no worker's gradient."""
    every = signs(seed, workers, count)
    packed = [ternary.pack(one) for one in every]
    assert {(one.dtype, len(one)) for one in packed} == {(torch.uint8, -(-count // 4))}
    assert torch.equal(ternary.unpack(packed, count), every.sum(0, dtype=torch.uint8))


def test_a_byte_holds_one_sign_of_each_quarter() -> None:
    assert ternary.pack(torch.tensor([2, 0, 1, 1, 0, 2, 1, 0], dtype=torch.uint8)).tolist() == [
        2 + 4 * 1 + 16 * 0 + 64 * 1,
        0 + 4 * 1 + 16 * 2 + 64 * 0,
    ]


@given(SEEDS, st.sampled_from([1, 2, GATHERED, 9, 127, 128, 2048, 2049]))
def test_what_carries_sums_holds_all_of_them(seed: int, workers: int) -> None:
    """In the type of its number of workers, the sum of all that say the same is exact, and so are those below."""
    dtype = carrier_of(workers)
    codes = torch.ones(workers, dtype=dtype)
    if not dtype.is_floating_point:
        assert torch.iinfo(dtype).max >= workers and torch.iinfo(dtype).min <= -workers
    assert int(codes.cumsum(0, dtype=dtype)[-1]) == workers
    assert dtype.itemsize <= 4 and carrier_of(CARRIERS[0][0]) == torch.int8


@given(SEEDS, SIZES, st.floats(0.5, 4))
def test_bounds_are_deviations(seed: int, sizes: list[int], clip_sigma: float) -> None:
    gradients = normal(seed, *sizes)
    expected = [max(clip_sigma * float(one.std(correction=0)), abs(float(one.mean()))) for one in gradients]
    assert ternary.bounds_of(gradients, clip_sigma).tolist() == pytest.approx(expected, rel=1e-3, abs=1e-5)


@given(SEEDS, SIZES)
def test_nothing_is_clipped_by_zero(seed: int, sizes: list[int]) -> None:
    gradients = normal(seed, *sizes)
    found = ternary.scalers_of(gradients, ternary.bounds_of(gradients, 0))
    assert found.tolist() == [float(one.abs().max()) for one in gradients]


def test_every_fortieth_value_of_a_normal_gradient_is_clipped() -> None:
    """1.2 % are beyond 2.5 deviations: the scaler is that, where the largest of 100,000 is above 4."""
    (gradient,) = normal(1, 100_000)
    scaler = ternary.scalers_of((gradient,), ternary.bounds_of((gradient,), 2.5))
    assert float(scaler) == pytest.approx(2.5, abs=0.03) and float(gradient.abs().max()) > 4


@given(SEEDS, COUNTS, st.sampled_from([0, 1.0, 2.5]))
def test_draws_lie_on_the_grid(seed: int, count: int, clip_sigma: float) -> None:
    """-s, 0 or s, never of the other sign; what is at s or beyond is always sent."""
    (gradient,) = normal(seed, count)
    found, scaler = drawn(gradient, clip_sigma, seed)
    assert {*found.flatten().tolist()} <= {-scaler, 0.0, scaler}
    assert (found[0] * gradient >= 0).all()
    assert (found[0][gradient.abs() >= scaler] != 0).all()


def test_the_mean_of_draws_is_the_clipped_gradient() -> None:
    """Over 10,000 of them within four times its error, of every value; far closer in the mean of all values."""
    times = 10_000
    gradient = torch.cat((*normal(5, 60), torch.tensor([0.0, 1e-4, -3.0, 3.0])))
    found, scaler = drawn(gradient, 2.5, 3, times)
    expected = gradient.clamp(-scaler, scaler)
    error = (scaler * expected.abs() - expected.square()).clamp(min=0).sqrt() / times**0.5
    off = found.mean(0) - expected
    assert (off.abs() <= 4 * error + 1e-5).all()
    assert abs(float((off * expected.sign()).mean())) < 4 * float(error.square().mean().sqrt()) / len(gradient) ** 0.5


@pytest.mark.parametrize(
    "values", [[0.3], [-0.3], [0.2, 0.2, 0.2], [0.0, 0.0], [1e-15, -1e-15], [1e15, -1e15]], ids=str
)
def test_gradients_without_deviation_stay(values: list[float]) -> None:
    """Of one value alone, or of equal ones, nothing is clipped, and all is sent: they stay as they are."""
    gradient = torch.tensor(values)
    found, _ = drawn(gradient, 2.5)
    assert torch.equal(found[0], gradient)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_ends_as_none(bad: float) -> None:
    """All of its tensor, whichever worker's it is: MAX over workers may leave out NaN, not the scaler's inf."""
    gradients = (torch.tensor([1.0, bad, -2.0]), torch.tensor([1.0, 2.0]))
    bounds = ternary.bounds_of(gradients, 2.5)
    scalers = ternary.scalers_of(gradients, bounds)
    assert scalers.isinf().tolist() == [True, False]
    found = (torch.tensor([0.0, 1.0, -1.0]), torch.tensor([1.0, 2.0]))
    ternary.mean_(found, scalers, 2)
    assert not found[0].isfinite().any() and found[1].isfinite().all()


@given(SEEDS, WORKERS, SIZES)
def test_means_of_workers_lie_on_their_common_grid(seed: int, workers: int, sizes: list[int]) -> None:
    """s j / N, s the largest worker's; a tensor's values don't depend on what stands beside it."""
    every = [normal(seed + worker, *sizes) for worker in range(workers)]
    bounds = [ternary.bounds_of(one, 2.5) for one in every]
    scalers = torch.stack([ternary.scalers_of(*one) for one in zip(every, bounds, strict=True)]).amax(0)
    generator, packed = torch.Generator().manual_seed(seed), []
    for gradients, bound in zip(every, bounds, strict=True):
        flat, chances = torch.cat(gradients), torch.rand(sum(sizes), generator=generator)
        ternary.draw_(flat.split(sizes), bound, scalers, chances.split(sizes))
        packed.append(ternary.pack(ternary.signs_of(flat, chances)))
    found = ternary.unpack(packed, sum(sizes)).float().sub_(workers)
    assert found.abs().max() <= workers
    ternary.mean_(found.split(sizes), scalers, workers)
    for part, scaler in zip(found.split(sizes), scalers, strict=True):
        steps = part * workers / scaler
        assert torch.allclose(steps, steps.round(), atol=1e-4) and steps.abs().max() <= workers + 1e-4
