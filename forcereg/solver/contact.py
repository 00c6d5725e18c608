"""Whether all ranks answer: a thread of each looks after that, because one that waits for another hears no signals.

Python calls a signal's handler between two instructions of the main thread, and waiting for another rank is one of
them. The threads hear of signals at once, see whether the process that launched theirs is alive, and meet in rounds of
their own, several a second. Nobody minds a rank that is slow or stopped until one is asked to stop: from then on each
leaves by itself, without a snapshot, if the others don't come to the next round, or its own main thread to the end of
an iteration.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import select
import signal
import threading
import time
from collections.abc import Collection, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from forcereg.errors import ForceregError
from forcereg.solver.launch import AGAIN, GRACE, HASTE, LAUNCHER, LOST, said_by
from forcereg.system.background import Worker

TICK, LAST_TICK = 0.2, 0.005
"""Seconds between two looks, and at the end, when a run waits for the threads."""
SILENCE = 5.0
"""Seconds to wait for an answer once any rank was asked to stop."""
GO_ON = "go on from the last snapshot with --resume auto"


class LostContact(ForceregError):
    """Another rank ended, and says itself why."""

    exit_code = LOST


class Contact:
    """What the thread of this rank knows and is told. It listens from `start` on and answers from `meet` on.

    `stops`: the signals that ask to stop.
    """

    def __init__(self) -> None:
        self.stops: Collection[int] = (signal.SIGINT, signal.SIGTERM)
        self._asked = self._insisted = self._broken = math.inf  # since when
        self._settled = self._working = self._finished = self._over = False
        # NaN compares as neither more nor less: before an iteration has ended none is the longest
        self._longest, self._last = 0.0, math.nan  # of an iteration; when one ended
        self._parent: int | None = None
        self._group: Any = None
        self._round: tuple[Any, torch.Tensor] | None = None
        self._met = self._worked = 0.0  # when all came to a round, when one was at work
        self._thread: Worker | None = None

    def start(self) -> None:
        """Begins to listen. LostContact if the launching process is gone."""
        self._parent = _parent()
        with contextlib.suppress(OSError, AttributeError, TypeError):  # Linux alone has it
            ctypes.CDLL(None).prctl(1, signal.SIGCONT)  # PR_SET_PDEATHSIG: else a stopped process couldn't see it
        if self._parent not in (None, os.getppid()):
            raise LostContact("the process that launched this one is gone")
        self._ear, self._mouth = os.pipe()
        # a signal's handler writes there and must never wait
        os.set_blocking(self._mouth, False)
        _wake(self._mouth)
        self._thread = Worker("forcereg-contact", self._watch, (), self._end)
        self._thread.start()

    def meet(self, patience: timedelta) -> None:
        """Begins the rounds, together with all other ranks."""
        self._group = dist.new_group(timeout=patience, backend="gloo")

    # -- what the main thread tells

    def passed(self, settled: bool) -> None:
        """An iteration ended; `settled`: all ranks know that they are to stop."""
        now = time.monotonic()
        if now - self._last > self._longest:  # never behind the first one
            self._longest = now - self._last
        self._last, self._settled = now, settled

    @contextlib.contextmanager
    def working(self, here: bool) -> Iterator[None]:
        """Inside, one rank (`here`: this one) does what the others wait for, however long it takes."""
        self._working = here
        try:
            yield
        finally:
            self._working = False
            # what that took says nothing of how long iterations take
            self._last = math.nan

    def finish(self) -> None:
        """Waits until all ranks call this. RuntimeError if one is gone."""
        self._finished = True
        if self._thread is None:
            return
        # wakes the thread at once; a full pipe does so anyway
        with contextlib.suppress(BlockingIOError):
            os.write(self._mouth, b"\0")
        self._thread.join()
        _wake(-1)
        for end in (self._ear, self._mouth):
            os.close(end)
        if self._broken < math.inf:
            raise RuntimeError("connection closed by peer")

    # -- what the thread does

    def _end(self) -> None:
        self._finished, self._group = True, None

    def _watch(self) -> None:
        through = False
        while not through:
            self._listen(LAST_TICK if self._finished else TICK)
            if self._parent not in (None, os.getppid()):
                self._parent = None
                self._ask()
                # as if it had been asked to stop: with a snapshot, if the others still come
                os.kill(os.getpid(), signal.SIGTERM)
            through = self._come() or (self._finished and (self._group is None or self._broken < math.inf))
            self._judge(time.monotonic())

    def _listen(self, seconds: float) -> None:
        if select.select([self._ear], [], [], seconds)[0]:
            for number in os.read(self._ear, 4096):
                if number in self.stops:
                    self._ask()

    def _ask(self) -> None:
        now = time.monotonic()
        self._asked = min(self._asked, now)
        if now - self._asked > AGAIN:
            self._insisted = min(self._insisted, now)

    def _come(self) -> bool:
        """Goes to the next round if the last is over; whether it was the last one.

        That is the one behind the round in which all had finished: who comes to its end may leave, because the others
        know it as well.
        """
        group = self._group
        if group is None or self._broken < math.inf:
            return False
        try:
            if self._round is not None:
                work, flags = self._round
                # looked at, not waited for: the thread has signals and the parent to look after
                if not work.is_completed():
                    return False
                work.wait()
                asked, working, going = flags.tolist()
                self._met = time.monotonic()
                if self._over:
                    return True
                self._over = not going
                if asked:
                    self._asked = min(self._asked, self._met)
                if working:
                    self._worked = self._met
            state = [self._asked < math.inf, self._working, not self._finished]
            flags = torch.tensor(state, dtype=torch.uint8)
            self._round = dist.all_reduce(flags, dist.ReduceOp.MAX, group, True), flags
        except RuntimeError:
            if self._over:
                return True
            # told later by _judge: the main thread's own error says more, if it comes in time
            self._broken = time.monotonic()
        return False

    def _judge(self, now: float) -> None:
        """Ends the process if it waits in vain."""
        if now - self._insisted > HASTE:
            _leave("interrupted", 130)
        if now - self._broken > (GRACE if self._asked == math.inf else SILENCE):  # the main thread has seen it by now
            _leave(f"lost contact with another rank; {GO_ON}", LOST)
        if now - max(self._asked, self._met) > SILENCE:
            _leave(f"another rank doesn't answer, so no snapshot is written; {GO_ON}", LOST)
        begun = max(self._asked, self._worked)
        if not (self._settled or self._finished) and now - begun > SILENCE + 2 * self._longest:
            _leave(f"the iteration doesn't end, so no snapshot is written; {GO_ON}", LOST)


def _wake(descriptor: int) -> None:
    """Has signals written there, as far as this thread decides on them."""
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)


def _parent() -> int | None:
    """The process whose end is to be this one's; None: there is none to look after."""
    if LAUNCHER in os.environ:
        return int(os.environ[LAUNCHER])
    return os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None


def _leave(message: str, code: int) -> None:
    """Ends the process past whatever the main thread is at; through no stream, whose lock that may hold."""
    if (line := said_by(message)) is not None:
        os.write(2, f"forcereg: {line}\n".encode(errors="backslashreplace"))
    os._exit(code)
