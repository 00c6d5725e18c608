"""Learning rate policies against their closed forms, and how current_step moves and resumes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forcereg.errors import ForceregError
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
