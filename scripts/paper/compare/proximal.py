"""The comparison's other ways to low rank, as regularizers for the benchmark alone: nuclear norm, and an exact rank.

Both do what torchao's prototype.pat does to a convolution (soft or hard thresholds on the singular values of filters as
rows), every INTERVAL iterations behind the update, to the weights that have force_mult. Set `asked` before training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forcereg.net.module import Learnable
from forcereg.registry import regularizer
from forcereg.solver.policy import rate, reached
from forcereg.solver.regularizers import Regularizer

INTERVAL = 10
"""Iterations from one threshold to the next, each as strong as all of them together."""


@dataclass
class Asked:
    """What the next training does: a nuclear norm's strength, or a rank for each layer, reached at `end`."""

    nuclear: float = 0.0
    ranks: Mapping[str, int] | None = None
    end: int = 0


asked = Asked()


@contextmanager
def asking(**settings: Any) -> Iterator[None]:
    """Trainings meanwhile take these settings."""
    vars(asked).update(settings)
    try:
        yield
    finally:
        vars(asked).update(vars(Asked()))


class Proximal(Regularizer):
    """Changes the singular values of each forced weight, filters as rows, every INTERVAL iterations."""

    def __init__(self, learning: Sequence[Learnable], p: Any, device: torch.device) -> None:
        super().__init__(learning, p, device)
        places = [place for place, one in enumerate(learning) if one.force_mult and one.blob.dim() >= 2]
        self._learning = [learning[place] for place in places] if self.wanted() else []
        self.touched = places if self.wanted() else []
        self._p, self._iteration = p, 0

    def wanted(self) -> bool:
        """Whether this training does it at all."""
        raise NotImplementedError

    def feels(self, iteration: int) -> bool:
        """See Regularizer."""
        self._iteration = iteration
        return iteration % INTERVAL == INTERVAL - 1

    def values(self, one: Learnable, values: Tensor) -> Tensor:
        """The singular values, falling, as they are to be."""
        raise NotImplementedError

    @torch.no_grad()
    def project(self) -> None:
        """See Regularizer."""
        for one in self._learning:
            blob = one.blob.detach()
            left, values, right = torch.linalg.svd(blob.flatten(1).double(), full_matrices=False)
            blob.copy_(((left * self.values(one, values)) @ right).view_as(blob))


@regularizer("nuclear norm")
class Nuclear(Proximal):
    """Soft thresholds of the strength times the sum of the rates since the last one (proximal gradient)."""

    def wanted(self) -> bool:
        return asked.nuclear > 0

    def values(self, one: Learnable, values: Tensor) -> Tensor:
        lr = rate(self._p, self._iteration, reached(self._p, self._iteration))
        # momentum makes steps that much longer
        step = INTERVAL * lr * one.lr_mult / (1 - self._p.momentum)
        return (values - asked.nuclear * step).clamp_(min=0)


@regularizer("exact rank")
class ExactRank(Proximal):
    """Only the largest values stay: ever fewer, by even steps from all at first to the rank asked for at `end`."""

    def wanted(self) -> bool:
        return asked.ranks is not None

    def values(self, one: Learnable, values: Tensor) -> Tensor:
        full = len(values)
        target = min(full, (asked.ranks or {}).get(one.layer, full))
        gone = min(1.0, self._iteration / max(1, asked.end))
        kept = target + round((full - target) * (1 - gone))
        return torch.cat([values[:kept], torch.zeros_like(values[kept:])])
