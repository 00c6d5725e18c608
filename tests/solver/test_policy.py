"""Learning rate policies against their closed forms, and how current_step moves and resumes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR

from forcereg.errors import ForceregError
from forcereg.registry import lr_policy
from forcereg.schema.text import parse_solver
from forcereg.solver import policy


def settings_of(text: str) -> object:
    return parse_solver(text).message


def run(p: object, count: int, current_step: int = 0, start: int = 0) -> list[tuple[float, int]]:
    """(rate, current_step) of `count` iterations from `start` on."""
    out = []
    for iteration in range(start, start + count):
        current_step = policy.advance(p, iteration, current_step)
        out.append((policy.rate(p, iteration, current_step), current_step))
    return out


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        pytest.param('lr_policy: "fixed"', lambda i: 0.5, id="fixed"),
        pytest.param('lr_policy: "step" gamma: 0.5 stepsize: 3', lambda i: 0.5 * 0.5 ** (i // 3), id="step"),
        pytest.param('lr_policy: "exp" gamma: 0.75', lambda i: 0.5 * 0.75**i, id="exp"),
        pytest.param('lr_policy: "inv" gamma: 0.25 power: 0.75', lambda i: 0.5 * (1 + 0.25 * i) ** -0.75, id="inv"),
        pytest.param('lr_policy: "poly" power: 1.5 max_iter: 20', lambda i: 0.5 * (1 - i / 20) ** 1.5, id="poly"),
        pytest.param(
            'lr_policy: "sigmoid" gamma: -0.5 stepsize: 10',
            lambda i: 0.5 / (1 + math.exp(0.5 * (i - 10))),
            id="sigmoid",
        ),
        pytest.param(
            'lr_policy: "multistep" gamma: 0.5 stepvalue: 4 stepvalue: 9',
            lambda i: 0.5 * 0.5 ** ((i >= 4) + (i >= 9)),
            id="multistep",
        ),
    ],
)
def test_closed_form(text: str, formula) -> None:
    p = settings_of(f"base_lr: 0.5 {text}")
    assert [rate for rate, _ in run(p, 20)] == pytest.approx([formula(i) for i in range(20)], rel=1e-7)


def test_step_keeps_current_step() -> None:
    p = settings_of('base_lr: 1 lr_policy: "step" gamma: 0.1 stepsize: 3')
    assert [step for _, step in run(p, 8)] == [0, 0, 0, 1, 1, 1, 2, 2]


def test_repeated_stepvalues_take_an_iteration_each() -> None:
    p = settings_of('base_lr: 1 lr_policy: "multistep" gamma: 0.5 stepvalue: 2 stepvalue: 2 stepvalue: 2')
    assert [step for _, step in run(p, 7)] == [0, 0, 1, 2, 3, 3, 3]
    assert [rate for rate, _ in run(p, 7)] == [1, 1, 0.5, 0.25, 0.125, 0.125, 0.125]


@settings(deadline=None, max_examples=60)
@given(values=st.lists(st.integers(0, 12), max_size=6).map(sorted), saved=st.integers(0, 20))
def test_catch_up_changes_nothing_of_an_own_state(values: list[int], saved: int) -> None:
    p = settings_of('base_lr: 1 lr_policy: "multistep" gamma: 0.5' + "".join(f" stepvalue: {v}" for v in values))
    whole = run(p, 25)
    stored = whole[saved - 1][1] if saved else 0
    assert run(p, 25 - saved, policy.catch_up(p, saved, stored), saved) == whole[saved:]
    # a state without current_step holds 0
    assert run(p, 25 - saved, policy.catch_up(p, saved, 0), saved) == whole[saved:]


def test_catch_up_with_edited_stepvalues_goes_on_at_the_full_step() -> None:
    p = settings_of('base_lr: 1 lr_policy: "multistep" gamma: 0.1 stepvalue: 10 stepvalue: 20 stepvalue: 30')
    assert policy.catch_up(p, 100, 0) == 3
    assert policy.catch_up(p, 20, 0) == 1
    later = settings_of('base_lr: 1 lr_policy: "multistep" gamma: 0.1 stepvalue: 500 stepvalue: 600')
    assert policy.catch_up(later, 100, 1) == 1


@pytest.mark.parametrize(
    ("text", "iteration", "expected"),
    [
        pytest.param('lr_policy: "poly" power: 0.5 max_iter: 10', 11, 0.0, id="poly-behind-the-end"),
        pytest.param('lr_policy: "sigmoid" gamma: 1 stepsize: 5000', 0, 0.0, id="sigmoid-far-before"),
        pytest.param('lr_policy: "sigmoid" gamma: 1 stepsize: 1', 5000, 0.5, id="sigmoid-far-behind"),
    ],
)
def test_rate_stays_a_number(text: str, iteration: int, expected: float) -> None:
    assert policy.rate(settings_of(f"base_lr: 0.5 {text}"), iteration, 0) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param('lr_policy: "fixed"', "s: base_lr is missing", id="no-rate"),
        pytest.param('base_lr: 1 lr_policy: "fixd"', "s: unknown lr_policy 'fixd'; did you mean \"fixed\"?", id="typo"),
        pytest.param("base_lr: 1", "s: lr_policy is missing", id="none"),
        pytest.param('base_lr: 1 lr_policy: "step" gamma: 1', 's: stepsize is 0; lr_policy "step"', id="step"),
        pytest.param('base_lr: 1 lr_policy: "sigmoid"', 's: stepsize is 0; lr_policy "sigmoid"', id="sigmoid"),
        pytest.param('base_lr: 1 lr_policy: "exp" gamma: -1', "s: gamma is -1; expected >= 0", id="gamma"),
        pytest.param('base_lr: 1 lr_policy: "poly"', "s: max_iter is missing", id="poly"),
    ],
)
def test_bad_settings_are_told_before_the_first_iteration(text: str, says: str) -> None:
    with pytest.raises(ForceregError) as caught:
        raise next(policy.problems(settings_of(text), "s"))
    assert str(caught.value).startswith(says)


# -- beyond Caffe: against PyTorch's schedulers


def scheduled(make: Callable[[torch.optim.Optimizer], LRScheduler], count: int, rate: float = 0.5) -> list[float]:
    """The rates of `count` steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], rate)
    schedule, rates = make(optimizer), []
    for at in range(count):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        if at < count - 1:
            schedule.step()
    return rates


