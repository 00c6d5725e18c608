"""The solver types against their formulas, one number at a time in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import forcereg.registry as registry
from forcereg.errors import ForceregError
from forcereg.net.load import load_net
from forcereg.schema.text import parse_solver
from forcereg.solver.setup import problems
from forcereg.solver.updater import Updater
from tests.small_nets import inputs, ip

M, M2, DELTA, DECAY = 0.75, 0.5, 1e-3, 0.25
State = list[float]


def sgd(g: float, r: float, h: State, t: int) -> float:
    h[0] = M * h[0] + r * g
    return h[0]


def nesterov(g: float, r: float, h: State, t: int) -> float:
    before, h[0] = h[0], M * h[0] + r * g
    return (1 + M) * h[0] - M * before


def adagrad(g: float, r: float, h: State, t: int) -> float:
    h[0] += g * g
    return r * g / (math.sqrt(h[0]) + DELTA)


def rmsprop(g: float, r: float, h: State, t: int) -> float:
    h[0] = DECAY * h[0] + (1 - DECAY) * g * g
    return r * g / (math.sqrt(h[0]) + DELTA)


def adadelta(g: float, r: float, h: State, t: int) -> float:
    h[0] = M * h[0] + (1 - M) * g * g
    u = g * math.sqrt((h[1] + DELTA) / (h[0] + DELTA))
    h[1] = M * h[1] + (1 - M) * u * u
    return r * u


def adam(g: float, r: float, h: State, t: int) -> float:
    h[0] = M * h[0] + (1 - M) * g
    h[1] = M2 * h[1] + (1 - M2) * g * g
    return r * math.sqrt(1 - M2**t) / (1 - M**t) * h[0] / (math.sqrt(h[1]) + DELTA)


FORMULAS: dict[str, Callable[[float, float, State, int], float]] = {
    "SGD": sgd, "Nesterov": nesterov, "AdaGrad": adagrad, "RMSProp": rmsprop, "AdaDelta": adadelta, "Adam": adam,
}  # fmt: skip


def settings(kind: str) -> str:
    momentum = "" if kind in ("AdaGrad", "RMSProp") else f"momentum: {M}"
    return f'type: "{kind}" {momentum} momentum2: {M2} delta: {DELTA} rms_decay: {DECAY}'


def test_every_type_of_caffe_is_here() -> None:
    assert set(FORMULAS) == set(registry.solver_type)


@pytest.mark.parametrize("on_device", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("kind", FORMULAS)
@given(grads=st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=5), mult=st.sampled_from([1.0, 0.5, 2.0]))
def test_formula(kind: str, on_device: bool, grads: list[float], mult: float) -> None:
    p = parse_solver(settings(kind)).message
    rule = registry.solver_type.get(kind)()
    history = [[torch.zeros(1, dtype=torch.float64)] for _ in range(rule.slots)]
    state: State = [0.0] * rule.slots
    for t, grad in enumerate(grads):
        rate = 0.1 * (t + 1) * rule.scale(p, t)
        found = rule(
            p,
            [torch.tensor([grad], dtype=torch.float64)],
            history,
            torch.tensor(rate, dtype=torch.float64) if on_device else rate,
            [mult],
        )
        expected = FORMULAS[kind](grad, 0.1 * (t + 1) * mult, state, t + 1)
        assert found[0].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert [slot[0].item() for slot in history] == pytest.approx(state, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("kind", FORMULAS)
def test_a_frozen_blob_keeps_its_value(kind: str) -> None:
    """Caffe's adaptive types gather history of a frozen blob's weight decay, but never move it."""
    p = parse_solver(f"{settings(kind)} base_lr: 1 weight_decay: 0.5").message
    text = inputs(x=(2, 3)) + ip("ip", "x", "y", 2, "param { lr_mult: 0 }")
    net = load_net(text, phase="TRAIN", seed=1)
    before = net.params["ip"][0].detach().clone()
    updater = Updater(net, p, torch.device("cpu"), "s")
    for iteration in range(2):
        updater.begin(iteration)
        net(x=torch.ones(2, 3))["y"].sum().backward()
        updater.apply(iteration, 0.1, torch.tensor(1.0))
    assert torch.equal(net.params["ip"][0], before) and not torch.equal(net.params["ip"][1], torch.zeros(2))
    adaptive = registry.solver_type.get(kind).adaptive
    assert np.any(updater.saved_history()[0]) == adaptive


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('type: "AdaGrad" momentum: 0.9', "momentum is 0.9; type AdaGrad has none, remove it"),
        ('type: "RMSProp" momentum: 0.9', "momentum is 0.9; type RMSProp has none, remove it"),
        ('type: "RMSProp" rms_decay: 1', "rms_decay is 1; expected 0 <= rms_decay < 1"),
        ('type: "RMSProp" rms_decay: -0.5', "rms_decay is -0.5; expected 0 <= rms_decay < 1"),
        ('type: "Adam" momentum2: 1', "momentum2 is 1; type Adam expects 0 <= momentum2 < 1"),
        ('type: "Adam" momentum: 1', "momentum is 1; type Adam expects 0 <= momentum < 1"),
    ],
)
def test_settings_that_a_type_cannot_take(text: str, says: str) -> None:
    p = parse_solver(f'{text} base_lr: 1 lr_policy: "fixed"').message
    assert [str(error) for error in problems(p, "s")] == [f"s: {says}"]
    assert all(isinstance(error, ForceregError) for error in problems(p, "s"))
