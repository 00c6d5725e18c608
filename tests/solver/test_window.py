"""The window of losses: the mean of the last ones, memory as they come, and what a snapshot keeps of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forcereg.solver.window import FIRST, LossWindow

CPU = torch.device("cpu")


def filled(size: int, count: int, start: int = 0) -> LossWindow:
    window = LossWindow(size, CPU)
    for value in range(start, start + count):
        window.add(torch.tensor(float(value)))
    return window


@given(st.integers(1, 4), st.integers(1, 12))
def test_the_mean_is_that_of_the_last_ones(size: int, count: int) -> None:
    assert filled(size, count).mean().item() == pytest.approx(np.arange(count)[-size:].mean())


def test_no_loss_has_no_mean() -> None:
    assert math.isnan(LossWindow(3, CPU).mean())


def test_a_large_window_grows() -> None:
    size, count = 3 * FIRST - 5, 4 * FIRST
    window = LossWindow(size, CPU)
    lengths = []
    for value in range(count):
        window.add(torch.tensor(float(value)))
        lengths.append(len(window.values))
    assert sorted(set(lengths)) == [FIRST, 2 * FIRST, size]
    assert window.mean().item() == pytest.approx(np.arange(count)[-size:].mean(), rel=1e-6)


def test_a_huge_window_takes_no_memory() -> None:
    assert len(filled(2_000_000_000, 5).values) == FIRST


@pytest.mark.parametrize("count", [3, FIRST, FIRST + 1, 2 * FIRST + 1])
@pytest.mark.parametrize("size", [4, FIRST, 2 * FIRST + 9])
def test_a_snapshot_continues(size: int, count: int) -> None:
    saved, whole = filled(size, count), filled(size, count + 7)
    resumed = LossWindow(size, CPU)
    resumed.load(saved.values.numpy().copy(), saved.count)
    for value in range(count, count + 7):
        resumed.add(torch.tensor(float(value)))
    assert resumed.count == whole.count
    assert torch.equal(resumed.values, whole.values)


@pytest.mark.parametrize(("size", "saved"), [(4, 5), (5, 4), (FIRST, 5), (5, FIRST), (2 * FIRST, 3 * FIRST)])
def test_a_window_of_another_size_begins_anew(size: int, saved: int) -> None:
    window = LossWindow(size, CPU)
    window.load(np.ones(saved, np.float32), 3)
    assert window.count == 0 and math.isnan(window.mean())


def test_an_empty_snapshot_begins_anew() -> None:
    window = filled(3, 2)
    window.load(np.array(()), 0)
    assert window.count == 0
