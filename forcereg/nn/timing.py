"""Layers and their chains measured on this machine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from forcereg.lowrank.factor import rank_text
from forcereg.lowrank.ranks import Candidate, Choice, Whole
from forcereg.nn.kinds import outline
from forcereg.nn.prepare import Site
from forcereg.nn.trace import Seen, called
from forcereg.study.latency import interleaved


class LayerTimer:
    """A `Timer` for `lowrank.timed.by_times`: each layer alone, on inputs of the shape that it had on the example."""

    def __init__(
        self, sites: Mapping[str, Site], seen: Mapping[str, Seen], device: torch.device, tell: Callable[[str], None]
    ) -> None:
        self._sites, self._seen, self._device, self._tell = sites, seen, device, tell

    def __call__(self, one: Candidate, choices: Sequence[Choice]) -> list[list[float]]:
        """Milliseconds by choice and round."""
        ranks = ", ".join(rank_text(choice) for choice in choices if not isinstance(choice, Whole))
        self._tell(f"measuring {one.name} as it is and at rank {ranks}")
        x = torch.rand_like(self._seen[one.name].first, device=self._device)  # type: ignore[arg-type]
        return interleaved([partial(self._module(one, choice), x) for choice in choices], self._device)

    def _module(self, one: Candidate, choice: Choice) -> nn.Module:
        site = self._sites[one.name]
        if isinstance(choice, Whole):
            return copy.deepcopy(site.module).to(self._device).eval()
        made = outline(site.layer, one.ladder.outline(choice), self._device).eval()
        with torch.no_grad():
            for weight in made.parameters():
                weight.uniform_(-0.1, 0.1)  # never denormal
        return made


def before_and_after(before: nn.Module, after: nn.Module, example: Any, device: torch.device) -> list[float]:
    """Milliseconds of two models on the example, medians of rounds in which they take turns."""
    there = torch.utils._pytree.tree_map(lambda one: one.to(device) if isinstance(one, torch.Tensor) else one, example)
    models = [copy.deepcopy(one).to(device).eval() for one in (before, after)]
    return [median(times) for times in interleaved([partial(called, one, there) for one in models], device)]
