"""The last part of an iteration on a device that nothing waits for: few launches, which a CUDA graph may hold.

What differs from one iteration to the next (rate, iteration, whether the run is still sound) is in tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from forcereg.solver.update import LARGEST, SGD, Nesterov, Rule, Tensors, grouped
from forcereg.system.device import side_stream


class Descent:
    """Changes `weights` as `rule` says, by settings `p`; `history` is the rule's, `lr_mults` one for each weight.

    `set` tells the iteration and its rate, `step` launches the work. From the first non-finite loss on nothing
    changes any more.
    """

    def __init__(
        self,
        rule: Rule,
        p: Any,
        weights: Tensors,
        history: Sequence[Tensors],
        lr_mults: Sequence[float],
        device: torch.device,
    ) -> None:
        self._rule, self._p, self._weights, self._history = rule, p, weights, history
        self._lr_mults = lr_mults
        groups = {mult: chosen for (mult,), chosen in grouped(lr_mults)}
        # rate 0 times a gradient that isn't finite would be NaN: theirs are zeroed instead
        self._frozen = groups.pop(0.0, [])
        self._groups = list(groups.values())
        self._largest = max(map(abs, groups), default=0.0)
        self._mults = torch.tensor(list(groups), device=device)
        self._rates = torch.zeros_like(self._mults)
        self._rate = torch.zeros((), device=device)
        self._dead = torch.zeros((), device=device)  # 1 from the first bad iteration on
        self._iteration = torch.zeros((), dtype=torch.float64, device=device)  # stands still from there on
        self._told = (0.0, 0)
        self.stopped = self._dead
        """1 where the last `step` changed nothing."""

    def set(self, iteration: int, rate: float) -> None:
        """What the next `step` is for. Raises OverflowError if a weight's rate is beyond float32."""
        if not abs(rate) * max(1.0, self._largest) <= LARGEST:
            raise OverflowError("a weight's learning rate overflows float32")
        told_rate, told_iteration = self._told
        # filling launches a kernel: only where the number is another
        if rate != told_rate:
            self._rate.fill_(rate)
        if iteration != told_iteration:
            self._iteration.copy_(torch.where(self._dead > 0, self._iteration, iteration))
        self._told = (rate, iteration + 1)

    def step(self, grads: Tensors, bad: Tensor, skip: Tensor | None = None) -> Tensors:
        """Updates the weights by `grads` (overwritten), if all is well; what the rule subtracts from them.

        `bad` (0-d bool): whether this iteration's loss isn't finite. `skip` asks for no update in this step alone.
        """
        # stays 1: a loss that is finite again comes from weights that should never have been
        self._dead.logical_or_(bad)
        self._iteration.sub_(self._dead).add_(1)
        stop = self._dead if skip is None else self._dead.logical_or(skip).to(torch.float32)
        self.stopped = stop
        if type(self._rule) in (SGD, Nesterov) and self._p.momentum >= 0:
            return self._descend(grads, stop)
        # the other types have no fused kernel that looks at a flag: they run, and a copy takes it back
        before = [list(torch._foreach_mul(slot, 1.0)) for slot in self._history]
        values = self._rule(self._p, grads, self._history, self._rate, self._lr_mults)
        fused_sgd(self._weights, values, [], stop)
        for slot, kept in zip(self._history, before, strict=True):
            fused_sgd(kept, kept, slot, 1 - stop, momentum=1.0, first=True, lr=0.0)  # slot = kept, if stopped
        return values

    def _descend(self, grads: Tensors, stop: Tensor) -> Tensors:
        velocity, momentum = self._history[0], self._p.momentum
        torch.mul(self._mults, self._rate, out=self._rates)
        for chosen, rate in zip(self._groups, self._rates.unbind(), strict=True):
            torch._foreach_mul_([grads[i] for i in chosen], rate)
        if self._frozen:
            torch._foreach_zero_([grads[i] for i in self._frozen])
        # without momentum torch's kernel keeps no velocity, but Caffe's history is the last update
        if not momentum:
            fused_sgd(self._weights, grads, velocity, stop, momentum=1.0, first=True)
            return velocity
        nesterov = type(self._rule) is Nesterov
        fused_sgd(self._weights, grads, velocity, stop, momentum=momentum, nesterov=nesterov)
        return list(torch._foreach_add(grads, velocity, alpha=momentum)) if nesterov else velocity

    def first_bad(self) -> int:
        """The first iteration with a non-finite loss, -1 if there is none. Reads the device."""
        dead, iteration = torch.stack((self._dead.double(), self._iteration)).tolist()
        return int(iteration) if dead else -1

    def revive(self) -> None:
        """Forgets bad iterations."""
        self._dead.zero_()


def fused_sgd(
    weights: Tensors,
    grads: Tensors,
    velocity: Tensors,
    stop: Tensor,
    momentum: float = 0.0,
    nesterov: bool = False,
    first: bool = False,
    lr: float | Tensor = 1.0,
) -> None:
    """torch's fused SGD: the one launch that changes nothing, NaN or not, where a flag on the device (`stop`) is 1.

    velocity = momentum * velocity + grads (`first`: = grads), weights -= lr * velocity (`nesterov`: the update is
    grads + momentum * velocity); without velocity weights -= lr * grads.
    """
    torch._fused_sgd_(
        weights,
        grads,
        velocity,
        weight_decay=0.0,
        momentum=momentum,
        lr=lr,
        dampening=0.0,
        nesterov=nesterov,
        maximize=False,
        is_first_step=first,
        found_inf=stop,
    )


class Beside:
    """Work on a stream of its own, beside what is launched after it; where there are no streams, done at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = side_stream(device, "beside") if device.type == "cuda" else None
        self._under_way = False

    def start(self, work: Callable[[], None]) -> None:
        """Starts `work`, which sees what was launched before it."""
        self._under_way = True
        if self._stream is None:
            return work()
        # behind the last update of the weights that the work reads
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            work()

    def join(self) -> bool:
        """Lets what is launched from here on wait for the work; False if there is none."""
        started, self._under_way = self._under_way, False
        if started and self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return started
