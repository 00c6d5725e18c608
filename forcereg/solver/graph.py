"""CUDA graphs: a function of batches that launches the same work every time is recorded once and then replayed.

A small step costs the host far more to launch than the device to compute; a graph launches all of it at once. What
may be recorded is what PyTorch's "CUDA Graphs" notes allow: nothing waits for the device, nothing is copied to or
from the host, shapes stay, and what differs between runs is in tensors that stay where they are. The function
returns all that is read between runs; its other tensors are overwritten by whichever graph runs next.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from forcereg.device import side_stream
from forcereg.errors import ForceregError
from forcereg.net import Net

T = TypeVar("T")
Batches = Sequence[Mapping[str, Tensor]]

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
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        return result

    def record(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """See Recorder."""
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


class Graphed(Generic[T]):
    """`work` on batches of blobs; from its WARM_UPth run on as a graph, one for each `key` that a run is called with.

    Give equal keys only where `work` launches the same operations on the same tensors. Batches go to kept
    tensors, which `work` is called with. Where no recording is possible (`obstacle`, None: it may be; batches of
    other shapes; an error), `tell` gets the reason once and `work` runs as it is from then on.
    """

    def __init__(
        self,
        work: Callable[[Batches], T],
        recorder: Recorder,
        tell: Callable[[str], None],
        obstacle: str | None = None,
    ) -> None:
        self._work, self._recorder, self._tell = work, recorder, tell
        self._runs = 0
        self._slots: list[dict[str, Tensor]] = []
        self._graphs: dict[Hashable, tuple[Callable[[], None], T]] = {}
        self.active = obstacle is None
        if obstacle is not None:
            tell(obstacle)

    def __call__(self, batches: Batches, key: Hashable = None) -> T:
        """The result of `work`, to be read before the next run."""
        if self.active and not self._take(batches):
            self._give_up("its batches change their shapes")
        if not self.active:
            return self._work(batches)
        if self._runs < WARM_UP:
            self._runs += 1
            return self._recorder.run(lambda: self._work(self._slots))
        if key not in self._graphs:
            try:
                self._graphs[key] = self._recorder.record(lambda: self._work(self._slots))
            except (RuntimeError, ForceregError) as error:
                self._give_up(str(error).partition("\n")[0])
                return self._work(batches)
        replay, result = self._graphs[key]
        replay()
        return result

    def forget(self) -> None:
        """Begins anew, because tensors that `work` uses are no longer the same."""
        self._runs = 0
        self._slots, self._graphs = [], {}

    @torch.no_grad()
    def _take(self, batches: Batches) -> bool:
        """Copies batches to the kept tensors; False if they don't fit these."""
        if not self._slots:
            self._slots = [{name: torch.empty_like(blob) for name, blob in batch.items()} for batch in batches]
        kept, given = list[Tensor](), list[Tensor]()
        for slot, batch in zip(self._slots, batches, strict=True):
            if slot.keys() != batch.keys():
                return False
            kept += slot.values()
            given += [batch[name] for name in slot]
        if any(slot.shape != blob.shape or slot.dtype != blob.dtype for slot, blob in zip(kept, given, strict=True)):
            return False
        if kept:
            torch._foreach_copy_(kept, given, non_blocking=True)
        return True

    def _give_up(self, reason: str) -> None:
        self.active = False
        self.forget()
        self._tell(reason)


def obstacle(net: Net) -> str | None:
    """Why the passes of `net` can't be recorded; None if nothing is known that prevents it."""
    for spec, module in net.built:
        if module is not None and not module.capturable:
            return f"layer '{spec.name}' of type {spec.type} waits for the device or runs code of its own"
    if any(module._forward_hooks or module._forward_pre_hooks for module in net.modules()):
        return "hooks are registered on it"
    return None
