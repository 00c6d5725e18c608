"""Which layers of a net run backward, and to which of their bottoms the gradient goes: Caffe's rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forcereg.schema.spec import LayerSpec


@dataclass(frozen=True)
class Flow:
    """Whether a layer runs backward, and which of its bottoms get a gradient."""

    runs: bool
    bottoms: tuple[bool, ...]


def flows(
    layers: Sequence[LayerSpec], learns: Sequence[bool], refused: Sequence[frozenset[int]], force: bool
) -> list[Flow]:
    """One Flow a layer.

    `learns`: whether a layer has weights that learn; `refused`: bottoms that never get a gradient, as labels; `force`:
    force_backward. A layer runs backward if it, or one in front of it, learns and a loss is behind it.
    """
    found = _pruned(layers, _asked(layers, learns))
    if force:
        found = [Flow(True, (True,) * len(spec.bottoms)) for spec in layers]
    return [
        Flow(flow.runs, tuple(flag and index not in refusing for index, flag in enumerate(flow.bottoms)))
        for flow, refusing in zip(found, refused, strict=True)
    ]


def _asked(layers: Sequence[LayerSpec], learns: Sequence[bool]) -> list[Flow]:
    """Without looking at losses: what weights in front ask for, or propagate_down instead of them."""
    needed: set[str] = set()
    found = []
    for spec, learning in zip(layers, learns, strict=True):
        said = tuple(spec.message.propagate_down)
        runs = learning or any(bottom in needed for bottom in spec.bottoms)
        found.append(Flow(runs, said or tuple(bottom in needed for bottom in spec.bottoms)))
        if runs:
            needed.update(spec.tops)
    return found


def _pruned(layers: Sequence[LayerSpec], asked: Sequence[Flow]) -> list[Flow]:
    """From the end: without what no loss is behind, or what is read only where no gradient is asked for."""
    under_loss: set[str] = set()
    skipped: set[str] = set()
    found: list[Flow] = []
    for spec, flow in zip(reversed(layers), reversed(asked), strict=True):
        weighted = any(spec.loss_weights)
        contributes = weighted or any(top in under_loss for top in spec.tops)
        # a loss that something else reads, too, keeps its own gradient: see the layers' page
        unread = not weighted and all(top in skipped for top in spec.tops)
        runs = flow.runs and contributes and not unread
        bottoms = tuple(flag and contributes and not (flow.runs and unread) for flag in flow.bottoms)
        if contributes:
            under_loss.update(spec.bottoms)
        skipped.update(bottom for bottom, flag in zip(spec.bottoms, bottoms, strict=True) if not flag)
        found.append(Flow(runs, bottoms))
    return found[::-1]
