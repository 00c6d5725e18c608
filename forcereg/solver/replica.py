"""A training net among several processes, whose gradients DistributedDataParallel averages while backward runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from forcereg.net.module import Net
from forcereg.solver.distributed import Group
from forcereg.solver.gradients.base import Bucket, Scheme, done

Result = tuple[Tensor, dict[str, Tensor]]


class _Weights(nn.Module):
    """Weights as a module that runs what it is given, which they are in; without statistics, which stay each rank's."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)

    def forward(self, run: Callable[[], Result]) -> Result:
        loss, outputs = run()
        # DDP looks for gradients through all that a forward returns
        return loss, {name: blob.detach() for name, blob in outputs.items()}


class Replica:
    """A training net as one of a group's: behind backward its weights' gradients are the means over all ranks.

    `forward_loss` runs it, `scheme` averages, None for what the wrapper does by itself. The first pass shows which
    weights get a gradient: those alone are wrapped.
    """

    def __init__(
        self, group: Group, net: Net, forward_loss: Callable[[Any], Result], scheme: Scheme | None = None
    ) -> None:
        self._net, self._forward_loss, self._scheme = net, forward_loss, scheme
        self._alone = group.size == 1
        self._wrapped: DistributedDataParallel | None = None
        if scheme is not None and not self._alone:
            scheme.attach(net)

    def forward_loss(self, inputs: Mapping[str, Tensor] | None, last: bool) -> Result:
        """Loss and outputs of this rank's batch; gradients are averaged behind the `last` batch of an iteration."""
        if self._alone:
            return self._forward_loss(inputs)
        if self._wrapped is not None:
            return self._run(self._wrapped, lambda: self._forward_loss(inputs), last)
        first = self._forward_loss(inputs)
        reached = reaches(first[0])
        weights = [weight for weight in self._net.parameters() if weight in reached]
        if not weights:
            return first
        self._wrapped = wrap(weights, self._scheme)
        return self._run(self._wrapped, lambda: first, last)

    def _run(self, wrapped: DistributedDataParallel, run: Callable[[], Result], last: bool) -> Result:
        with contextlib.nullcontext() if last else wrapped.no_sync():
            result: Result = wrapped(run)
            return result


def wrap(weights: list[nn.Parameter], scheme: Scheme | None) -> DistributedDataParallel:
    """What averages the gradients of weights, by a scheme if there is one."""
    # begin() has made the ranks equal; gradients that are views of the buckets spare a copy
    wrapped = DistributedDataParallel(_Weights(weights), init_sync=False, gradient_as_bucket_view=True)
    began: list[bool] = []  # not of an object that holds the wrapper: they would hold each other
    if scheme is not None:
        wrapped.register_comm_hook(
            scheme, lambda scheme, bucket: scheme.hook(Bucket.of(bucket)) if began else done(bucket.buffer())
        )
    # behind its first backward it makes its buckets anew. That is one of nothing, here: else a run that goes on from a
    # snapshot would sum in another order, and what a scheme draws or keeps would be that of other buckets
    wrapped(lambda: (torch.stack([0 * weight.sum() for weight in weights]).sum(), {}))[0].backward()
    for weight in weights:
        weight.grad = None
    began.append(True)
    return wrapped


def reaches(result: Tensor) -> set[Tensor]:
    """The tensors whose .grad a backward from `result` adds to."""
    found, seen, left = set[Tensor](), set[Any](), [result.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        left.extend(one for one, _ in node.next_functions)
    return found
