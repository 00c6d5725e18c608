"""Threads that work in the background and are gone before the interpreter is taken down.

A thread that takes the interpreter's lock then is ended in the middle of what it does; if that is the freeing of a
tensor, the process aborts.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

PAUSE = 0.1


class Worker(threading.Thread):
    """A thread that runs `target(*args)`, and ends soon after `stop` was called: that tells it to.

    The interpreter calls `stop` and waits for the thread before it ends, however it does. RuntimeError if it is
    started later than that.
    """

    def __init__(self, name: str, target: Callable[..., None], args: tuple[Any, ...], stop: Callable[[], None]) -> None:
        # daemon: Python would wait for others before `end_all` can tell them to stop
        super().__init__(name=name, target=target, args=args, daemon=True)
        self.stop = stop

    def start(self) -> None:
        if _ended:
            raise RuntimeError("the interpreter is ending")
        super().start()


_ended = False


@atexit.register
def end_all() -> None:
    """Ends all workers; what one is at is waited for, unless the user interrupts that: then the process ends at once.

    At exit threads of the user's own are through, those that Python itself would wait for: they may train.
    """
    global _ended
    _ended = True
    try:
        # again and again: a worker may have started another meanwhile
        while workers := [thread for thread in threading.enumerate() if isinstance(thread, Worker)]:
            for worker in workers:
                worker.stop()
            for worker in workers:
                worker.join(PAUSE)  # not for long: a signal that comes just before the wait doesn't end it
    except BaseException:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        # as a shell tells of an interrupt; anything gentler would wait for the threads again
        os._exit(130)
