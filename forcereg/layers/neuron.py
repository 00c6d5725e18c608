"""Elementwise layers: ReLU, Sigmoid, TanH, Dropout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from forcereg.layers.base import Layer, Shape
from forcereg.registry import layer
from forcereg.spec import LayerSpec


class Elementwise(Layer):
    """One bottom, one top of the same shape."""

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        self.out_shapes = (shapes[0],)


@layer("ReLU", "relu_param")
class ReLU(Elementwise):
    """max(x, 0) + negative_slope * min(x, 0); the gradient at 0 is the slope.

    `overwrite` is set by the net where the bottom's memory can be reused.
    """

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        self.slope = spec.message.relu_param.negative_slope
        self.overwrite = False

    def forward(self, x: Tensor) -> Tensor:
        if self.slope:
            return F.leaky_relu(x, self.slope)
        return F.relu(x, inplace=self.overwrite)


@layer("Sigmoid", "sigmoid_param")
class Sigmoid(Elementwise):
    """1 / (1 + exp(-x))."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


@layer("TanH", "tanh_param")
class TanH(Elementwise):
    """tanh(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


@layer("Dropout", "dropout_param")
class Dropout(Elementwise):
    """In training keeps with probability 1 - ratio and scales by 1/(1 - ratio); in testing the identity."""

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        self.ratio = spec.message.dropout_param.dropout_ratio
        if not 0 <= self.ratio < 1:
            raise spec.fail(f"dropout_ratio is {self.ratio:g}; expected 0 <= ratio < 1")

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.ratio, self.training)
