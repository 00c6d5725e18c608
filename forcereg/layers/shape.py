"""Layers that join, split or reshape blobs: Concat, Eltwise, Flatten, Split, and the net's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from forcereg.layers.base import Layer, Shape, canonical_axis, count
from forcereg.registry import layer
from forcereg.schema import EltwiseParameter
from forcereg.spec import LayerSpec


@layer("Input", "input_param")
class Input(Layer):
    """Declares blobs that the caller feeds; one shape for all tops or one each."""

    bottoms = (0, 0)
    tops = (1, None)

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        declared = [tuple(shape.dim) for shape in spec.message.input_param.shape]
        if len(declared) not in (1, len(spec.tops)):
            raise spec.fail(
                f"has {len(declared)} shapes for {len(spec.tops)} tops; give input_param {{ shape {{ dim: ... }} }} "
                "once or one per top"
            )
        if len(declared) == 1:
            declared *= len(spec.tops)
        for shape in declared:
            if min(shape, default=1) < 0:
                raise spec.fail(f"shape {list(shape)} has a negative dim")
        self.out_shapes = tuple(declared)


@layer("Split")
class Split(Layer):
    """The bottom, once per top; gradients add up."""

    tops = (1, None)

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        self.copies = len(spec.tops)
        self.out_shapes = (shapes[0],) * self.copies

    def forward(self, x: Tensor) -> Any:
        return (x,) * self.copies if self.copies > 1 else x


@layer("Concat", "concat_param")
class Concat(Layer):
    """The bottoms one after the other along `axis` (1); the other axes must be equal."""

    bottoms = (1, None)

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.concat_param
        if message.HasField("axis") and message.HasField("concat_dim"):
            raise spec.fail("gives both axis and concat_dim; use axis")
        axis = message.concat_dim if message.HasField("concat_dim") else message.axis
        self.axis = canonical_axis(spec, axis, len(shapes[0]))
        rest = {shape[: self.axis] + shape[self.axis + 1 :] for shape in shapes}
        if len(rest) > 1 or len({len(shape) for shape in shapes}) > 1:
            raise spec.fail(
                f"bottoms {', '.join(str(list(shape)) for shape in shapes)} differ outside axis {self.axis}"
            )
        joined = sum(shape[self.axis] for shape in shapes)
        self.out_shapes = ((*shapes[0][: self.axis], joined, *shapes[0][self.axis + 1 :]),)

    def forward(self, *bottoms: Tensor) -> Tensor:
        return torch.cat(bottoms, self.axis)


@layer("Eltwise", "eltwise_param")
class Eltwise(Layer):
    """PROD, SUM (weighted by `coeff`) or MAX (where `coeff` has no effect, as in Caffe) of bottoms of one shape.

    PROD always uses the gradient that is right at zeros (Caffe's stable form). On a MAX tie of the first
    two bottoms the second wins; a later one must be strictly greater.
    """

    bottoms = (2, None)

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.eltwise_param
        if any(shape != shapes[0] for shape in shapes):
            raise spec.fail(f"bottoms {', '.join(str(list(shape)) for shape in shapes)} must have one shape")
        self.operation = EltwiseParameter.EltwiseOp.Name(message.operation)
        self.coeff = tuple(message.coeff)
        if self.coeff and self.operation == "PROD":
            raise spec.fail("coeff does not go with operation PROD; use SUM or remove it")
        if self.coeff and len(self.coeff) != len(shapes):
            raise spec.fail(f"has {len(self.coeff)} coeff entries for {len(shapes)} bottoms; give one each or none")
        self.out_shapes = (shapes[0],)

    def forward(self, *bottoms: Tensor) -> Tensor:
        if self.operation == "SUM":
            return self._sum(bottoms)
        result = bottoms[0]
        for index, x in enumerate(bottoms[1:]):
            if self.operation == "PROD":
                result = result * x
            else:
                keep = result > x if index == 0 else ~(x > result)
                result = torch.where(keep, result, x)
        return result

    def _sum(self, bottoms: tuple[Tensor, ...]) -> Tensor:
        if not self.coeff:
            result = bottoms[0] + bottoms[1]
            for x in bottoms[2:]:
                result = result + x
            return result
        result = bottoms[0] * self.coeff[0]
        for x, coeff in zip(bottoms[1:], self.coeff[1:], strict=True):
            result = torch.add(result, x, alpha=coeff)
        return result


@layer("Flatten", "flatten_param")
class Flatten(Layer):
    """Axes `axis` (1) to `end_axis` (-1) become one."""

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message, rank = spec.message.flatten_param, len(shapes[0])
        self.start = canonical_axis(spec, message.axis, rank)
        self.end = canonical_axis(spec, message.end_axis, rank, "end_axis")
        if self.end < self.start:
            raise spec.fail(f"end_axis {message.end_axis} comes before axis {message.axis}")
        shape = shapes[0]
        joined = count(shape[self.start : self.end + 1])
        self.out_shapes = ((*shape[: self.start], joined, *shape[self.end + 1 :]),)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(self.start, self.end)
