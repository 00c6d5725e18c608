"""A training net among several processes, whose gradients DistributedDataParallel averages while backward runs."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from forcereg.net.module import Net
from forcereg.solver.distributed import Group
from forcereg.solver.gradients.base import Bucket, Scheme

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

    `forward_loss` runs it, `scheme` averages, None for what the wrapper does by itself. That takes the first pass as a
    sample of which weights get a gradient (`static_graph`): asking in every iteration costs a walk over the graph and a
    second reduction. But what isn't sent as it is must not be sent twice for the sample, nor in other buckets behind
    it, or a run that goes on from a snapshot would be another one: such a scheme is asked for every iteration.
    """

    def __init__(
        self, group: Group, net: Net, forward_loss: Callable[[Any], Result], scheme: Scheme | None = None
    ) -> None:
        self._forward_loss = forward_loss
        self._wrapped: DistributedDataParallel | None = None
        exact = scheme is None or scheme.exact
        self._sampled = not exact
        if group.size > 1 and any(weight.requires_grad for weight in net.parameters()):
            # begin() has made the ranks equal; gradients that are views of the buckets spare a copy
            self._wrapped = DistributedDataParallel(
                _Loss(net, forward_loss),
                init_sync=False,
                gradient_as_bucket_view=True,
                static_graph=exact,
                find_unused_parameters=not exact,
            )
            if scheme is not None:
                scheme.attach(net)
                self._wrapped.register_comm_hook(scheme, lambda scheme, bucket: scheme.hook(Bucket.of(bucket)))

    def forward_loss(self, inputs: Mapping[str, Tensor] | None, last: bool) -> Result:
        """Loss and outputs of this rank's batch; gradients are averaged behind the `last` batch of an iteration."""
        if self._wrapped is None:
            return self._forward_loss(inputs)
        # behind the sample, too, they are averaged: the mean of equal means is the same
        averages, self._sampled = last or not self._sampled, True
        with contextlib.nullcontext() if averages else self._wrapped.no_sync(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "find_unused_parameters=True")  # there may be none, as it says
            return self._wrapped(inputs)
