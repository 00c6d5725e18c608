"""How convolutions and matrices are shrunk: rows of outputs, columns of inputs, a kernel's window that isn't zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from forcereg.lowrank.fold import take_bias
from forcereg.lowrank.rewrite import AXES, set_field
from forcereg.net.shrink.flows import Mixing
from forcereg.net.shrink.places import Place
from forcereg.net.shrink.rules import Blobs, Kept, Rule
from forcereg.net.shrink.windows import Axis, seen_everywhere, window
from forcereg.registry import shrink_rule


@dataclass
class Weighted(Rule):
    """A convolution or matrix. Its weight in the flow's form is (outputs, inputs of a group, products)."""

    flow: Mixing

    def _cut(self, layer: Any, kept: Kept) -> tuple[np.ndarray, Blobs]:
        """The weight, in the flow's form and size, and the bias of the outputs that stay, both with what constants
        that go have added; a bias is made if need be."""
        weight, added = self.flow.without(kept.bottoms[0], kept.tops[0], kept.values[0])
        added = added[kept.tops[0]]
        if self.flow.bias is not None:
            return weight, {1: (self.flow.bias[kept.tops[0]] + added).astype(self.at.blobs[1].dtype)}
        if not added.any():
            return weight, {}
        take_bias(layer)
        return weight, {1: added.astype(np.float32)}


@dataclass
class InnerProduct(Weighted):
    """Each channel of its bottom is as many columns as it has positions."""

    def cut(self, layer: Any, kept: Kept) -> Blobs:
        """Rows of the outputs, columns of the inputs that stay."""
        weight, bias = self._cut(layer, kept)
        rows = weight[kept.tops[0]][:, kept.bottoms[0]]
        rows = rows.reshape(len(rows), -1)
        layer.inner_product_param.num_output = len(rows)
        return {0: np.ascontiguousarray(rows.T if layer.inner_product_param.transpose else rows)} | bias


@shrink_rule("InnerProduct")
def _inner_product(at: Place) -> Rule | None:
    module: Any = at.module
    if module.axis != 1:
        return None
    weight = at.blobs[0].T if module.transpose else at.blobs[0]
    weight = weight.reshape(len(weight), at.shapes[0][1], -1)
    return InnerProduct(at, Mixing(weight, bias_of(at), 1, np.ones(weight.shape[2], bool), can_take(at)))


def bias_of(at: Place) -> np.ndarray | None:
    """Its bias in float64."""
    return np.asarray(at.blobs[1], np.float64).reshape(-1) if 1 in at.blobs else None


def can_take(at: Place) -> bool:
    """Whether it has a bias, or may have one: of layers that share their weights each would have its own."""
    return at.alone or 1 in at.blobs


@dataclass
class Convolution(Weighted):
    """Filters of the outputs, and their channels of the inputs, that stay; of these the window that isn't zero."""

    transposed: bool

    def cut(self, layer: Any, kept: Kept) -> Blobs:
        """The filters that stay."""
        module: Any = self.at.module
        weight, bias = self._cut(layer, kept)
        grouped = weight.reshape(self.flow.groups, -1, weight.shape[1], *module.geometry.kernel)
        rows, columns = (mask.reshape(len(grouped), -1) for mask in (kept.tops[0], kept.bottoms[0]))
        left = [own[row][:, column] for own, row, column in zip(grouped, rows, columns, strict=True) if row.any()]
        weight = np.concatenate(left)
        param = layer.convolution_param
        param.num_output = len(weight)
        if len(left) != self.flow.groups:
            param.group = len(left)
        if self.at.alone:
            weight = self._windowed(param, weight, module.geometry)
        return {0: np.ascontiguousarray(swapped(weight, len(left)) if self.transposed else weight)} | bias

    def _windowed(self, param: Any, weight: np.ndarray, geometry: Any) -> np.ndarray:
        """The weight without the zeros around it, and the fields of the kernel that is left."""
        dims, kernel, pad = len(geometry.kernel), list(geometry.kernel), list(geometry.pad)
        for at in range(dims):
            axis = Axis(kernel[at], geometry.stride[at], pad[at], geometry.dilation[at], self.transposed)
            taps = np.asarray(weight.any(axis=tuple(one for one in range(weight.ndim) if one != at + 2)))
            before, behind = window(taps, axis, {shape[at + 2] for shape in self.at.inputs})
            weight = weight.take(range(before, kernel[at] - behind), at + 2)
            cut = axis.cut(before, behind)
            kernel[at], pad[at] = cut.kernel, cut.pad
        if kernel != list(geometry.kernel):
            for field, values in (("kernel_size", kernel), ("pad", pad)):
                for name in (field, *AXES[field]):
                    param.ClearField(name)
                set_field(param, field, values)
        return weight


def swapped(weight: np.ndarray, groups: int) -> np.ndarray:
    """A weight by inputs as one by outputs, and back: (A, B / groups, ...) -> (B, A / groups, ...)."""
    found = weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)
    return found.reshape(-1, *found.shape[2:])


@shrink_rule("Convolution")
@shrink_rule("Deconvolution")
def _convolution(at: Place) -> Rule | None:
    module: Any = at.module
    if module.axis != 1 or len(at.bottoms) > 1:
        return None
    groups, transposed = module.group, module.transposed
    weight = at.blobs[0].reshape(*at.blobs[0].shape[:2], -1)
    if transposed:
        # its weight lies by inputs; a border, or where windows overlap, makes any constant another
        weight = swapped(weight, groups)
        inside = np.zeros(weight.shape[2], bool)
    else:
        geometry = module.geometry
        inside = seen_everywhere(geometry.kernel, geometry.pad, geometry.dilation)
    return Convolution(at, Mixing(weight, bias_of(at), groups, inside, can_take(at)), transposed)
