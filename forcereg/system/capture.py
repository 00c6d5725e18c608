"""Recording what a GPU is to do, and doing it again by one launch: CUDA graphs."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import torch

from forcereg.system.device import side_stream

T = TypeVar("T")

WARM_UP = 3
"""Runs before the recording, in which cuDNN chooses its kernels and libraries take their workspaces."""


class Recorder(Protocol):
    """What records work for replaying: CUDA, or in tests something that does the same on the CPU."""

    def run(self, work: Callable[[], T]) -> T:
        """Does `work` where it will be recorded: autograd's nodes and libraries' workspaces stay with a stream."""

    def record(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Records `work` without doing it: what replays it, and its result, valid behind a replay.

        Raises RuntimeError or ForceregError if it can't be recorded; then `work` has had no effect on any tensor.
        """


class CudaRecorder:
    """CUDA graphs on one side stream of `device`, all in one memory pool: no two may run at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = side_stream(device, "graphs")
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, work: Callable[[], T]) -> T:
        """See Recorder."""
        current = torch.cuda.current_stream(self._device)
        # what was launched before may still be writing what `work` reads
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        # and whoever reads the result goes on the current stream
        current.wait_stream(self._stream)
        return result

    def record(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """See Recorder."""
        # as torch.cuda.graph does before it captures
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()  # within a capture torch can't
        graph = torch.cuda.CUDAGraph()
        try:
            return graph.replay, self._capture(graph, work)
        except BaseException:
            self._recover(graph)
            raise

    def _capture(self, graph: torch.cuda.CUDAGraph, work: Callable[[], T]) -> T:
        """As torch.cuda.graph; but where the capture can't end, its stream is left and the error of `work` told."""
        with _no_garbage(), torch.cuda.stream(self._stream):
            # thread_local: the threads that prepare data may use CUDA meanwhile
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                result = work()
            except BaseException:
                with contextlib.suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
            return result

    def _recover(self, failed: torch.cuda.CUDAGraph) -> None:
        """Ends a failed capture for the allocator and the random numbers, as torch does for one that ends well.

        The allocator would go on serving the pool, and refuse to give memory back.
        """
        _FAILED.append(failed)
        device = torch.cuda.current_device() if self._device.index is None else self._device.index
        with contextlib.suppress(RuntimeError):  # it has ended already
            _end_allocation()(device, self._pool)
            torch._C._cuda_releasePool(device, self._pool)
        # graphs that were recorded before keep the old one
        self._pool = torch.cuda.graph_pool_handle()
        with contextlib.suppress(RuntimeError):
            self._capture(torch.cuda.CUDAGraph(), lambda: torch.zeros(1, device=self._device))


_FAILED: list[torch.cuda.CUDAGraph] = []
"""Graphs whose capture failed: torch's allocators for the host may still ask them whether they capture."""


def _end_allocation() -> Callable[[int, object], None]:
    """What ends a pool's part in allocations; by its name from torch 2.8 on, or the one before."""
    names = ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool")
    return next(getattr(torch._C, name) for name in names if hasattr(torch._C, name))


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Collects garbage before the block and none within: freeing a graph or an event there would end a capture."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def recorder_for(device: torch.device) -> Recorder | None:
    """What records on `device`; None if nothing does."""
    return CudaRecorder(device) if device.type == "cuda" else None
