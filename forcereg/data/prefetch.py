"""Batches prepared in the background, in bounded memory: one thread plans and reads, several work on the items."""

from __future__ import annotations

import copy
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from forcereg.system.background import Worker

MOST_WORKERS = 8


@dataclass(frozen=True)
class Job:
    """One batch's work.

    `items`: `work` is called with each of them in some worker thread, in any order, and fills `result`, which is
    what the batch is. `after`: the plan's state behind this batch, for an exact resume.
    """

    items: Sequence[Any]
    result: Any
    after: Any


class Prefetch:
    """Hands out the batches of `jobs` in order, worked on up to `ahead` batches in advance by `workers` threads.

    `jobs` is advanced by one thread of its own, and only while fewer than `ahead` batches, finished or not, exist.
    `workers`: 0 for as many as the process has cores, at most 8. The threads hold no reference to this object: they
    end on `close()`, when it is dropped, and before the interpreter exits.
    """

    def __init__(self, jobs: Iterator[Job], work: Callable[[Any], None], ahead: int, workers: int = 0) -> None:
        self._line = line = _Line(max(1, ahead))
        # not at exit: behind a fork its lock may be held by a thread that isn't there
        weakref.finalize(self, line.stop).atexit = False
        Worker("forcereg-read", _plan, (line, jobs), line.stop).start()
        for _ in range(workers or default_workers()):
            Worker("forcereg-work", _work, (line, work), line.stop).start()

    def next(self) -> Job:
        """The next batch's job, all of its work done.

        Raises a copy of what `jobs` raised or `work` did for the batch's first bad item, as does every later call;
        StopIteration once `jobs` has ended; RuntimeError after `close()`.
        """
        return self._line.take()

    def close(self) -> None:
        """Ends the threads, each after the item that it is at; returns at once."""
        self._line.stop()


def default_workers() -> int:
    """As many as there are cores for this process, at most 8."""
    # those that this process may use: in a container or under taskset fewer than the machine has
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, cores)


@dataclass(eq=False)
class _Batch:
    """A job on its way; `error` is that of its item `worst`, or of `jobs` itself (then there is no job)."""

    job: Job | None
    left: int = 0
    worst: int = 0
    error: BaseException | None = None


@dataclass(eq=False)
class _Line:
    """What the threads and the object share: the batches in order and the items still to be worked on."""

    ahead: int
    batches: deque[_Batch] = field(default_factory=deque)
    todo: deque[tuple[_Batch, int]] = field(default_factory=deque)
    stopped: bool = False

    def __post_init__(self) -> None:
        # reentrant: the collector may drop another Prefetch, or this one, while a thread is in here
        lock = threading.RLock()
        # three, so that each end wakes only who waits for it
        self.room, self.work, self.done = (threading.Condition(lock) for _ in range(3))

    def stop(self) -> None:
        with self.room:
            self.stopped = True
            # threads hold this until they end: nothing of a batch stays alive with them
            self.todo.clear()
            self.batches.clear()
            for condition in (self.room, self.work, self.done):
                condition.notify_all()

    def take(self) -> Job:
        with self.done:
            self.done.wait_for(lambda: self.stopped or (self.batches and not self.batches[0].left))
            if self.stopped:
                raise RuntimeError("the prefetcher is closed")
            batch = self.batches[0]
            if batch.error is not None:  # it stays in its place, so the next call comes to it again
                raise again(batch.error) from batch.error
            assert batch.job is not None
            self.batches.popleft()
            self.room.notify()
            return batch.job

    def wait_for_room(self) -> bool:
        """Whether the next batch may be planned; False: stop."""
        with self.room:
            self.room.wait_for(lambda: self.stopped or len(self.batches) < self.ahead)
            return not self.stopped

    def add(self, batch: _Batch) -> None:
        with self.work:
            if self.stopped:
                return
            self.batches.append(batch)
            if batch.job is not None:
                self.todo.extend((batch, index) for index in range(batch.left))
            self.work.notify_all()
            self.done.notify_all()

    def pick(self) -> tuple[_Batch, int] | None:
        """A batch and the number of the item in it to work on; None: stop."""
        with self.work:
            self.work.wait_for(lambda: self.stopped or self.todo)
            return None if self.stopped else self.todo.popleft()

    def finish(self, batch: _Batch, index: int, error: BaseException | None) -> None:
        with self.done:
            if error is not None and (batch.error is None or index < batch.worst):
                batch.error, batch.worst = error, index
            batch.left -= 1
            if not batch.left:
                self.done.notify_all()


def _plan(line: _Line, jobs: Iterator[Job]) -> None:
    while line.wait_for_room():
        try:
            job = next(jobs)
        except BaseException as error:
            line.add(_Batch(None, error=_own(error)))
            return
        line.add(_Batch(job, len(job.items)))
        del job  # nothing of a batch is kept alive while waiting


def _work(line: _Line, work: Callable[[Any], None]) -> None:
    while picked := line.pick():
        batch, index = picked
        error: BaseException | None = None
        assert batch.job is not None
        # items in front of a bad one still count: which error is told must not depend on who was first
        if batch.error is None or index < batch.worst:
            try:
                work(batch.job.items[index])
            except BaseException as caught:
                error = _own(caught)
        line.finish(batch, index, error)
        del picked, batch, error


def _own(error: BaseException) -> BaseException:
    # without this module's frame, which holds the line that will hold the error
    return error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)


def again(error: BaseException) -> BaseException:
    """A copy to raise, so that the traceback of the one that is kept does not grow with every raise."""
    try:
        return copy.copy(error)
    except Exception:  # its class takes other arguments than it keeps
        return RuntimeError(f"{type(error).__name__}: {error}")
