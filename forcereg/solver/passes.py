"""One iteration's passes through the training net, and what users feed to nets with Input layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from forcereg.net.module import Net
from forcereg.solver.debug import Watch
from forcereg.solver.distill import Lesson
from forcereg.solver.distributed import Group
from forcereg.solver.gradients.base import Scheme
from forcereg.solver.precision import Precision
from forcereg.solver.replica import Replica

Inputs = Mapping[str, Tensor] | Callable[[int, int], Mapping[str, Tensor]] | None


class Passes:
    """Forward and backward of `net` in `iter_size` sub-batches, by each rank of `group`."""

    def __init__(self, net: Net, iter_size: int, precision: Precision, group: Group) -> None:
        self._net, self._iter_size, self.precision, self._group = net, iter_size, precision, group
        self.lesson: Lesson | None = None
        self.scheme: Scheme | None = None
        self.renew()

    def learn(self, lesson: Lesson) -> None:
        """Has the net learn from its lesson's teacher as well."""
        self.lesson = lesson
        self.renew()

    def average_by(self, scheme: Scheme | None) -> None:
        """Has the ranks' gradients become their mean by a scheme, None for dense. Raises ForceregError if it can't."""
        self.scheme = scheme
        self.renew()

    @property
    def nets(self) -> list[Net]:
        """All that a pass runs."""
        return [self._net] if self.lesson is None else [self._net, self.lesson.teacher]

    @property
    def forward_loss(self) -> Callable[[Mapping[str, Tensor] | None], tuple[Tensor, dict[str, Tensor]]]:
        """What gives the loss, 0-d, float32, and the outputs of a batch."""
        return (self.lesson or self.precision).forward_loss

    @property
    def loss_weights(self) -> dict[str, float]:
        """Output -> what it counts in the loss."""
        return (self.lesson or self._net).loss_weights

    def renew(self) -> None:
        """Looks anew at which weights the net has."""
        self._replica = Replica(self._group, self._net, self.forward_loss, self.scheme)

    def accumulate(
        self, inputs: Callable[[int], Mapping[str, Tensor] | None], watched: Callable[[Watch], None] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss and the last sub-batch's outputs; gradients add up. `watched` is shown every pass.

        Loss and gradients are the means over all ranks, outputs this rank's.
        """
        losses: list[Tensor] = []
        outputs: dict[str, Tensor] = {}
        for sub in range(self._iter_size):
            with contextlib.ExitStack() as stack:
                watch = None if watched is None else stack.enter_context(Watch(self._net))
                loss, outputs = self._replica.forward_loss(inputs(sub), sub == self._iter_size - 1)
                # without its graph, whose memory the backward is to free
                losses.append(loss.detach())
                if len(losses) == self._iter_size:  # other ranks' losses come while backward runs
                    total = sum(losses[1:], losses[0])
                    mean = self._group.averaging(total if self._iter_size == 1 else total / self._iter_size)
                if loss.requires_grad:
                    self.precision.backward(loss)
            if watched is not None and watch is not None:
                watched(watch)
        return mean(), outputs


def fed(
    net: Net, given: Inputs, iteration: int, sub: int, device: torch.device, training: bool
) -> dict[str, Tensor] | None:
    """The user's inputs for one batch of `net`, as float32 on the device; None if its data layers supply all."""
    if given is None:
        return None
    # Input layers beside data layers: in a test the program's blobs are for the former alone
    supplied = {top for feed in net.feeds.values() for top in feed.tops}
    if not training and supplied.issuperset(net.inputs):
        return None
    blobs = given(iteration, sub) if callable(given) else given
    names = blobs if training else [name for name in net.inputs if name in blobs and name not in supplied]
    return {name: torch.as_tensor(blobs[name], dtype=torch.float32, device=device) for name in names}
