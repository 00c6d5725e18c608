"""Signals as Caffe takes them, between iterations: SIGINT saves and stops, SIGHUP saves, or as told; SIGTERM stops."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

from forcereg.solver.launch import effects, held
from forcereg.solver.loop import Solver


@contextlib.contextmanager
def handled(solver: Solver, sigint: str = "stop", sighup: str = "snapshot") -> Iterator[None]:
    """Routes SIGINT, SIGHUP and SIGTERM to `solver` inside the block, the first two to "stop", "snapshot" or "none".

    "stop" writes a snapshot too. A second one interrupts at once, unless it follows the first so closely that it will
    be the same: process managers send it to a process and to its group.
    """

    def stop(*_: Any) -> None:
        # not told by counting: one signal may come twice at once
        if solver.group.insists("stop_requested"):
            raise KeyboardInterrupt
        solver.stop_requested = True

    def save(*_: Any) -> None:
        solver.snapshot_requested = True

    actions: dict[str, Callable[..., None] | signal.Handlers] = {
        "stop": stop, "snapshot": save, "none": signal.SIG_IGN,
    }  # fmt: skip
    meant = effects(sigint, sighup)
    # the contact's thread hears signals that the main thread can't answer yet
    solver.group.contact.stops = [number for number, effect in meant.items() if effect == "stop"]
    before = {number: signal.signal(number, actions[effect]) for number, effect in meant.items()}
    try:
        # held until now by the command, so that none comes before there is a solver to ask
        with held(meant, back=False):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
