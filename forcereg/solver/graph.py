"""CUDA graphs: a function of batches that launches the same work every time is recorded once and then replayed.

A small step costs the host far more to launch than the device to compute; a graph launches all of it at once. What
may be recorded is what PyTorch's "CUDA Graphs" notes allow: nothing waits for the device, nothing is copied to or
from the host, shapes stay, and what differs between runs is in tensors that stay where they are. The function
returns all that is read between runs; its other tensors are overwritten by whichever graph runs next.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.net.module import Net
from forcereg.system.capture import WARM_UP, Recorder

T = TypeVar("T")
Batches = Sequence[Mapping[str, Tensor]]


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
        # as it is, but with the kept batches, whose memory the graph will read
        if self._runs < WARM_UP:
            self._runs += 1
            return self._recorder.run(lambda: self._work(self._slots))
        if key not in self._graphs:
            try:
                self._graphs[key] = self._recorder.record(lambda: self._work(self._slots))
            except (RuntimeError, ForceregError) as error:
                # nothing has happened to any tensor yet: a recording only notes what is to be done
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
            # empty_like keeps a channels_last layout, by which cuDNN chooses its kernels
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
            # the stream orders copy and replay; the host needn't wait for either
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
    # a replay wouldn't call them
    if any(module._forward_hooks or module._forward_pre_hooks for module in net.modules()):
        return "hooks are registered on it"
    return None
