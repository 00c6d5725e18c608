"""Layers that reduce axes: ArgMax, Reduction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from forcereg.layers.base import Layer, Shape, canonical_axis, count, item_rows
from forcereg.registry import layer
from forcereg.schema import ReductionParameter
from forcereg.schema.spec import LayerSpec


@layer("ArgMax", "argmax_param")
class ArgMax(Layer):
    """The `top_k` largest values' indices; of equal values the highest index comes first (Caffe's rule).

    With `axis` that axis becomes top_k long and holds the indices, or only the values with `out_max_val`. Without,
    each item is one vector: (N, 1, top_k), or (N, 2, top_k) with `out_max_val`, indices then values, and trailing
    axes of 1 up to the bottom's number of axes. No gradient.
    """

    labels = frozenset({0})
    per_item = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message, rank = spec.message.argmax_param, len(shapes[0])
        self.top_k, self.out_max_val = message.top_k, message.out_max_val
        if not rank:
            raise spec.fail("bottom has no axes; expected items along axis 0")
        self.axis = canonical_axis(spec, message.axis, rank) if message.HasField("axis") else None
        self.per_item &= self.axis != 0
        length = count(shapes[0][1:]) if self.axis is None else shapes[0][self.axis]
        if not 1 <= self.top_k <= length:
            raise spec.fail(f"top_k is {self.top_k}; expected 1 to {length}, the number of values it picks from")
        if self.axis is None:
            picked = (shapes[0][0], 2 if self.out_max_val else 1, self.top_k)
            self.out_shapes = (picked + (1,) * (rank - 3),)
        else:
            self.out_shapes = ((*shapes[0][: self.axis], self.top_k, *shapes[0][self.axis + 1 :]),)

    def forward(self, x: Tensor) -> Tensor:
        if self.axis is not None:
            values, indices = self._largest(x.detach(), self.axis)
            return values if self.out_max_val else indices
        values, indices = self._largest(item_rows(x.detach()), 1)
        picked = (indices, values) if self.out_max_val else (indices,)
        # items may be fewer than declared, behind a Filter
        return torch.stack(picked, 1).reshape(x.shape[0], *self.out_shapes[0][1:])

    def _largest(self, x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """The top_k values along `axis`, descending, and their indices as floats."""
        # torch prefers the lowest index among equals (not so in topk), so it gets the values in reverse
        values, places = x.flip(axis).sort(dim=axis, descending=True, stable=True)
        indices = x.shape[axis] - 1 - places.narrow(axis, 0, self.top_k)
        return values.narrow(axis, 0, self.top_k), indices.to(x.dtype)


@layer("Reduction", "reduction_param")
class Reduction(Layer):
    """coeff times the SUM, ASUM (of |x|), SUMSQ or MEAN over all axes from `axis` (0) on; those before it stay."""

    per_item = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.reduction_param
        axis = canonical_axis(spec, message.axis, len(shapes[0]))
        self.per_item &= axis > 0
        self.axes = tuple(range(axis, len(shapes[0])))
        self.operation = ReductionParameter.ReductionOp.Name(message.operation)
        self.coeff = message.coeff
        self.out_shapes = (shapes[0][:axis],)

    def forward(self, x: Tensor) -> Tensor:
        if self.operation == "MEAN":
            y = x.mean(self.axes)
        elif self.operation == "ASUM":
            y = x.abs().sum(self.axes)
        elif self.operation == "SUMSQ":
            y = x.square().sum(self.axes)
        else:
            y = x.sum(self.axes)
        return y if self.coeff == 1 else y * self.coeff
