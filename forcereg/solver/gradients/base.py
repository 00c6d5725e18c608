"""A way to average gradients, what it is told and what it sends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from forcereg.net.module import Net
from forcereg.registry import gradient_scheme

DENSE = "dense"
Sent = torch.futures.Future[Tensor]


@dataclass(frozen=True)
class Settings:
    """What users say of a scheme; which of it counts is the scheme's affair.

    `clip_sigma`: standard deviations that ternary gradients are clipped at, 0 for none. `dense_layers`: layers whose
    gradients are sent whole, "last" for the last one that learns; `min_size`: so are those of fewer values.
    `powersgd_rank`: of its factors; `powersgd_start`: the iteration from which on there are some.
    """

    clip_sigma: float = 2.5
    dense_layers: tuple[str, ...] = ()
    min_size: int = 1
    powersgd_rank: int = 1
    powersgd_start: int = 1000


@dataclass(frozen=True)
class Message:
    """What is sent together: `size` bytes that are "reduced", or "gathered" as they are, from all ranks by all."""

    kind: str
    size: float

    def bits(self, ranks: int) -> float:
        """What each of them sends, and receives, going round a ring."""
        return 8 * self.size * (2 * (ranks - 1) / ranks if self.kind == "reduced" else ranks - 1)

    def steps(self, ranks: int) -> int:
        """How many times one waits for another, in the shape of a tree."""
        return math.ceil(math.log2(ranks)) * (2 if self.kind == "reduced" else 1)


def matrix_of(weight: Tensor) -> tuple[int, int]:
    """Rows and columns of a weight, one row of each place on its first axis."""
    rows = weight.shape[0] if weight.dim() else 1
    return rows, weight.numel() // max(1, rows)


@dataclass(frozen=True)
class Bucket:
    """Gradients that become means together, as hooks ask a GradBucket for them: those of `weights`, one behind another.

    Each is given as a matrix of its weight's first axis, in the order of its memory, whatever its layout is.
    """

    number: int
    flat: Tensor
    weights: Sequence[Tensor]
    last: bool = True

    @classmethod
    def of(cls, bucket: dist.GradBucket) -> Bucket:
        """That of DDP."""
        return cls(bucket.index(), bucket.buffer(), bucket.parameters(), bucket.is_last())

    def index(self) -> int:
        """Its place in the order of a backward."""
        return self.number

    def buffer(self) -> Tensor:
        """All of it, flat."""
        return self.flat

    def parameters(self) -> Sequence[Tensor]:
        """The weights."""
        return self.weights

    def gradients(self) -> list[Tensor]:
        """Views of the buffer."""
        parts = self.flat.split([one.numel() for one in self.weights])
        return [part.view(matrix_of(one)) for part, one in zip(parts, self.weights, strict=True)]

    def is_last(self) -> bool:
        """Whether no other comes behind it in a backward."""
        return self.last


def traffic(messages: Iterable[Message], ranks: int) -> tuple[float, int]:
    """The bits that each rank sends, and how many times one waits for another."""
    found = list(messages)
    return sum(one.bits(ranks) for one in found), sum(one.steps(ranks) for one in found)


class Wire:
    """Sends tensors to all of a group, in the order in which it is asked to."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def most(self, values: Tensor) -> None:
        """The largest of all ranks' values, in place; what follows sees them."""
        dist.all_reduce(values, dist.ReduceOp.MAX, self.group)

    def sum(self, values: Tensor) -> Sent:
        """The sum of all ranks' values, in place; it is what comes."""
        return _future(dist.all_reduce(values, group=self.group, async_op=True), values)

    def gather(self, values: Tensor, into: list[Tensor]) -> Sent:
        """All ranks' values, by rank, `into` as many tensors like them."""
        return _future(dist.all_gather(into, values, self.group, async_op=True), values)


class Rehearsal(Wire):
    """Sends nothing: all that would come from `ranks` others is what goes to them. `group`: of this process alone."""

    def __init__(self, group: dist.ProcessGroup, ranks: int) -> None:
        super().__init__(group)
        self.size = ranks

    def most(self, values: Tensor) -> None:
        pass

    def sum(self, values: Tensor) -> Sent:
        return done(values)

    def gather(self, values: Tensor, into: list[Tensor]) -> Sent:
        for one in into:
            one.copy_(values)
        return done(values)


def done(values: Tensor) -> Sent:
    """A future that has come."""
    found: Sent = torch.futures.Future(devices=[values.device] if values.is_cuda else None)
    found.set_result(values)
    return found


def _future(work: Any, values: Tensor) -> Sent:
    def arrived(sent: torch.futures.Future[Any]) -> Tensor:
        sent.value()  # raises what went wrong
        return values

    found: Sent = work.get_future().then(arrived)
    return found


def used_here(*tensors: Tensor) -> Tensor:
    """The first of them; a callback says of what came from outside that its own stream works on it, too."""
    for one in tensors:
        if one.is_cuda:
            one.record_stream(torch.cuda.current_stream(one.device))
    return tensors[0]


class Scheme:
    """One way to make the ranks' gradients their mean, as a DDP communication hook.

    `name` is the registered one, `seed` the run's. `overflows`: gradients that aren't finite do no harm to later ones.
    """

    overflows = True

    def __init__(self, name: str, settings: Settings, wire: Wire, seed: int = 0) -> None:
        self.name, self.settings, self.wire, self.seed = name, settings, wire, seed

    def attach(self, net: Net) -> None:
        """Takes the weights of `net`, as they are from now on. Raises ForceregError for settings that don't fit it."""

    def hook(self, bucket: Bucket) -> Sent:
        """The mean of a bucket, flat; see DistributedDataParallel.register_comm_hook."""
        raise AssertionError("each scheme defines its own")

    def messages(self, weights: Sequence[Tensor], ranks: int) -> list[Message]:
        """What is sent for the gradients of these weights in one bucket, if there are so many ranks."""
        raise AssertionError("each scheme defines its own")

    def remarks(self, net: Net, param: Any) -> Iterable[str]:
        """What users should know of it before they train `net` by a SolverParameter."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """What this rank needs to go on exactly; arrays and numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts it back, of which any may be missing."""


@gradient_scheme(DENSE)
class Dense(Scheme):
    """Float32 gradients, as DDP sends them without a hook."""

    def hook(self, bucket: Bucket) -> Sent:
        return self.wire.sum(bucket.flat.div_(self.wire.size)).then(lambda sent: bucket.flat)

    def messages(self, weights: Sequence[Tensor], ranks: int) -> list[Message]:
        return [Message("reduced", sum(one.numel() * one.element_size() for one in weights))]
