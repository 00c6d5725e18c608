"""How coordinates of one top map to those of another, and the Crop layer that brings two into line (for FCNs).

    n.score = crop(n.upscore, n.data)

A map is (axis, scale, shift): from the spatial axis on a coordinate x goes to `scale * x + shift`; axis None for maps
that leave all axes alone. Scale and shift are numbers or arrays, one value for each spatial axis. Layers are known by
their net specification (`net_spec`), so nothing is built or run.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from forcereg.pycaffe.net_spec import Function, Top
from forcereg.pycaffe.net_spec import layers as L

Map = tuple[int | None, Any, Any]

IDENTITY: Map = (None, 1, 0)
PASS_THROUGH_LAYERS = [
    "AbsVal", "BatchNorm", "Bias", "BNLL", "Dropout", "Eltwise", "ELU", "Log", "LRN", "Exp", "MVN", "Power", "ReLU",
    "PReLU", "Scale", "Sigmoid", "Split", "TanH", "Threshold",
]  # fmt: skip
"""Types whose tops lie on their bottoms' coordinates."""
SIDES = ("pad", "kernel", "stride", "kernel_size", "dilation")


class UndefinedMapException(Exception):
    """A layer's tops have no coordinates of its bottoms."""


class AxisMismatchException(Exception):
    """Two maps that are to be one begin at different axes."""


def conv_params(fn: Function) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """(axis, stride, kernel size with its dilation, pad) of a layer that slides a kernel, by its keywords.

    Raises KeyError without a kernel_size, AssertionError for sizes that are given by height and width.
    """
    options = fn.params.get("convolution_param", fn.params)
    sided = [f"{name}_{side}" for name in SIDES for side in "hw" if f"{name}_{side}" in {**fn.params, **options}]
    assert not sided, f"{fn.type_name} has {', '.join(sided)}; coordinates need sizes without _h and _w"
    kernel, dilation = _array(options["kernel_size"]), _array(options.get("dilation", 1))
    stride, pad = _array(options.get("stride", 1)), _array(options.get("pad", 0))
    return options.get("axis", 1), stride, (kernel - 1) * dilation + 1, pad


def crop_params(fn: Function) -> tuple[int, np.ndarray]:
    """(axis, offset) of a Crop layer, by its keywords."""
    options = fn.params.get("crop_param", fn.params)
    return options.get("axis", 2), _array(options.get("offset", 0))


def coord_map(fn: Function) -> Map:
    """The map from a layer's bottom to its top. Raises UndefinedMapException, and as `conv_params`."""
    if fn.type_name in PASS_THROUGH_LAYERS:
        return IDENTITY
    if fn.type_name == "Crop":
        axis, offset = crop_params(fn)
        return axis - 1, 1, -offset
    if fn.type_name in ("Convolution", "Pooling", "Im2col"):
        axis, stride, kernel, pad = conv_params(fn)
        return axis, 1 / stride, (pad - (kernel - 1) / 2) / stride
    if fn.type_name == "Deconvolution":
        axis, stride, kernel, pad = conv_params(fn)
        return axis, stride, (kernel - 1) / 2 - pad
    raise UndefinedMapException(f"no coordinates go through a layer of type {fn.type_name}")


def compose(base_map: Map, next_map: Map) -> Map:
    """The map that is `next_map`, then `base_map`. Raises AxisMismatchException."""
    (axis, scale, shift), (next_axis, next_scale, next_shift) = base_map, next_map
    if axis is None:
        axis = next_axis
    elif next_axis not in (None, axis):
        raise AxisMismatchException(f"one map begins at axis {axis}, the other at {next_axis}")
    return axis, scale * next_scale, scale * next_shift + shift


def inverse(coord_map: Map) -> Map:
    """The map back."""
    axis, scale, shift = coord_map
    return axis, 1 / scale, -shift / scale


def coord_map_from_to(top_from: Top, top_to: Top) -> Map:
    """The map from one top's coordinates to another's, by way of a top that both come from.

    Raises RuntimeError if no spatial layers connect them, and as `coord_map` and `compose`.
    """
    maps_from = _maps_back(top_from)
    for top, to_map in _maps_back(top_to).items():
        if top in maps_from:
            return compose(to_map, inverse(maps_from[top]))
    raise RuntimeError("there is no map between the two tops: no spatial layers lead from one top to both")


def crop(top_from: Top, top_to: Top) -> Top:
    """A Crop layer's top: `top_from` cut to the size of `top_to`, where that lies in it.

    Raises AssertionError unless they have one scale and lie a whole number of pixels apart, the first around the
    second; and as `coord_map_from_to`.
    """
    axis, scale, shift = coord_map_from_to(top_from, top_to)
    assert np.all(scale == 1), f"the tops to crop differ in scale: {scale}"
    assert np.all(shift <= 0), f"the offset to crop at would be negative: {-shift}"
    assert np.all(np.round(shift) == shift), f"the offset to crop at is not whole: {-shift}"
    offset = [int(-one) for one in np.round(_array(shift))]
    return L.Crop(top_from, top_to, crop_param={"axis": (1 if axis is None else axis) + 1, "offset": offset})


def _maps_back(top: Top) -> dict[Top, Map]:
    """Every top that `top` comes from, itself first, and the map from there to `top`."""
    maps: dict[Top, Map] = {top: IDENTITY}
    waiting = [top]
    while waiting:
        one = waiting.pop(0)
        # what a Crop's second bottom is for is its size
        bottoms = one.fn.inputs[:1] if one.fn.type_name == "Crop" else one.fn.inputs
        try:
            step = coord_map(one.fn) if bottoms else IDENTITY
        except UndefinedMapException:
            continue
        for bottom in bottoms:
            if bottom not in maps:
                maps[bottom] = compose(maps[one], step)
                waiting.append(bottom)
    return maps


def _array(value: Any) -> np.ndarray:
    return np.atleast_1d(np.asarray(value))
