"""Batches prepared by several threads: in order, bounded, without a barrier, errors in their place, no thread left."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest

from forcereg.data.prefetch import Job, Prefetch, default_workers
from forcereg.errors import ForceregError

WAIT = 30  # seconds until a test that hangs fails


class Rows:
    """A batch, of which `live` knows as long as it exists."""

    live: ClassVar[weakref.WeakSet[Rows]] = weakref.WeakSet()

    def __init__(self, count: int) -> None:
        self.values = [-1] * count
        self.live.add(self)


Item = tuple[Rows, int, int]


def jobs(batch: int = 4, count: int | None = None) -> Iterator[Job]:
    """Batches of `batch` rows that work() fills with 10 * the row's number."""
    return (job(start, batch) for start in itertools.islice(itertools.count(0, batch), count))


def job(start: int, batch: int) -> Job:
    rows = Rows(batch)
    return Job([(rows, row, start + row) for row in range(batch)], rows, start + batch)


def work(item: Item) -> None:
    rows, row, number = item
    rows.values[row] = 10 * number


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    Rows.live.clear()  # those of failed prefetchers are in reports of expected exceptions
    yield
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(WAIT)
        assert not thread.is_alive()


@pytest.mark.parametrize("workers", [0, 1, 3, 8])
@pytest.mark.parametrize("ahead", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 4, 7])
def test_batches_come_complete_and_in_order(workers: int, ahead: int, batch: int) -> None:
    def slow(item: Item) -> None:
        time.sleep(0.0003 * (item[2] % 3))  # so that items overtake each other
        work(item)

    prefetch = Prefetch(jobs(batch), slow, ahead, workers)
    for number in range(20):
        job = prefetch.next()
        assert job.result.values == [10 * (number * batch + row) for row in range(batch)]
        assert job.after == (number + 1) * batch


@pytest.mark.parametrize("ahead", [1, 3])
def test_at_most_ahead_batches_exist(ahead: int) -> None:
    most = []

    def counting(item: Item) -> None:
        most.append(len(Rows.live))
        work(item)

    prefetch = Prefetch(jobs(), counting, ahead, 2)
    for _ in range(10):
        eventually(lambda: len(Rows.live) == ahead)
        prefetch.next()
    assert max(most) == ahead


def test_workers_go_on_to_the_next_batch_while_one_is_still_at_the_last() -> None:
    """The item that blocks is released only once every item of the two batches behind it is done."""
    others, release = threading.Semaphore(0), threading.Event()

    def blocking(item: Item) -> None:
        if item[2] == 3:
            assert release.wait(WAIT)
        work(item)
        others.release()

    prefetch = Prefetch(jobs(batch=4), blocking, 3, 2)
    for _ in range(11):
        assert others.acquire(timeout=WAIT)
    release.set()
    assert [prefetch.next().result.values[-1] for _ in range(3)] == [30, 70, 110]


def test_all_workers_are_at_work_at_once() -> None:
    together = threading.Barrier(5)

    def meeting(item: Item) -> None:
        together.wait(WAIT)
        work(item)

    prefetch = Prefetch(jobs(batch=2, count=5), meeting, 5, 5)  # no batch has five items
    assert [prefetch.next().after for _ in range(5)] == [2, 4, 6, 8, 10]


class TwoArguments(Exception):
    """Cannot be copied by its args."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")


@pytest.mark.parametrize(
    "error", [ForceregError("damaged"), ValueError("a bug"), TwoArguments(1, 2), SystemExit(3)], ids=repr
)
def test_the_error_of_an_item_arrives_with_its_batch(error: BaseException) -> None:
    def failing(item: Item) -> None:
        if item[2] >= 9:
            raise error
        work(item)

    prefetch = Prefetch(jobs(batch=4), failing, 4, 3)
    assert [prefetch.next().after for _ in range(2)] == [4, 8]
    lengths = []
    for _ in range(3):
        with pytest.raises(BaseException, match=str(error)) as caught:
            prefetch.next()
        assert isinstance(caught.value, RuntimeError if isinstance(error, TwoArguments) else type(error))
        lengths.append(len(traceback.extract_tb(caught.value.__traceback__)))
    assert caught.value is not error and len(set(lengths)) == 1


def test_the_first_bad_item_counts() -> None:
    """Item 1 fails long after item 2 did."""
    failed = threading.Event()

    def failing(item: Item) -> None:
        if item[2] == 1:
            assert failed.wait(WAIT)
            raise ForceregError("item 1")
        if item[2] == 2:
            failed.set()
            raise ForceregError("item 2")

    with pytest.raises(ForceregError, match="item 1"):
        Prefetch(jobs(), failing, 2, 2).next()


def test_an_error_of_the_plan_arrives_behind_the_batches_before_it() -> None:
    def broken() -> Iterator[Job]:
        yield from jobs(count=2)
        raise ForceregError("cannot be read")

    prefetch = Prefetch(broken(), work, 8, 2)
    assert [prefetch.next().after for _ in range(2)] == [4, 8]
    for _ in range(2):
        with pytest.raises(ForceregError, match="cannot be read"):
            prefetch.next()


def test_the_end_of_the_plan_and_of_the_prefetcher_are_told() -> None:
    prefetch = Prefetch(jobs(count=1), work, 2, 1)
    prefetch.next()
    with pytest.raises(StopIteration):
        prefetch.next()
    prefetch.close()
    with pytest.raises(RuntimeError, match="closed"):
        prefetch.next()


def test_a_batch_without_items_is_complete() -> None:
    assert Prefetch(iter([Job([], "nothing", 1)]), work, 1).next().result == "nothing"


@pytest.mark.parametrize("end", [Prefetch.close, None], ids=["close", "drop"])
@pytest.mark.parametrize("failed", [False, True])
def test_threads_and_batches_go_with_the_object(end: Callable[[Prefetch], None] | None, failed: bool) -> None:
    def maybe(item: Item) -> None:
        if failed and item[2] > 5:
            raise ForceregError("bad")
        work(item)

    before = set(threading.enumerate())
    prefetch = Prefetch(jobs(), maybe, 2, 2)
    prefetch.next()
    threads = set(threading.enumerate()) - before
    gc.disable()  # no cycle holds them
    try:
        if end:
            end(prefetch)
        else:
            del prefetch
        for thread in threads:
            thread.join(WAIT)
        assert len(threads) == 3 and not any(thread.is_alive() for thread in threads)
        assert not Rows.live
    finally:
        gc.enable()


def test_the_interpreter_ends_while_threads_work() -> None:
    code = (
        "import itertools, time; from forcereg.data.prefetch import Job, Prefetch\n"
        "p = Prefetch((Job([1] * 9, i, i) for i in itertools.count()), lambda item: time.sleep(0.001), 3, 3)\n"
        "print(p.next().after)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_workers_default_to_the_cores_but_not_too_many() -> None:
    assert 1 <= default_workers() <= 8
