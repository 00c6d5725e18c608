"""Layers that hand on a part of their bottom: Slice and Crop by position, Filter and BatchReindex by a blob's values.

Positions are those of the blob at hand, not of the declared shape: behind a Filter the number of rows changes
from one forward to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from forcereg.layers.base import Layer, Shape, canonical_axis
from forcereg.layers.recording import recording, sizes
from forcereg.registry import layer
from forcereg.schema.spec import LayerSpec


@layer("Slice", "slice_param")
class Slice(Layer):
    """The bottom cut along `axis` (1) at `slice_point`, or into equal parts; one part per top."""

    tops = (1, None)
    per_item = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message, shape = spec.message.slice_param, shapes[0]
        if message.HasField("axis") and message.HasField("slice_dim"):
            raise spec.fail("gives both axis and slice_dim (its old name); use axis")
        axis = message.slice_dim if message.HasField("slice_dim") else message.axis
        self.axis = canonical_axis(spec, axis, len(shape))
        self.per_item &= self.axis > 0
        self.points = tuple(message.slice_point)
        self.parts = len(spec.tops)
        if self.points and len(self.points) != self.parts - 1:
            raise spec.fail(
                f"has {len(self.points)} slice_point entries for {self.parts} tops; give {self.parts - 1}, "
                "or none for equal parts"
            )
        sizes = self.sizes(shape)
        self.out_shapes = tuple((*shape[: self.axis], size, *shape[self.axis + 1 :]) for size in sizes)

    def sizes(self, shape: Shape) -> list[int]:
        """The sizes along the axis of the parts of a bottom of this shape; raises ForceregError if it can't be cut."""
        total = shape[self.axis]
        if not self.points:
            if total % self.parts:
                raise self.spec.fail(
                    f"axis {self.axis} of bottom {list(shape)} doesn't divide into {self.parts} equal tops; "
                    + ("give slice_point entries or another number of tops" if total > self.parts else "use fewer tops")
                )
            return [total // self.parts] * self.parts
        cuts = (0, *self.points, total)
        sizes = [end - start for start, end in pairwise(cuts)]
        if min(sizes) < 1:
            inside = f"inside axis {self.axis} of bottom {list(shape)}"
            fix = f"expected increasing positions from 1 to {total - 1}, {inside}"
            raise self.spec.fail(
                f"slice_point {list(self.points)} leaves a top without values; "
                + (fix if total >= self.parts else f"there are only {total} {inside}, use fewer tops")
            )
        return sizes

    def forward(self, x: Tensor) -> Any:
        parts = x.split(self.sizes(sizes(x)), self.axis)
        return parts if self.parts > 1 else parts[0]


@layer("Crop", "crop_param")
class Crop(Layer):
    """Bottom 0 cut to bottom 1's sizes in the axes from `axis` (2) on, starting at `offset` (one for all or one each).

    Bottom 1 gives its shape only and gets no gradient.
    """

    bottoms = (2, 2)
    labels = frozenset({1})
    per_item = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message, rank = spec.message.crop_param, len(shapes[0])
        self.axis = canonical_axis(spec, message.axis, rank)
        self.per_item &= self.axis > 0
        cropped = rank - self.axis
        offsets = tuple(message.offset) or (0,)
        if len(offsets) not in (1, cropped):
            raise spec.fail(
                f"has {len(offsets)} offset entries for the {cropped} axes from axis {self.axis} on of bottom "
                f"{list(shapes[0])}; give none, one for all, or one each"
            )
        if len(shapes[1]) < rank:
            raise spec.fail(
                f"bottom 1 {list(shapes[1])} has {len(shapes[1])} axes; it gives the sizes for bottom 0 "
                f"{list(shapes[0])}, so it needs {rank}"
            )
        self.offsets = offsets if len(offsets) == cropped else offsets * cropped
        self.out_shapes = ((*shapes[0][: self.axis], *self.sizes(shapes[0], shapes[1])),)

    def sizes(self, shape: Shape, reference: Shape) -> Shape:
        """The sizes to keep of the cropped axes; raises ForceregError if they reach beyond `shape`."""
        sizes = tuple(reference[self.axis : len(shape)])
        for index, (offset, size) in enumerate(zip(self.offsets, sizes, strict=True), self.axis):
            if offset + size > shape[index]:
                raise self.spec.fail(
                    f"offset {offset} and size {size} reach beyond axis {index} of bottom 0 {list(shape)}; "
                    f"bottom 1 is {list(reference)}, so the offset can be 0 to {shape[index] - size}"
                    if size <= shape[index]
                    else f"bottom 1 {list(reference)} is larger than bottom 0 {list(shape)} in axis {index}; "
                    f"{self._cropped(shape, reference)}"
                )
        return sizes

    def _cropped(self, shape: Shape, reference: Shape) -> str:
        """What makes the reference no larger than the bottom."""
        rank = len(shape)
        if all(reference[axis] >= shape[axis] for axis in range(self.axis, rank)):
            return "swap the bottoms"
        later = [k for k in range(self.axis + 1, rank) if all(reference[a] <= shape[a] for a in range(k, rank))]
        return f"crop from axis {later[0]} on" if later else "make bottom 1 smaller"

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        cut = self.sizes(sizes(x), sizes(reference))
        window: Any = [slice(start, start + size) for start, size in zip(self.offsets, cut, strict=True)]
        return x[(..., *window)]


@layer("Filter", limits="waits for the GPU at every forward")
class Filter(Layer):
    """The rows of each bottom for which the last bottom, the selector of shape (N, 1, ...), isn't zero.

    The number of rows is known only after a forward, and on a GPU only by waiting for it; the declared shape is the
    full one, and there may be none. Rows left out get zero gradient, the selector none.
    """

    bottoms = (2, None)
    tops = (1, None)
    capturable = False

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        if len(spec.tops) != len(shapes) - 1:
            raise spec.fail(
                f"has {len(spec.tops)} tops for {len(shapes)} bottoms; give one per bottom but the last, the selector"
            )
        if not shapes[-1] or any(size != 1 for size in shapes[-1][1:]):
            raise spec.fail(
                f"selector (the last bottom) has shape {list(shapes[-1])}; expected one value per row, as [N] or [N, 1]"
            )
        self._check_rows(shapes)
        self.out_shapes = tuple(shapes[:-1])

    def _check_rows(self, shapes: Sequence[Shape]) -> None:
        rows = shapes[-1][0]
        for index, shape in enumerate(shapes[:-1]):
            if shape[:1] != (rows,):
                raise self.spec.fail(
                    f"bottom {index} has shape {list(shape)}, but the selector (the last bottom) has {rows} rows; "
                    "make axis 0 of all bottoms equal"
                )

    def forward(self, *bottoms: Tensor) -> Any:
        self._check_rows([x.shape for x in bottoms])
        kept = bottoms[-1].flatten().nonzero().flatten()
        tops = tuple(x.index_select(0, kept) for x in bottoms[:-1])
        return tops if len(tops) > 1 else tops[0]


@layer("BatchReindex", limits="on a GPU a wrong index ends in torch's own assertion")
class BatchReindex(Layer):
    """The rows of bottom 0 whose numbers bottom 1 lists, repeated rows included; their gradients add up.

    Raises ForceregError for a number outside 0..N-1 on the CPU; on a GPU, where looking would stall the step, it is
    torch's own device-side assertion.
    """

    bottoms = (2, 2)
    labels = frozenset({1})

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        if not shapes[0]:
            raise spec.fail("bottom 0 has no axes; expected rows along axis 0")
        if len(shapes[1]) != 1:
            raise spec.fail(
                f"bottom 1 has shape {list(shapes[1])}; expected one axis of row numbers, put a Flatten with axis: 0 "
                "in front"
            )
        self.out_shapes = ((*shapes[1], *shapes[0][1:]),)

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        if rows.device.type == "cpu" and not recording():
            # written so that NaN is wrong, too
            wrong = rows[~((rows >= 0) & (rows < x.shape[0]))]
            if wrong.numel():
                raise self.spec.fail(
                    f"bottom 1 lists row {wrong[0].item():g}; bottom 0 has {x.shape[0]} rows, "
                    + (f"expected 0 to {x.shape[0] - 1}" if x.shape[0] else "so the list must be empty")
                )
        return x.index_select(0, rows.long())
