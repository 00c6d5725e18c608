"""What a report on gradients makes of what was measured, and its advice."""

from __future__ import annotations

import math

import pytest

from forcereg.solver.gradients.base import Message, traffic
from forcereg.solver.gradients.report import Report, Row, compared

ROWS = [Row("dense", 32e6, 0, 0, 0), Row("bf16", 16e6, 1e-3, 0, 0), Row("ternary", 1e6, 4e-3, 0, 0)]


def at(bandwidth: float | None, seconds: float = 0.05, alone: float = 0.02) -> Report:
    return compared(2, seconds, alone, ROWS, bandwidth)


def test_an_iteration_is_a_sum() -> None:
    """20 ms, what is computed, and bits at 1 Gbit/s."""
    found = {one.scheme: one for one in at(1e9).schemes}
    assert {name: one.seconds for name, one in found.items()} == pytest.approx(
        {"dense": 0.052, "bf16": 0.037, "ternary": 0.025}
    )
    assert found["ternary"].gain == pytest.approx(52 / 25 - 1) and found["dense"].gain == 0


def test_without_a_bandwidth_it_is_what_dense_ones_came_to() -> None:
    found = at(None)
    assert not found.given and found.bandwidth == pytest.approx(32e6 / 0.03) and found.share == pytest.approx(0.6)


@pytest.mark.parametrize("seconds", [0.02, 0.0199])
def test_sending_that_cannot_be_measured(seconds: float) -> None:
    found = at(None, seconds)
    assert 0 < found.bandwidth < math.inf and found.share < 0.01


@pytest.mark.parametrize(
    ("bandwidth", "said"),
    [
        (1e11, "communication takes 2% of an iteration: leave gradients dense, no scheme can gain more"),
        (1e9, "as many times faster might be: ternary 2.1, bf16 1.4; compare scores"),
        (1e7, "as many times faster might be: ternary 26, bf16 2; compare scores"),
    ],
)
def test_advice(bandwidth: float, said: str) -> None:
    assert at(bandwidth).verdict.startswith(said)


def test_schemes_that_compute_longer_than_they_save() -> None:
    slow = [ROWS[0], Row("ternary", 1e6, 0.03, 0, 0)]
    assert compared(2, 0.05, 0.02, slow, 2e9).verdict == "no scheme gains a tenth: leave gradients dense"


@pytest.mark.parametrize(("ranks", "reduced", "gathered"), [(2, 8, 8), (4, 12, 24), (8, 14, 56)])
def test_what_goes_round_a_ring(ranks: int, reduced: int, gathered: int) -> None:
    """Of a byte: twice all parts but one, or all others' whole."""
    assert (
        traffic([Message("reduced", 1)], ranks)[0] == reduced
        and traffic([Message("gathered", 1)], ranks)[0] == gathered
    )
    assert traffic([Message("reduced", 1), Message("gathered", 1)], ranks)[1] == 3 * {2: 1, 4: 2, 8: 3}[ranks]
