"""Which sizes of a net's blobs follow from those that stay open: found by building it again with other ones."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from forcereg.errors import ForceregError
from forcereg.exports.graph import Dims, Free, Varying
from forcereg.net.module import Net

Shape = tuple[int, ...]
Open = Mapping[str, Mapping[int, str]]
"""Input -> its open axes -> what they are called in the file."""


@dataclass(frozen=True)
class Sizes:
    """Of each layer of a net, in its order, the sizes of its tops; those that the open ones change are free."""

    tops: tuple[tuple[Dims, ...], ...]


def batch_axes(net: Net) -> Open:
    """Axis 0 of every input as the batch. Raises Varying where inputs don't agree on it, or have none."""
    sizes = {net.shapes[name][:1] for name in net.inputs}
    if len(sizes) != 1 or () in sizes:
        raise Varying("has inputs of several sizes along axis 0")
    return {name: {0: "batch"} for name in net.inputs}


def sizes_of(net: Net, open_axes: Open) -> Sizes:
    """The sizes of all tops. Raises Varying where the net can't be built, or has other weights, with other sizes."""
    builds = [_tops(net)]
    for axis in sorted({axis for axes in open_axes.values() for axis in axes}):
        changed = {
            name: tuple(_other(size, axis) if at == axis in open_axes.get(name, {}) else size
                        for at, size in enumerate(net.shapes[name]))
            for name in net.inputs
        }  # fmt: skip
        builds.append(_tops(_again(net, changed)))
    free: dict[Shape, Free] = {}
    dims = [tuple(_compared(shapes, free) for shapes in zip(*tops, strict=True)) for tops in zip(*builds, strict=True)]
    return Sizes(tuple(_behind_filters(net, dims)))


def _other(size: int, axis: int) -> int:
    # an image twice as large changes whatever hangs on its size, through all strides
    return size + 1 if axis == 0 else 2 * size + 32


def _compared(shapes: Sequence[Shape], free: dict[Shape, Free]) -> Dims:
    """A blob's sizes by those of each build; `free`: by what it was in each of them, a size that changes."""
    if len({*map(len, shapes)}) > 1:
        raise Varying("has blobs whose number of axes follows from it")
    return tuple(
        sizes[0] if len({*sizes}) == 1 else free.setdefault(sizes, Free()) for sizes in zip(*shapes, strict=True)
    )


def _again(net: Net, shapes: Mapping[str, Shape]) -> Net:
    """The net for inputs of these shapes, without values. Raises Varying if it would be another one."""
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")  # told where the net is built
            other = Net(net.spec, None, shapes)
    except ForceregError as error:
        raise Varying(f"can't be built with another size: {error}") from None
    for name, blobs in net.params.items():
        if [blob.shape for blob in blobs] != [blob.shape for blob in other.params[name]]:
            raise Varying(f"has layer '{name}', whose weights are for one size")
    return other


def _tops(net: Net) -> list[tuple[Shape, ...]]:
    return [
        tuple(net.shapes[top] for top in spec.tops) if module is None or spec.type == "Input" else module.out_shapes
        for spec, module in net.built
    ]


def _behind_filters(net: Net, dims: list[tuple[Dims, ...]]) -> list[tuple[Dims, ...]]:
    """How many rows a Filter leaves nobody knows before it runs."""
    unknown: set[str] = set()
    found = []
    for (spec, _), tops in zip(net.built, dims, strict=True):
        reads = spec.type == "Filter" or unknown & set(spec.bottoms)
        unknown = unknown | set(spec.tops) if reads else unknown - set(spec.tops)
        found.append(tuple((Free(), *one[1:]) if reads and one else one for one in tops))
    return found
