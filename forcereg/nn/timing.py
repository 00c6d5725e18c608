"""Layers and their chains measured on this machine, by torch or by another runtime."""

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
from forcereg.nn.elsewhere import as_net
from forcereg.nn.kinds import outline
from forcereg.nn.prepare import Site
from forcereg.nn.trace import Seen, called
from forcereg.study.bench import Bench
from forcereg.study.latency import Run, interleaved


class LayerTimer:
    """A `Timer` for `lowrank.timed.by_times`: each layer alone, on inputs of the shape that it had on the example.

    Other runtimes than torch get it as an ONNX model. Raises ForceregError where there is none of it.
    """

    def __init__(
        self, sites: Mapping[str, Site], seen: Mapping[str, Seen], bench: Bench, tell: Callable[[str], None]
    ) -> None:
        self._sites, self._seen, self._bench, self._tell = sites, seen, bench, tell

    def __call__(self, one: Candidate, choices: Sequence[Choice]) -> list[list[float]]:
        """Milliseconds by choice and round."""
        ranks = ", ".join(rank_text(choice) for choice in choices if not isinstance(choice, Whole))
        self._tell(f"measuring {one.name} as it is and at rank {ranks}")
        with self._bench.at_work():
            return interleaved([self._run(one, choice) for choice in choices], self._bench.device)

    def _run(self, one: Candidate, choice: Choice) -> Run:
        x = torch.rand_like(self._seen[one.name].first, device=self._bench.device)  # type: ignore[arg-type]
        module = self._module(one, choice)
        if not self._bench.exports:
            return partial(module, x)
        net, fed = as_net(module, x, one.name)
        return self._bench.run(net, {"x0": fed})

    def _module(self, one: Candidate, choice: Choice) -> nn.Module:
        site, device = self._sites[one.name], self._bench.device
        if isinstance(choice, Whole):
            return copy.deepcopy(site.module).to(device).eval()
        made = outline(site.layer, one.ladder.outline(choice), device).eval()
        with torch.no_grad():
            for weight in made.parameters():
                weight.uniform_(-0.1, 0.1)  # never denormal
        return made


def before_and_after(before: nn.Module, after: nn.Module, example: Any, bench: Bench) -> list[float] | None:
    """Milliseconds of two models on the example, medians of rounds in which they take turns.

    None by another runtime than torch, for which whole models aren't written here.
    """
    if bench.exports:
        return None
    device = bench.device
    there = torch.utils._pytree.tree_map(lambda one: one.to(device) if isinstance(one, torch.Tensor) else one, example)
    models = [copy.deepcopy(one).to(device).eval() for one in (before, after)]
    with bench.at_work():
        return [median(times) for times in interleaved([partial(called, one, there) for one in models], device)]
