"""The steps of one update against their closed forms, on lists of tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.schema.text import parse_solver
from forcereg.solver import update
from forcereg.solver.force import ForceField, force_gradient


def some(seed: int = 0) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=random) for shape in ((3, 2), (3,), (2, 2, 2))]


def norm(tensors: list[Tensor]) -> float:
    return float(np.sqrt(sum(float(t.double().square().sum()) for t in tensors)))


@settings(deadline=None, max_examples=30)
@given(threshold=st.floats(0, 20), seed=st.integers(0, 50))
def test_clip_scales_the_common_norm(threshold: float, seed: int) -> None:
    before, grads = some(seed), some(seed)
    update.clip(grads, threshold)
    scale = min(1.0, threshold / norm(before))
    for found, given_ in zip(grads, before, strict=True):
        torch.testing.assert_close(found, given_ * scale)


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 1.0], ids=["off", "to-zero", "on"])
def test_clip_of_zero_gradients(threshold: float) -> None:
    grads = [torch.zeros(3, 2), torch.zeros(3)]
    update.clip(grads, threshold)
    assert all(bool((grad == 0).all()) for grad in grads)


def test_clip_off_by_default() -> None:
    grads = [tensor * 1e6 for tensor in some()]
    update.clip(grads, parse_solver("").message.clip_gradients)
    for found, before in zip(grads, some(), strict=True):
        assert torch.equal(found, before * 1e6)


@pytest.mark.parametrize("kind", ["L1", "L2"])
def test_decay(kind: str) -> None:
    factors, weights, grads = (0.5, 0.0, 0.25), some(1), some(2)
    update.decay(grads, weights, factors, kind)
    for grad, before, weight, factor in zip(grads, some(2), some(1), factors, strict=True):
        torch.testing.assert_close(grad, before + factor * (weight.sign() if kind == "L1" else weight))
    for weight, before in zip(weights, some(1), strict=True):
        assert torch.equal(weight, before)


def test_unknown_regularization() -> None:
    with pytest.raises(ForceregError, match=r"^s: unknown regularization_type 'L3'; expected L1 or L2$"):
        update.check_regularization("L3", "s")


def test_force_skips_vectors_and_factor_zero() -> None:
    weights, grads = some(1), some(2)
    ForceField(weights, (0.5, 0.5, 0.0), "Degradation").add_to(grads)
    before = some(2)
    torch.testing.assert_close(grads[0], before[0] + 0.5 * force_gradient(weights[0], "Degradation"))
    assert torch.equal(grads[1], before[1])
    assert torch.equal(grads[2], before[2])


MULTS = (1.0, 2.0, 0.5)


def sgd(rate: float | Tensor, iterations: int = 3) -> tuple[list[Tensor], list[Tensor]]:
    p = parse_solver("momentum: 0.75").message
    velocity = [torch.zeros_like(tensor) for tensor in some()]
    values: list[Tensor] = []
    for iteration in range(iterations):
        values = update.SGD()(p, some(iteration), [velocity], rate, MULTS)
    return velocity, values


def test_sgd_closed_form() -> None:
    velocity, values = sgd(0.1)
    for index, (found, mult) in enumerate(zip(velocity, MULTS, strict=True)):
        expected = sum(0.75 ** (2 - i) * 0.1 * mult * some(i)[index] for i in range(3))
        torch.testing.assert_close(found, expected)
        assert torch.equal(values[index], found)


def test_sgd_with_the_rate_on_the_device_equals_a_number() -> None:
    for found, expected in zip(sgd(torch.tensor(0.1))[0], sgd(0.1)[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_suppress_from_the_first_bad_iteration_on() -> None:
    """Also a later finite loss with finite gradients changes nothing any more."""
    p = parse_solver("momentum: 0.9").message
    weights, velocity = some(5), [torch.zeros_like(tensor) for tensor in some()]
    bad = torch.full((), -1, dtype=torch.int64)
    losses = [1.0, 2.0, float("nan"), float("inf"), 1.0, 1.0]
    kept: list[Tensor] = []
    for iteration, loss in enumerate(losses):
        grads = some(iteration)
        if not np.isfinite(loss):
            for grad in grads:
                grad.fill_(float("nan"))
        live = update.suppress(grads, torch.tensor(loss).isfinite(), bad, iteration)
        values = update.SGD()(p, grads, [velocity], torch.tensor(0.1), (1.0, 1.0, 1.0))
        torch._foreach_sub_(weights, torch._foreach_mul(values, live))
        assert float(live) == (iteration < 2)
        if iteration == 1:
            kept = [weight.clone() for weight in weights]
            assert not any(torch.equal(weight, start) for weight, start in zip(weights, some(5), strict=True))
    assert int(bad) == 2
    for weight, expected in zip(weights, kept, strict=True):
        assert torch.equal(weight, expected)
    assert all(bool(tensor.isfinite().all()) for tensor in velocity)


def test_suppress_keeps_iteration_zero() -> None:
    bad = torch.full((), -1, dtype=torch.int64)
    grads = [torch.ones(2)]
    for iteration, finite in enumerate([False, True, False]):
        update.suppress(grads, torch.tensor(finite), bad, iteration)
    assert int(bad) == 0
