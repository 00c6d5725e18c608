"""Signals as Caffe takes them: SIGINT saves and stops, SIGHUP saves; both between iterations."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from forcereg.solver.loop import Solver


@contextlib.contextmanager
def handled(solver: Solver) -> Iterator[None]:
    """Routes SIGINT and SIGHUP to `solver` inside the block. A second SIGINT interrupts at once."""

    def stop(*_: Any) -> None:
        if solver.stop_requested:
            raise KeyboardInterrupt
        solver.stop_requested = True

    def save(*_: Any) -> None:
        solver.snapshot_requested = True

    actions = {signal.SIGINT: stop}
    if hasattr(signal, "SIGHUP"):
        actions[signal.SIGHUP] = save
    before = {number: signal.signal(number, action) for number, action in actions.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
