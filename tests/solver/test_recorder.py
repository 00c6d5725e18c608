"""Captures by CUDA, against a stand-in for what of torch's state they change: allocator, streams, random numbers."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from forcereg.errors import ForceregError
from forcereg.system.capture import CudaRecorder
from forcereg.system.device import side_stream


class Cuda:
    """Torch's state as its sources have it: an end of a capture that fails leaves a pool taken, a generator caught."""

    def __init__(self) -> None:
        self.pools = 0
        self.users: dict[int, int] = {}  # of the pools
        self.taken: list[int] = []
        self.caught = self.invalid = False
        self.stream = "main"
        self.emptied = 0

    def handle(self) -> int:
        self.pools += 1
        return self.pools

    def empty_cache(self) -> None:
        if self.taken:
            raise RuntimeError("INTERNAL ASSERT FAILED: captures_underway.empty()")
        self.emptied += 1

    def end_allocation(self, device: int, pool: int) -> None:
        if pool not in self.taken:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.taken.remove(pool)

    def release(self, device: int, pool: int) -> None:
        self.users[pool] -= 1

    @contextlib.contextmanager
    def on(self, stream: str) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before


class Graph:
    """A torch.cuda.CUDAGraph."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda

    def capture_begin(self, pool: int, capture_error_mode: str) -> None:
        assert self.cuda.stream == "side" and not self.cuda.taken and capture_error_mode == "thread_local"
        self.pool = pool
        self.cuda.taken.append(pool)
        self.cuda.users[pool] = self.cuda.users.get(pool, 0) + 1
        self.cuda.caught, self.cuda.invalid = True, False

    def capture_end(self) -> None:
        if self.cuda.invalid:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.cuda.end_allocation(0, self.pool)
        self.cuda.caught = False

    def replay(self) -> None:
        pass


@pytest.fixture(params=["_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    """In place of torch's, with the name that ending an allocation has in newer and in older versions."""
    found = Cuda()
    for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):
        monkeypatch.delattr(torch._C, name, raising=False)
    monkeypatch.setattr(torch._C, request.param, found.end_allocation, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", found.release, raising=False)
    parts: dict[str, Callable[..., Any]] = {
        "Stream": lambda device: "side", "stream": found.on, "graph_pool_handle": found.handle,
        "empty_cache": found.empty_cache, "synchronize": lambda device: None, "CUDAGraph": lambda: Graph(found),
    }  # fmt: skip
    for name, part in parts.items():
        monkeypatch.setattr(torch.cuda, name, part)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *sizes, device: zeros(*sizes))
    side_stream.cache_clear()
    yield found
    side_stream.cache_clear()


def test_a_capture(cuda: Cuda) -> None:
    recorder = CudaRecorder(torch.device("cuda:0"))
    for number in range(2):
        _, result = recorder.record(lambda number=number: number)
        assert (result, cuda.taken, cuda.caught, cuda.stream) == (number, [], False, "main")
    assert cuda.users == {1: 2} and cuda.emptied == 2


@pytest.mark.parametrize("invalid", [True, False], ids=["the end fails too", "it ends"])
@pytest.mark.parametrize("error", [RuntimeError, ForceregError, KeyboardInterrupt])
def test_behind_a_capture_that_fails_all_is_as_before(error: type[BaseException], invalid: bool, cuda: Cuda) -> None:
    """The error is that of the work; memory can be given back, dropout draws, and the next capture succeeds."""
    recorder = CudaRecorder(torch.device("cuda:0"))

    def work() -> None:
        cuda.invalid = invalid
        try:
            raise KeyError("looked up in vain")
        except KeyError as cause:
            raise error("operation not permitted when stream is capturing") from cause

    with pytest.raises(error, match="not permitted"):
        recorder.record(work)
    assert (cuda.taken, cuda.caught, cuda.stream) == ([], False, "main")
    assert cuda.users[1] == (0 if invalid else 1)  # else the graph itself gives it back
    cuda.empty_cache()
    assert recorder.record(lambda: 3)[1] == 3 and 1 not in cuda.taken
    assert gc.isenabled()


def test_a_capture_whose_end_alone_fails(cuda: Cuda) -> None:
    recorder = CudaRecorder(torch.device("cuda:0"))
    with pytest.raises(RuntimeError, match="previous error during capture"):
        recorder.record(lambda: setattr(cuda, "invalid", True))
    assert (cuda.taken, cuda.caught, cuda.stream) == ([], False, "main")


def test_no_garbage_is_collected_within(cuda: Cuda) -> None:
    """It is before: what died in a cycle there would be freed within the capture, which that might end."""

    class Cycle:
        def __init__(self) -> None:
            self.me = self

    def dead() -> weakref.ref[Cycle]:
        return weakref.ref(Cycle())

    before, seen = dead(), []

    def work() -> bool:
        inside = dead()
        [[] for _ in range(5000)]  # more than a collection waits for
        seen.extend([before() is None, inside() is not None])
        return gc.isenabled()

    assert CudaRecorder(torch.device("cuda:0")).record(work)[1] is False
    assert seen == [True, True] and gc.isenabled()
