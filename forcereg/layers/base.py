"""What a layer is: a torch module that knows its blobs, their fillers and its output shapes.

Adding a layer type: subclass `Layer` in the family's file, decorate it with
`@layer("Type", params="its_param")`, read the parameters in `__init__` (raise `spec.fail(...)` for
bad ones), set `out_shapes`, and write `forward`. The gradient is autograd's unless Caffe's differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from forcereg.schema import FillerParameter
from forcereg.schema.spec import LayerSpec

Shape = tuple[int, ...]
Arity = tuple[int, int | None]


class Layer(nn.Module):
    """One Caffe layer.

    `blob_names` are the module's parameters and buffers in Caffe's blob order, `fillers` what the net fills them with
    (None: they hold their values already); `out_shapes` has one
    shape per top. `forward` takes one tensor per bottom and returns one per top (a bare tensor for one).
    `macs` are the multiply-accumulates of one forward at the declared shapes, biases not counted.

    A type of one's own is a subclass, registered by `forcereg.layer`; `spec` is the layer's prototxt, `shapes` are
    those of its bottoms:

    >>> @forcereg.layer("Doubled")
    ... class Doubled(forcereg.Layer):
    ...     def __init__(self, spec, shapes):
    ...         super().__init__(spec, shapes)
    ...         self.out_shapes = (shapes[0],)
    ...     def forward(self, x):
    ...         return 2 * x
    >>> net = forcereg.load_net('''layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 3 } } }
    ...     layer { name: "y" type: "Doubled" bottom: "x" top: "y" }''')
    >>> import torch
    >>> net(x=torch.ones(3))["y"]
    tensor([2., 2., 2.])
    """

    bottoms: ClassVar[Arity] = (1, 1)
    tops: ClassVar[Arity] = (1, 1)
    labels: ClassVar[frozenset[int]] = frozenset()
    """Bottoms that never get a gradient (class labels and the like)."""
    overwritable: ClassVar[bool] = False
    """Whether backward does without this layer's output, so that an in-place ReLU may overwrite it."""
    runs_code: ClassVar[bool] = False
    """Whether the net file names code to run, which needs the user's permission."""
    capturable: bool = True
    """Whether a CUDA graph may hold its passes: they never wait for the device, shapes depend on shapes only, and
    what they keep from one forward to the next is in tensors that stay. Other people's layers have to say so."""

    per_item: bool = False
    """Whether in tests an item (axis 0) of its tops follows from that item of its bottoms alone, each time the same."""
    per_batch: bool = False
    """Whether in tests its tops follow from its bottoms alone, as losses do from all items of a batch."""

    macs: int = 0
    """Multiply-accumulates of one batch."""

    out_shapes: tuple[Shape, ...]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # a class of the users' own may inherit from ours, but what ours promise may not hold for it
        if not cls.__module__.startswith(__package__):
            for promise in {"capturable", "per_item", "per_batch"} - vars(cls).keys():
                setattr(cls, promise, False)

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__()
        self.spec = spec
        self.blob_names: list[str] = []
        self.fillers: list[Any] = []
        self._views: dict[str, Shape] = {}

    @classmethod
    def build(cls, spec: LayerSpec, shapes: Sequence[Shape]) -> Layer:
        """The layer of `spec`; a type of several kinds chooses here. Raises ForceregError."""
        return cls(spec, shapes)

    def add_blob(self, name: str, shape: Shape, filler: Any = None, buffer: bool = False) -> None:
        """Declares the next blob; the net fills it (`filler`: a FillerParameter, None for zeros).

        Raises ForceregError if it is larger than a blob may be, or than memory.
        """
        data = self.reserve(f"blob '{name}'", shape)
        if buffer:
            self.register_buffer(name, data)
        else:
            self.register_parameter(name, nn.Parameter(data))
        self.blob_names.append(name)
        self.fillers.append(FillerParameter() if filler is None else filler)

    def reserve(self, what: str, shape: Shape) -> Tensor:
        """Memory for a blob or state, which `what` names in the ForceregError if there isn't enough.

        The net writes it when all shapes are known to be right: until then a size costs nothing, however large.
        """
        self.spec.check_size(what, shape)
        try:
            return torch.empty(shape)
        except RuntimeError as error:
            raise self.spec.fail(
                f"{what} {list(shape)} needs {4 * count(shape) / 2**30:.1f} GiB, more memory than there is; "
                "use smaller sizes"
            ) from error

    def carried(self) -> dict[str, Tensor]:
        """What one forward hands to the next, by name: recurrent hidden state. Restored by copying into it."""
        return {}

    def each(self, batches: int, *bottoms: Tensor) -> Any:
        """As `forward`, of so many test batches of one size that lie one behind the other: tops as `joined` gives."""
        found = [self(*batch) for batch in zip(*(x.chunk(batches) for x in bottoms), strict=True)]
        return joined(found) if isinstance(found[0], Tensor) else tuple(map(joined, zip(*found, strict=True)))

    @property
    def blobs(self) -> tuple[Tensor, ...]:
        """The blobs in Caffe's order."""
        return tuple(getattr(self, name) for name in self.blob_names)

    @property
    def shaped_blobs(self) -> tuple[Tensor, ...]:
        """The blobs in this layer's own shapes: one borrowed in another shape as a view, with the owner's gradient."""
        if not self._views:
            return self.blobs
        return tuple(
            reshaped(blob, self._views[name]) if name in self._views else blob
            for name, blob in zip(self.blob_names, self.blobs, strict=True)
        )

    def lay_out(self, device: torch.device) -> None:
        """Puts the blobs into the memory layout that is best on `device`; called once they are there."""

    def share_blob(self, index: int, owner: Tensor) -> None:
        """Makes blob `index` the very tensor `owner`; a PERMISSIVE share may differ in shape."""
        name = self.blob_names[index]
        shape = tuple(getattr(self, name).shape)
        if shape != tuple(owner.shape):
            self._views[name] = shape
        if isinstance(owner, nn.Parameter):
            self.register_parameter(name, owner)
        else:
            self._buffers[name] = owner

    def blob(self, name: str) -> Tensor | None:
        """Blob `name` in this layer's own shape; None if the layer was built without it."""
        if name not in self.blob_names:
            return None
        value: Tensor = getattr(self, name)
        return value.reshape(self._views[name]) if name in self._views else value

    def weight_blob(self, name: str = "weight") -> Tensor:
        """Like `blob`, for a blob that is always there."""
        value = self.blob(name)
        assert value is not None
        return value


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Blobs of one shape, one behind the other along axis 0; those without axes become values along one."""
    return torch.cat(list(parts)) if parts[0].dim() else torch.stack(list(parts))


def reshaped(blob: Tensor, shape: Shape) -> Tensor:
    """A leaf that shows `blob` and its gradient in another shape; where memory allows it shares both."""
    view = blob.detach().reshape(shape).requires_grad_(blob.requires_grad)
    # a leaf has no gradient of its owner's by itself
    view.grad = None if blob.grad is None else blob.grad.reshape(shape)
    return view


def item_rows(x: Tensor) -> Tensor:
    """x as (N, all values of an item), N its axis 0."""
    return x.flatten(1) if x.dim() > 1 else x[:, None]


def canonical_axis(spec: LayerSpec, axis: int, rank: int, what: str = "axis") -> int:
    """`axis` as 0..rank-1, counting from the end if negative; raises ForceregError outside."""
    if not -rank <= axis < rank:
        fix = f"expected {-rank} to {rank - 1}" if rank else "put a Reshape in front"
        raise spec.fail(f"{what} {axis} is outside its {rank}-axis bottom; {fix}")
    return axis % rank


def check_arity(spec: LayerSpec, cls: type[Layer]) -> None:
    """Raises ForceregError if the layer's number of bottoms or tops isn't what its type takes."""
    for what, found, (low, high) in (
        ("bottom", len(spec.bottoms), cls.bottoms),
        ("top", len(spec.tops), cls.tops),
    ):
        if found < low or (high is not None and found > high):
            expected = f"at least {low}" if high is None else f"{low}" if low == high else f"{low} to {high}"
            raise spec.fail(f"has {found} {what} blobs; type {spec.type} takes {expected}")


def count(shape: Sequence[int]) -> int:
    """The number of elements of `shape`."""
    total = 1
    for size in shape:
        total *= size
    return total
