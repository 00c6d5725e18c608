"""A weight as the matrices whose ranks a cut lowers: what `force_view` names, and where a weight has no such view.

A weight is (N, C, *kernel), or (N, K); of a grouped convolution C is a group's channels and each group is a matrix of
its own, because it is cut alone. The rows of a matrix are what a force draws together.

    FILTERS   N x (C kh kw): filters, which `pca`, `svd` and `kmeans` cut (Wen et al., ICCV 2017)
    CHANNELS  C x (N kh kw): slices of the input channels; with FILTERS the two matrices of `tucker2`
    VERTICAL  (C kh) x (kw N): the unfolding that `vh` cuts (Tai et al., ICLR 2016)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

ROWS = {"FILTERS": (0,), "CHANNELS": (1,), "VERTICAL": (1, 2)}
"""Unfolding -> the axes of a weight that count its rows, outermost first; the others count a row's entries."""

VIEWS = {"FILTERS": ("FILTERS",), "CHANNELS": ("CHANNELS",), "BOTH": ("FILTERS", "CHANNELS"), "VERTICAL": ("VERTICAL",)}
"""View -> its unfoldings."""


def unfoldings(view: str, groups: int, apart: bool = False) -> list[tuple[str, int]]:
    """The unfoldings of a view in training, each with the groups that it is taken of.

    Filters are coordinated all together, as Caffe's fork does, unless `apart`; a group's channels have nothing to do
    with another's.
    """
    return [(one, 1 if one == "FILTERS" and not apart else groups) for one in VIEWS[view]]


def row_count(shape: Sequence[int], unfolding: str, groups: int) -> int:
    """Rows of each matrix that `unfolded` gives for a weight of this shape."""
    return prod(shape[axis] for axis in ROWS[unfolding]) // (groups if 0 in ROWS[unfolding] else 1)


def misfit(view: str, shape: Sequence[int]) -> str:
    """Why a weight of this shape has no such view, '' if it has; every weight of two axes or more has filters."""
    if view == "VERTICAL" and len(shape) != 4:
        return f"needs a convolution's weight, of two kernel axes; this blob's shape is {list(shape)}"
    if view != "FILTERS" and len(shape) < 2:
        return f"needs a weight of two axes or more; this blob's shape is {list(shape)}"
    return ""


def split(weight: Tensor, groups: int) -> Tensor:
    """The weight with an axis of its groups in front, if there are several: a view."""
    return weight if groups == 1 else weight.unflatten(0, (groups, -1))


def unfolded(weight: Tensor, unfolding: str, groups: int = 1) -> Tensor:
    """The weight's matrices by one of ROWS, (groups, rows, entries); copied where memory's order asks for it."""
    blob = weight.unflatten(0, (groups, -1))
    rows = [1 + axis for axis in ROWS[unfolding]]
    entries = [axis for axis in range(1, blob.dim()) if axis not in rows]
    return blob.permute(0, *rows, *entries).flatten(1 + len(rows)).flatten(1, len(rows))
