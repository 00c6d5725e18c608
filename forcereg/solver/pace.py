"""How fast iterations go, from one display to the next, and how long the rest will take."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from statistics import median

RECENT = 9
"""Laps, and tests, of which what comes is foretold."""


class Pace:
    """A lap timer of iterations, which pauses for tests."""

    def __init__(self) -> None:
        self._laps, self._tests = deque[float](maxlen=RECENT), deque[float](maxlen=RECENT)
        self.start(0)

    def start(self, iteration: int) -> None:
        """A lap begins."""
        self._first, self._began = iteration, time.perf_counter()

    @contextlib.contextmanager
    def paused(self, test: bool = False) -> Iterator[None]:
        """What happens in the block doesn't count; a `test` does for what is left."""
        before = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - before
            self._began += took
            if test:
                self._tests.append(took)

    def lap(self, iteration: int) -> dict[str, float]:
        """Iterations a second (`speed`) and `seconds` of the lap, and the next one begins."""
        seconds, count = time.perf_counter() - self._began, iteration - self._first
        if count > 0:
            self._laps.append(seconds / count)
        self.start(iteration)
        return {"speed": count / seconds if seconds > 0 else 0.0, "seconds": seconds}

    def left(self, iterations: int, tests: int) -> float | None:
        """Seconds that so many iterations and tests will take: medians of recent ones; None before the first lap."""
        if not self._laps:
            return None
        return iterations * median(self._laps) + (tests * median(self._tests) if self._tests else 0.0)
