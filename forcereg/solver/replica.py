"""A training net among several processes, whose gradients DistributedDataParallel averages while backward runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from forcereg.net.module import Net
from forcereg.solver.distributed import Group

Result = tuple[Tensor, dict[str, Tensor]]


class _Loss(nn.Module):
    """The training net as a module whose forward gives its loss; without its statistics, which stay each rank's own."""

    def __init__(self, net: Net, forward_loss: Callable[[Any], Result]) -> None:
        super().__init__()
        # frozen weights have nothing to average
        self.weights = nn.ParameterList(weight for weight in net.parameters() if weight.requires_grad)
        self._forward_loss = forward_loss

    def forward(self, inputs: Any) -> Result:
        loss, outputs = self._forward_loss(inputs)
        # DDP looks for gradients through all that a forward returns
        return loss, {name: blob.detach() for name, blob in outputs.items()}


class Replica:
    """A training net as one of a group's: behind backward its weights' gradients are the means over all ranks.

    `forward_loss` runs it. The wrapper takes the first pass as a sample of which weights get a gradient
    (`static_graph`): asking in every iteration would cost a walk over its graph and a second reduction.
    """

    def __init__(self, group: Group, net: Net, forward_loss: Callable[[Any], Result]) -> None:
        self._forward_loss = forward_loss
        self._wrapped: DistributedDataParallel | None = None
        self._sampled = False
        if group.size > 1 and any(weight.requires_grad for weight in net.parameters()):
            # begin() has made the ranks equal; gradients that are views of the buckets spare a copy
            self._wrapped = DistributedDataParallel(
                _Loss(net, forward_loss), init_sync=False, gradient_as_bucket_view=True, static_graph=True
            )

    def forward_loss(self, inputs: Mapping[str, Tensor] | None, last: bool) -> Result:
        """Loss and outputs of this rank's batch; gradients are averaged behind the `last` batch of an iteration."""
        if self._wrapped is None:
            return self._forward_loss(inputs)
        # behind the sample, too, they are averaged: the mean of equal means is the same
        averages, self._sampled = last or not self._sampled, True
        with contextlib.nullcontext() if averages else self._wrapped.no_sync():
            return self._wrapped(inputs)