def rates(text: str, count: int) -> list[float]:
    return [rate for rate, _ in run(settings_of(f"base_lr: 0.5 max_iter: {count} {text}"), count)]


@pytest.mark.parametrize("least", [0, 0.125])
@given(count=st.integers(1, 60))
def test_cosine_is_torch_s(least: float, count: int) -> None:
    wanted = scheduled(lambda one: CosineAnnealingLR(one, count, least), count)
    assert rates(f'lr_policy: "cosine" eta_min: {least}', count) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


# exact in float32, so that both have the same
@given(count=st.integers(9, 60), share=st.sampled_from([0.125, 0.25, 0.5, 0.75]), by=st.sampled_from([1, 25, 100]))
def test_onecycle_is_torch_s(count: int, share: float, by: int) -> None:
    def make(one: torch.optim.Optimizer) -> OneCycleLR:
        return OneCycleLR(one, 0.5, total_steps=count, pct_start=share, div_factor=by, cycle_momentum=False)

    found = rates(f'lr_policy: "onecycle" pct_start: {share} div_factor: {by}', count)
    assert found == pytest.approx(scheduled(make, count), rel=1e-6)


@given(count=st.integers(1, 40))
def test_onecycle_of_few_iterations_or_extreme_shares_stays_in_its_bounds(count: int) -> None:
    for share in (0, 0.01, 0.99, 1):
        found = rates(f'lr_policy: "onecycle" pct_start: {share} div_factor: 4 final_div_factor: 2', count)
        assert all(0.0625 - 1e-9 <= rate <= 0.5 + 1e-9 for rate in found)
        assert share in (0.01, 0.99) or max(found) == 0.5


