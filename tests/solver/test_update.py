"""The steps of one update against their closed forms, on lists of tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.registry import solver_type
from forcereg.schema.text import parse_solver
from forcereg.solver import update
from forcereg.solver.force import ForceField, force_gradient
from forcereg.solver.ondevice import Descent
from forcereg.solver.regularizers.decay import check_regularization, decay


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
    decay(grads, weights, factors, [kind] * 3)
    for grad, before, weight, factor in zip(grads, some(2), some(1), factors, strict=True):
        torch.testing.assert_close(grad, before + factor * (weight.sign() if kind == "L1" else weight))
    for weight, before in zip(weights, some(1), strict=True):
        assert torch.equal(weight, before)


def test_unknown_regularization() -> None:
    known = "ISTA or L1 or L1_DNS or L2"
    with pytest.raises(ForceregError, match=rf"^s: unknown regularization_type 'L3'; expected {known}$"):
        check_regularization("L3", "s")


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


def descent(kind: str, extra: str = "momentum: 0.9") -> tuple[Descent, list[Tensor], list[list[Tensor]]]:
    """How a device updates three weights, these, and their history."""
    rule = solver_type.get(kind)()
    weights = some(5)
    history = [[torch.zeros_like(weight) for weight in weights] for _ in range(rule.slots)]
    return Descent(rule, parse_solver(extra).message, weights, history, MULTS, torch.device("cpu")), weights, history


@pytest.mark.parametrize("momentum", [0, 0.75])
@pytest.mark.parametrize("kind", ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"])
def test_a_device_updates_as_the_rule_says(kind: str, momentum: float) -> None:
    extra = f"momentum: {momentum} rms_decay: 0.9 momentum2: 0.9 delta: 1e-4"
    device, weights, history = descent(kind, extra)
    rule, p = solver_type.get(kind)(), parse_solver(extra).message
    expected, expected_history = some(5), [[torch.zeros_like(t) for t in slot] for slot in history]
    for iteration in range(4):
        rate = 0.1 / (iteration + 1)
        device.set(iteration, rate)
        found = device.step(some(iteration), torch.tensor(False))
        values = rule(p, some(iteration), expected_history, rate, MULTS)
        torch._foreach_sub_(expected, values)
        for one, other in zip([*found, *weights], [*values, *expected], strict=True):
            torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-7)
    assert device.first_bad() == -1


@pytest.mark.parametrize("kind", ["SGD", "Nesterov", "AdaGrad", "Adam"])
@pytest.mark.parametrize("first", [0, 2])
def test_a_device_stops_at_the_first_bad_iteration(first: int, kind: str) -> None:
    """Also a later finite loss with finite gradients changes nothing any more."""
    device, weights, history = descent(kind)
    kept: list[Tensor] = [*some(5), *(torch.zeros_like(t) for slot in history for t in slot)]
    for iteration in range(first + 3):
        if iteration == first:
            kept = [tensor.clone() for tensor in (*weights, *(t for slot in history for t in slot))]
        bad = iteration in (first, first + 1)
        device.set(iteration, 0.1)
        device.step([grad * (float("nan") if bad else 1) for grad in some(iteration)], torch.tensor(bad))
    assert device.first_bad() == first
    for found, expected in zip((*weights, *(t for slot in history for t in slot)), kept, strict=True):
        assert torch.equal(found, expected)
    device.revive()
    device.set(7, 0.1)
    device.step(some(1), torch.tensor(False))
    assert device.first_bad() == -1 and not torch.equal(weights[0], kept[0])
    device.set(8, 0.1)
    device.step(some(1), torch.tensor(True))
    assert device.first_bad() == 8


@pytest.mark.parametrize("kind", ["SGD", "AdaGrad"])
def test_a_device_skips_one_step_only(kind: str) -> None:
    device, weights, history = descent(kind)
    fine = torch.tensor(False)
    device.set(3, 0.1)
    device.step([torch.full_like(grad, float("nan")) for grad in some(1)], fine, torch.tensor(True))
    assert all(torch.equal(found, expected) for found, expected in zip(weights, some(5), strict=True))
    assert not any(tensor.any() for slot in history for tensor in slot)
    device.set(4, 0.1)
    device.step(some(1), fine, fine)
    assert not torch.equal(weights[0], some(5)[0]) and device.first_bad() == -1


@pytest.mark.parametrize("rate", [1e39, -1e39, 3e38, float("nan")])
def test_a_rate_beyond_float32(rate: float) -> None:
    """3e38 times the multiplier 2."""
    with pytest.raises(OverflowError, match="overflow"):
        descent("SGD")[0].set(0, rate)


def test_frozen_weights_stay() -> None:
    rule, p = solver_type.get("SGD")(), parse_solver("momentum: 0.9").message
    weights, history = some(5), [[torch.zeros_like(tensor) for tensor in some()]]
    device = Descent(rule, p, weights, history, (0.0, 1.0, 0.0), torch.device("cpu"))
    device.set(0, 0.1)
    device.step([torch.full_like(some()[0], torch.inf), *some()[1:]], torch.tensor(False))
    moved = [not torch.equal(found, before) for found, before in zip(weights, some(5), strict=True)]
    assert moved == [False, True, False]
