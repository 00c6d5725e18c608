"""The interface of a regularizer: what is added to gradients beside weight decay, or done to weights behind an update.

@regularizer("shrink")
class Shrink(Regularizer):
    def __init__(self, learning, p, device):
        super().__init__(learning, p, device)
        self.touched = [place for place, one in enumerate(learning) if one.decay_mult]
        self._weights = [learning[place].blob for place in self.touched]

    def add(self, grads):
        torch._foreach_add_([grads[place] for place in self.touched], self._weights, alpha=0.1)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from forcereg.layers import Layer
from forcereg.net.module import Learnable
from forcereg.schema.spec import LayerSpec

Once = Callable[[Callable[[], Any]], Any]
Watch = Callable[[LayerSpec, Layer, Sequence[Tensor]], None]


class Regularizer:
    """A term of `learning`, the blobs that an update changes, by the settings `p` (SolverParameter) and multipliers.

    `begin`, `add` and `project` run in every iteration in which it `feels`: in place, in memory kept since it was made,
    reading nothing back from the device, so that a CUDA graph may hold them. Rank clipping has it made anew, for
    weights of other shapes.
    """

    def __init__(self, learning: Sequence[Learnable], p: Any, device: torch.device) -> None:
        self.touched: Sequence[int] = []
        """Places in `learning` that it acts on; none: it is left out."""

    @staticmethod
    def check(p: Any, name: str) -> None:
        """Raises ForceregError, opened by `name` (the solver's file), for settings that can't be."""

    @staticmethod
    def additive(p: Any) -> bool:
        """That `add` never looks at gradients: then weight decay may come behind it, in one pass with the update."""
        return True

    def feels(self, iteration: int) -> bool:
        """Whether it acts in this iteration; a graph is recorded for each set of those that do."""
        return True

    def whole(self, iteration: int) -> bool:
        """Whether it acts as strongly as it ever will."""
        return self.feels(iteration)

    def prepare(self, iteration: int) -> None:
        """Before an iteration in which it feels, and before any graph of it: puts what differs into kept tensors."""

    def watch(self) -> Watch | None:
        """What is shown each layer and its inputs in the passes of the prepared iteration, which no graph then runs."""
        return None

    def watched(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Behind the passes of an iteration in which it feels; `mean` of a tensor over all processes."""

    def begin(self) -> None:
        """Before an iteration's passes, on a GPU only: may start on what depends on the weights alone."""

    def add(self, grads: Sequence[Tensor]) -> None:
        """Adds its gradient to `grads`, parallel to `learning`: clipped, normalised and, unless fused, decayed."""

    def project(self) -> None:
        """Changes the weights behind the update, to what they would stay if it were done again (as a mask does)."""

    def look(self, iteration: int, once: Once) -> None:
        """Behind the tests in front of an iteration: may change what it does from here on.

        What it goes by has to be the same on all processes: `once(work)` is what `work()` is on the first of them.
        """

    def news(self, iteration: int) -> str:
        """What to say of it at the beginning of an iteration; '' nothing."""
        return ""

    def carried(self) -> Mapping[str, Tensor]:
        """Kept tensors that a snapshot has to hold for an exact resume, which fills them in place."""
        return {}