@given(at=st.integers(0, 10**6))
@pytest.mark.parametrize("name", ["cosine", "onecycle"])
def test_behind_max_iter_the_last_rate_stays(name: str, at: int) -> None:
    p = settings_of(f'base_lr: 0.5 max_iter: 10 lr_policy: "{name}" eta_min: 0.125')
    end = 0.125 if name == "cosine" else 0.5 / 25 / 1e4
    assert policy.rate(p, 10 + at, 0) == pytest.approx(end, rel=1e-6)


POLICIES = {
    "fixed": "",
    "step": "gamma: 0.5 stepsize: 3",
    "exp": "gamma: 0.75",
    "inv": "gamma: 0.25 power: 0.75",
    "poly": "power: 1.5",
    "sigmoid": "gamma: -0.5 stepsize: 10",
    "multistep": "gamma: 0.5 stepvalue: 4 stepvalue: 9",
    "cosine": "eta_min: 0.1",
}


def test_every_policy_can_be_warmed_up() -> None:
    assert {*POLICIES, "onecycle"} == {*lr_policy}


@pytest.mark.parametrize("name", POLICIES)
@given(warm=st.integers(1, 25), start=st.none() | st.sampled_from([0.0, 0.0625, 0.5]))
def test_warm_up_multiplies_every_policy(name: str, warm: int, start: float | None) -> None:
    text = f'lr_policy: "{name}" {POLICIES[name]}'
    share = 1 / warm if start is None else start / 0.5
    factors = [share + (1 - share) * min(1, at / warm) for at in range(20)]
    if share:  # torch takes no 0
        wanted = scheduled(lambda one: LinearLR(one, share, 1, warm), 20, rate=1)
        assert factors == pytest.approx(wanted)
    given = f"warmup_iter: {warm}" + ("" if start is None else f" warmup_start_lr: {start}")
    expected = [rate * factor for rate, factor in zip(rates(text, 20), factors, strict=True)]
    assert rates(f"{text} {given}", 20) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "at", "rate"),
    [
        ('lr_policy: "fixed"', 0, 0.5),
        ('lr_policy: "step" gamma: 0.1 stepsize: 3', 0, 0.5),
        ('lr_policy: "fixed" warmup_iter: 5', 5, 0.5),
        ('lr_policy: "multistep" gamma: 0.5 stepvalue: 3 warmup_iter: 5', 5, 0.25),
        ('lr_policy: "onecycle" pct_start: 0.25', 4, 0.5),
        ('lr_policy: "fixed" warmup_iter: 500', 0, 0.001),
    ],
)
def test_where_the_rate_is_highest(text: str, at: int, rate: float) -> None:
    found = policy.highest(settings_of(f"base_lr: 0.5 max_iter: 20 {text}"))
    assert found == (at, pytest.approx(rate))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('lr_policy: "fixed" eta_min: 0', 'lr_policy "fixed" doesn\'t look at eta_min; "cosine" does'),
        ('lr_policy: "cosine" pct_start: 0.5', 'lr_policy "cosine" doesn\'t look at pct_start; "onecycle" does'),
        ('lr_policy: "fixed" warmup_start_lr: 0.1', "warmup_start_lr is of a warm-up, and there is none"),
        ('lr_policy: "fixed" warmup_iter: 20', "the rate still rises at the end: warmup_iter is 20, max_iter 20"),
    ],
)
def test_what_does_nothing_is_told(text: str, says: str) -> None:
    (found,) = policy.idle(settings_of(f"base_lr: 0.5 max_iter: 20 {text}"))
    assert found.startswith(says)


@pytest.mark.parametrize("text", ['lr_policy: "onecycle"', 'lr_policy: "cosine" eta_min: 0.1', "warmup_iter: 3"])
def test_what_is_of_use_is_not(text: str) -> None:
    assert list(policy.idle(settings_of(f"base_lr: 0.5 max_iter: 20 {text}"))) == []
