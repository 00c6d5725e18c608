"""How long the rest of a run will take: medians of recent laps and tests."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from forcereg.solver.pace import RECENT, Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Shows `now`."""
    found = SimpleNamespace(now=0.0, perf_counter=lambda: found.now)
    monkeypatch.setattr("forcereg.solver.pace.time", found)
    return found


def test_what_is_left(clock: SimpleNamespace) -> None:
    pace, iteration = Pace(), 0
    assert pace.left(100, 0) is None  # nothing is known yet
    for seconds in (10.0, 1.0, 2.0, 3.0, 900.0):  # another program's, or a first one that loads
        clock.now, iteration = clock.now + seconds, iteration + 10
        with pace.paused(test=True):
            clock.now += 5
        with pace.paused():
            clock.now += 77
        assert pace.lap(iteration) == {"speed": pytest.approx(10 / seconds), "seconds": pytest.approx(seconds)}
    assert pace.left(100, 2) == pytest.approx(100 * 0.3 + 2 * 5)
    for _ in range(RECENT):  # what was long ago counts no more
        clock.now, iteration = clock.now + 1, iteration + 10
        pace.lap(iteration)
    assert pace.left(100, 0) == pytest.approx(10)
