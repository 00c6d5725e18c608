"""The metric of responses: second moments of forced layers' inputs, from a run's own training batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from forcereg.layers import Layer
from forcereg.layers.weighted import Convolution, InnerProduct
from forcereg.net.module import Learnable, Net
from forcereg.net.moments import Moments, inputs_of, started
from forcereg.schema.spec import LayerSpec
from forcereg.solver.force import normalised
from forcereg.system.memory import check_room

SHARE = 0.5
"""What a new batch counts beside all before it: moments follow the weights in front of a layer."""


class Metric:
    """Normalised E[x x^T] of the inputs x of `forced` weights' layers, looked at every `interval` iterations.

    `moments`: kept, by place in `forced`, (groups, K, K) float64; zeros, in which nothing has a length, before the
    first batch. That one is taken whole, a later one counts SHARE.
    """

    def __init__(self, forced: Sequence[Learnable], interval: int) -> None:
        # by weights: several layers may share one
        self._places = {id(one.blob): place for place, one in enumerate(forced)}
        self._interval = interval
        lengths = [one.blob[0].numel() for one in forced]
        self.moments = [
            one.blob.new_zeros((one.groups, k, k), dtype=torch.float64) for one, k in zip(forced, lengths, strict=True)
        ]
        # K of what has been looked at: another one after rank clipping, which gives layers other inputs
        self._lengths, self._known = torch.tensor(lengths, dtype=torch.float64), torch.zeros(len(forced)).double()
        self._found: dict[int, Moments] = {}

    def due(self, iteration: int) -> bool:
        """Whether to look at the passes of an iteration."""
        return iteration % self._interval == 0 or not torch.equal(self._known, self._lengths)

    @torch.no_grad()
    def watch(self, spec: LayerSpec, module: Layer, bottoms: Sequence[Tensor]) -> None:
        """Adds up what goes into a layer with one of the weights."""
        place = self._places.get(id(module.blobs[0])) if module.blobs else None
        if place is None:
            return
        for x in bottoms:
            for rows in inputs_of(module, x.detach()):
                if place not in self._found:
                    self._found[place] = started(spec, rows)
                self._found[place].add(rows)

    @torch.no_grad()
    def take(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Takes what was added up into the moments; `mean` over all processes."""
        for place, found in self._found.items():
            batch, kept = normalised(mean(found.total / found.count)), self.moments[place]
            new = torch.where(kept.any(), kept + SHARE * (batch - kept), batch)
            # under a loss scale a step may be left out for what isn't finite, and nothing may stay of it
            kept.copy_(torch.where(batch.isfinite().all(), new, kept))
        self._known.copy_(self._lengths)
        self._found = {}

    def carried(self) -> Mapping[str, Tensor]:
        """What an exact resume needs."""
        return {"known": self._known, **{f"moments_{place}": one for place, one in enumerate(self.moments)}}


def check_metric(net: Net, forced: Sequence[Learnable]) -> None:
    """Raises ForceregError for a weight that has no metric of responses, or where memory can't hold them all."""
    for one in forced:
        own = f"{one.layer}/{one.index}"
        sharing = [borrower.rpartition("/")[0] for borrower, owner in net.shared.items() if owner == own]
        for layer in (one.layer, *sharing):
            _check_layer(net.module(layer), one)
    needed = [(net.module(one.layer).spec, 3 * 8 * one.groups * one.blob[0].numel() ** 2) for one in forced]
    if needed and forced[0].blob.device.type == "cpu":
        check_room(needed, "the second moments of its input")


def _check_layer(module: Layer, one: Learnable) -> None:
    """Raises ForceregError for a layer with this weight that has no metric of responses."""
    fix = 'remove its force_mult, or use force_metric: "weights"'
    if isinstance(module, InnerProduct) and module.spec.message.inner_product_param.transpose:
        what = "transpose"
    elif one.index or not isinstance(module, Convolution | InnerProduct):
        what = f"a weight of {module.spec.type}"
    elif (module.shaped_blobs[0].shape, getattr(module, "group", 1)) != (one.blob.shape, one.groups):
        what = f"a weight that has another shape or other groups in {one.layer}"
    else:
        what = ""
    if what:
        raise module.spec.fail(f'force_metric "responses" is of Convolution and InnerProduct, not of {what}; {fix}')
    if one.force_view != "FILTERS":
        raise module.spec.fail(
            f'force_metric "responses" is of FILTERS, its force_view is {one.force_view}; use one or the other'
        )
