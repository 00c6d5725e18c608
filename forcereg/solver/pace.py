"""How fast iterations go, from one display to the next."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Pace:
    """A lap timer of iterations, which pauses for tests."""

    def __init__(self) -> None:
        self.start(0)

    def start(self, iteration: int) -> None:
        """A lap begins."""
        self._first, self._began = iteration, time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in the block doesn't count."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self._began += time.perf_counter() - before

    def lap(self, iteration: int) -> dict[str, float]:
        """Iterations a second (`speed`) and `seconds` of the lap, and the next one begins."""
        seconds = time.perf_counter() - self._began
        speed = (iteration - self._first) / seconds if seconds > 0 else 0.0
        self.start(iteration)
        return {"speed": speed, "seconds": seconds}
