"""Layers that join, copy or reshape blobs (Concat, Eltwise, Flatten, Reshape, Split, Tile), inputs and Parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from forcereg.layers.base import Layer, Shape, canonical_axis, count
from forcereg.layers.recording import sizes
from forcereg.registry import layer
from forcereg.schema import EltwiseParameter
from forcereg.schema.spec import LayerSpec


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


@layer("Parameter", "parameter_param")
class Parameter(Layer):
    """A learnable blob of the declared shape as a top; zeros at first (Caffe has no filler for it)."""

    bottoms = (0, 0)

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.parameter_param
        if not message.HasField("shape"):
            raise spec.fail("has no shape; give parameter_param { shape { dim: ... } }")
        self.add_blob("weight", tuple(message.shape.dim))
        self.out_shapes = (tuple(message.shape.dim),)

    def forward(self) -> Tensor:
        return self.weight_blob()


@layer("Split")
class Split(Layer):
    """The bottom, once per top; gradients add up."""

    tops = (1, None)
    per_item = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        self.copies = len(spec.tops)
        self.out_shapes = (shapes[0],) * self.copies

    def forward(self, x: Tensor) -> Any:
        return (x,) * self.copies if self.copies > 1 else x


def equalized(shapes: Sequence[Shape], joined: int | None = None) -> str:
    """What to do about shapes that should be equal, but for the axis along which they are `joined`: by what differs."""
    ranks = sorted({len(shape) for shape in shapes})
    if len(ranks) > 1:
        spread = "" if joined is not None else ", or use Scale or Bias to spread a smaller blob over a larger one"
        return f"give all the same number of axes, by a Flatten or Reshape in front{spread}"
    axes = [axis for axis in range(ranks[0]) if axis != joined and len({shape[axis] for shape in shapes}) > 1]
    makers = "the layers that make them"
    fixes = {0: "make axis 0, the batch, equal", 1: f"give {makers} the same num_output"}
    fix = fixes.get(axes[0], "") if len(axes) == 1 else ""
    if not fix:
        where = f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"
        sizes = ", by their kernel_size, stride and pad" if axes[0] > 1 else ""
        fix = f"make {where} of what {makers} give equal{sizes}"
    return f"{fix}, or join them along axis {axes[0]}" if joined is not None and len(axes) == 1 else fix


@layer("Concat", "concat_param")
class Concat(Layer):
    """The bottoms one after the other along `axis` (1); the other axes must be equal."""

    bottoms = (1, None)
    per_item = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.concat_param
        if message.HasField("axis") and message.HasField("concat_dim"):
            raise spec.fail("gives both axis and concat_dim (its old name); use axis")
        axis = message.concat_dim if message.HasField("concat_dim") else message.axis
        self.axis = canonical_axis(spec, axis, len(shapes[0]))
        self.per_item &= self.axis > 0
        rest = {shape[: self.axis] + shape[self.axis + 1 :] for shape in shapes}
        if len(rest) > 1 or len({len(shape) for shape in shapes}) > 1:
            raise spec.fail(f"bottoms {listed(shapes)} differ outside axis {self.axis}; {equalized(shapes, self.axis)}")
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
    overwritable = True
    per_item = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.eltwise_param
        self.check_shapes(shapes)
        self.operation = EltwiseParameter.EltwiseOp.Name(message.operation)
        self.coeff = tuple(message.coeff)
        if self.coeff and self.operation == "PROD":
            raise spec.fail("coeff does not go with operation PROD; use SUM or remove it")
        if self.coeff and len(self.coeff) != len(shapes):
            raise spec.fail(f"has {len(self.coeff)} coeff entries for {len(shapes)} bottoms; give one each or none")
        self.out_shapes = (shapes[0],)

    @property
    def adds_two(self) -> bool:
        """Whether its top is the plain sum of two bottoms."""
        return self.operation == "SUM" and len(self.spec.bottoms) == 2 and not self.coeff

    def check_shapes(self, shapes: Sequence[Shape]) -> None:
        """Raises ForceregError if they differ."""
        if any(shape != shapes[0] for shape in shapes):
            raise self.spec.fail(f"bottoms {listed(shapes)} must have one shape; {equalized(shapes)}")

    def forward(self, *bottoms: Tensor) -> Tensor:
        self.check_shapes([sizes(x) for x in bottoms])  # torch would broadcast
        if self.operation == "SUM":
            return self._sum(bottoms)
        result = bottoms[0]
        for index, x in enumerate(bottoms[1:]):
            if self.operation == "PROD":
                result = result * x
            else:
                # Caffe compares the first two the other way round than all that follow
                keep = result > x if index == 0 else ~(x > result)
                result = torch.where(keep, result, x)
        return result

    def _sum(self, bottoms: tuple[Tensor, ...]) -> Tensor:
        if not self.coeff:
            # not sum(): it would begin with 0 and add it
            result = bottoms[0] + bottoms[1]
            for x in bottoms[2:]:
                result = result + x
            return result
        result = bottoms[0] * self.coeff[0]
        for x, coeff in zip(bottoms[1:], self.coeff[1:], strict=True):
            # one pass for product and sum
            result = torch.add(result, x, alpha=coeff)
        return result


@layer("Flatten", "flatten_param")
class Flatten(Layer):
    """Axes `axis` (1) to `end_axis` (-1) become one."""

    per_item = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message, rank = spec.message.flatten_param, len(shapes[0])
        self.start = canonical_axis(spec, message.axis, rank)
        self.end = canonical_axis(spec, message.end_axis, rank, "end_axis")
        self.per_item &= self.start > 0
        if self.end < self.start:
            raise spec.fail(
                f"end_axis {message.end_axis} comes before axis {message.axis} of bottom {list(shapes[0])}; "
                "name the first axis and the last one to join"
            )
        shape = shapes[0]
        joined = count(shape[self.start : self.end + 1])
        self.out_shapes = ((*shape[: self.start], joined, *shape[self.end + 1 :]),)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(self.start, self.end)


@layer("Reshape", "reshape_param")
class Reshape(Layer):
    """Replaces the `num_axes` (-1: all) axes from `axis` (0) on by the dims of `shape`.

    A dim 0 copies the bottom's at the same index after `axis`; one may be -1, inferred from the count. A negative
    `axis` counts from behind the last one, so that -1 with num_axes 0 appends axes.
    """

    per_item = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.reshape_param
        self.axis, self.num_axes, self.dims = message.axis, message.num_axes, tuple(message.shape.dim)
        if self.dims.count(-1) > 1:
            raise spec.fail(f"shape {list(self.dims)} has {self.dims.count(-1)} dims of -1; only one can be inferred")
        if min(self.dims, default=0) < -1:
            raise spec.fail(f"shape {list(self.dims)} has a negative dim; use sizes, 0 to copy or one -1 to infer")
        if self.num_axes < -1:
            raise spec.fail(f"num_axes is {self.num_axes}; expected the number of axes to replace, or -1 for all")
        self.out_shapes = (self.top_shape(shapes[0]),)
        # axis 0 stays a batch if it isn't replaced, or by a 0, which copies it
        self.per_item &= self._span(shapes[0])[0] > 0 or (self.dims[:1] == (0,) and self.num_axes != 0)

    def top_shape(self, bottom: Shape) -> Shape:
        """The top's shape for a bottom of this one; raises ForceregError if the counts differ."""
        start, end = self._span(bottom)
        dims = list(self.dims)
        for index, dim in enumerate(dims):
            if dim == 0 and start + index >= len(bottom):
                raise self.spec.fail(
                    f"dim {index} of shape {list(self.dims)} is 0, to be copied from axis {start + index}, which "
                    f"bottom {list(bottom)} lacks; give its size"
                )
            dims[index] = bottom[start + index] if dim == 0 else dim
        if -1 in dims:
            dims[dims.index(-1)] = self._inferred(bottom, bottom[start:end], dims)
        top = (*bottom[:start], *dims, *bottom[end:])
        if count(top) != count(bottom):
            raise self.spec.fail(
                f"shape {list(self.dims)} makes {list(top)}, {count(top)} values, of bottom {list(bottom)}, "
                f"{count(bottom)} values; make the counts equal{self._open(bottom, top)}"
            )
        return top

    def _open(self, bottom: Shape, top: Shape) -> str:
        """The other way to equal counts, where a dim can be inferred."""
        fits = any(rest and count(bottom) % rest == 0 for rest in (count(top) // size for size in top if size))
        return ", or let one dim be -1" if fits and -1 not in self.dims else ""

    def _span(self, bottom: Shape) -> tuple[int, int]:
        rank = len(bottom)
        start = self.axis if self.axis >= 0 else self.axis + rank + 1
        if not 0 <= start <= rank:
            raise self.spec.fail(f"axis {self.axis} is outside bottom {list(bottom)}; expected {-rank - 1} to {rank}")
        end = rank if self.num_axes == -1 else start + self.num_axes
        if end > rank:
            raise self.spec.fail(
                f"num_axes {self.num_axes} from axis {start} on is more than bottom {list(bottom)} has; "
                f"expected at most {rank - start}, or -1 for all"
            )
        return start, end

    def _inferred(self, bottom: Shape, replaced: Shape, dims: Sequence[int]) -> int:
        # dims copied from a replaced axis cancel out, so that there is an answer also for a bottom without rows
        copied = {index for index, dim in enumerate(self.dims) if dim == 0 and index < len(replaced)}
        total = count([size for index, size in enumerate(replaced) if index not in copied])
        known = count([size for index, size in enumerate(dims) if index not in copied and size != -1])
        if known == 0 or total % known:
            raise self.spec.fail(
                f"cannot infer the -1 in shape {list(self.dims)}: the {count(replaced)} values in axes "
                f"{list(replaced)} of bottom {list(bottom)} aren't a multiple of the other dims; change these"
            )
        return total // known

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(self.top_shape(x.shape))


@layer("Tile", "tile_param")
class Tile(Layer):
    """The bottom `tiles` times, one behind the other, along `axis` (1)."""

    per_item = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message, shape = spec.message.tile_param, shapes[0]
        if message.tiles < 1:
            raise spec.fail(f"tiles is {message.tiles}; expected 1 or more, give tile_param {{ tiles: 2 }}")
        axis = canonical_axis(spec, message.axis, len(shape))
        self.per_item &= axis > 0
        self.repeats = tuple(message.tiles if index == axis else 1 for index in range(len(shape)))
        self.out_shapes = (tuple(size * times for size, times in zip(shape, self.repeats, strict=True)),)

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(self.repeats)


def listed(shapes: Sequence[Shape]) -> str:
    """Shapes as an error shows them."""
    return ", ".join(str(list(shape)) for shape in shapes)
