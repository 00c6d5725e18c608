"""Spatial pyramid pooling: a feature vector of the same length whatever the image's size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from forcereg.layers.base import Layer, Shape
from forcereg.layers.pooling import Windows, pool
from forcereg.registry import layer
from forcereg.schema import SPPParameter
from forcereg.schema.spec import LayerSpec


@layer("SPP", "spp_param")
class SPP(Layer):
    """Pools into 1x1, 2x2, 4x4, ... bins, `pyramid_height` levels, flattened and joined: (N, C * bins of all levels).

    One level alone gives its 4-axis map. Level i has b = 2^i bins per axis, kernel and stride ceil(n / b) and pad
    (kernel * b - n + 1) // 2. Raises ForceregError where that pad isn't smaller than the kernel (Caffe aborts).
    """

    per_item = True

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape]) -> None:
        super().__init__(spec, shapes)
        message = spec.message.spp_param
        if len(shapes[0]) != 4:
            raise spec.fail(f"bottom {list(shapes[0])} must have 4 axes (N, C, H, W)")
        if message.pyramid_height < 1:
            raise spec.fail("pyramid_height is missing; set spp_param { pyramid_height: N } with N >= 1")
        self.method = SPPParameter.PoolMethod.Name(message.pool)
        self.levels = message.pyramid_height
        images, channels, height, width = shapes[0]
        self.pyramid((height, width))
        # behind `pyramid`, which ends a height of millions at the first level that doesn't fit
        bins = sum(4**level for level in range(self.levels))
        self.out_shapes = ((images, channels, 1, 1) if self.levels == 1 else (images, channels * bins),)

    def pyramid(self, size: tuple[int, int]) -> list[Windows]:
        """The windows of each level; the first level that doesn't fit ends it, however many are asked for."""
        return [self._level(size, level) for level in range(self.levels)]

    def _level(self, size: tuple[int, int], level: int) -> Windows:
        bins = 2**level
        height, width = (-(-n // bins) for n in size)
        top, left = ((k * bins - n + 1) // 2 for n, k in zip(size, (height, width), strict=True))
        if top >= height or left >= width:
            raise self.spec.fail(
                f"level {level} ({bins}x{bins} bins) of input {list(size)} would have pad {[top, left]}, which must be "
                f"smaller than its kernel {[height, width]}; use a smaller pyramid_height or a larger input"
            )
        if self.method == "STOCHASTIC" and (top or left):
            raise self.spec.fail(
                f"pool STOCHASTIC takes no padding, but level {level} ({bins}x{bins} bins) of input {list(size)} needs "
                f"pad {[top, left]}; use MAX or AVE, or sizes that {bins} divides"
            )
        return Windows((height, width), (height, width), (top, left), True)

    def forward(self, x: Tensor) -> Tensor:
        maps = [pool(x, windows, self.method, self.training)[0] for windows in self.pyramid((x.shape[2], x.shape[3]))]
        return maps[0] if self.levels == 1 else torch.cat([level.flatten(1) for level in maps], 1)
