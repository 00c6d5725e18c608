"""Signals as Caffe takes them, between iterations: SIGINT saves and stops, SIGHUP saves, or as told; SIGTERM stops."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

from forcereg.solver.loop import Solver

EFFECTS = ("stop", "snapshot", "none")


@contextlib.contextmanager
def handled(solver: Solver, sigint: str = "stop", sighup: str = "snapshot") -> Iterator[None]:
    """Routes SIGINT, SIGHUP and SIGTERM to `solver` inside the block, the first two to one of `EFFECTS`.

    "stop" writes a snapshot too. A second SIGINT or SIGTERM interrupts at once.
    """

    def stop(*_: Any) -> None:
        if solver.group.insists("stop_requested"):
            raise KeyboardInterrupt
        solver.stop_requested = True

    def save(*_: Any) -> None:
        solver.snapshot_requested = True

    effects: dict[str, Callable[..., None] | signal.Handlers] = {
        "stop": stop, "snapshot": save, "none": signal.SIG_IGN,
    }  # fmt: skip
    actions = {signal.SIGINT: effects[sigint], signal.SIGTERM: stop}
    if hasattr(signal, "SIGHUP"):
        actions[signal.SIGHUP] = effects[sighup]
    before = {number: signal.signal(number, action) for number, action in actions.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
