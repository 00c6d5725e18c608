"""Pooling with Caffe's windows, by ONNX's: where they end is said by padding behind, not by a rule of rounding."""

from __future__ import annotations

from typing import Any

from forcereg.exports.graph import Place, Value, Varying, fixed
from forcereg.exports.operators.elementwise import floats
from forcereg.layers import pooling
from forcereg.layers.pooling import Windows
from forcereg.layers.spp import SPP
from forcereg.registry import onnx_form

__all__ = ["pooled", "pooling_layer", "spp"]


@onnx_form("Pooling", "MaxPool AveragePool GlobalMaxPool GlobalAveragePool")
def pooling_layer(layer: pooling.Pooling, g: Place, x: Value) -> tuple[Value, ...]:
    if layer.is_global and layer.method != "STOCHASTIC" and not layer.mask:
        return (g("GlobalMaxPool" if layer.method == "MAX" else "GlobalAveragePool", x),)
    windows = Windows((x.size(2), x.size(3)), (1, 1), (0, 0), True) if layer.is_global else layer.windows
    return pooled(g, x, windows, layer.method, layer.mask)


@onnx_form("SPP", "MaxPool AveragePool Flatten Concat")
def spp(layer: SPP, g: Place, x: Value) -> Value:
    maps = [pooled(g, x, windows, layer.method)[0] for windows in layer.pyramid((x.size(2), x.size(3)))]
    return maps[0] if len(maps) == 1 else g("Concat", *(g("Flatten", one, axis=1) for one in maps), axis=1)


def pooled(g: Place, x: Value, windows: Windows, method: str, mask: bool = False) -> tuple[Value, ...]:
    """x (N, C, H, W) pooled by MAX, AVE or, as in tests, STOCHASTIC; with `mask` the maxima's places in their planes.

    Caffe rounds up and drops windows that begin in the padding behind. What follows for these sizes is said by `pads`,
    which every runtime reads alike; for open sizes `ceil_mode` does where its rule is Caffe's.
    """
    geometry: dict[str, Any] = {"kernel_shape": windows.kernel}
    if set(windows.stride) != {1}:
        geometry["strides"] = windows.stride
    if len(fixed(x.dims[2:])) < 2:
        ends, outside = _open_ends(windows, method), (0, 0)
        geometry |= {"ceil_mode": 1} if windows.ceil else {}
    else:
        ends, outside = _ends(windows, (x.size(2), x.size(3)))
    if method == "MAX":
        return _maxima(g, x, geometry, (*windows.pad, *ends), outside, mask)
    if method == "AVE":
        return (_resized(g, _averages(g, x, geometry, windows.pad, ends), outside, 0),)
    # what STOCHASTIC gives on average: sum(x^2) / sum(x), 0 where that is 0; the averages' divisors cancel
    total, squares = (_averages(g, one, geometry, windows.pad, ends) for one in (x, g("Mul", x, x)))
    zero = g.constant(0, "zero")
    mean = g("Where", g("Greater", total, zero), g("Div", squares, total), zero)
    return (_resized(g, mean, outside, 0),)


def _ends(windows: Windows, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Along both axes the padding behind that gives Caffe's windows, and how many lie beyond the input altogether."""
    ends, outside = [], []
    for n, out, k, s, p in zip(size, windows.out(size), windows.kernel, windows.stride, windows.pad, strict=True):
        inside = min(out, -(-(n + p) // s))
        ends.append(max(0, (inside - 1) * s + k - n - p))
        outside.append(out - inside)
    return (ends[0], ends[1]), (outside[0], outside[1])


def _open_ends(windows: Windows, method: str) -> tuple[int, int]:
    """The padding behind where sizes are open. Raises Varying where ONNX's rule isn't Caffe's."""
    if windows.ceil and method != "MAX" and any(windows.pad):
        raise Varying("averages padded windows that are rounded up, whose size hangs on the bottom's")
    if windows.ceil and any(s > k for s, k in zip(windows.stride, windows.kernel, strict=True)):
        raise Varying("has a stride larger than its kernel, so that windows may lie beyond the bottom")
    return windows.pad


def _maxima(
    g: Place, x: Value, geometry: dict[str, Any], pads: tuple[int, ...], outside: tuple[int, int], mask: bool
) -> tuple[Value, ...]:
    attributes = {**geometry, "pads": pads} if any(pads) else geometry
    values, *places = g.several("MaxPool", 1 + mask, x, **attributes)
    tops = [_resized(g, values, outside, 0)]
    if places:
        # ONNX counts through all planes of the batch
        plane = g.ints([x.size(2) * x.size(3)], "plane")
        tops.append(_resized(g, floats(g, g("Mod", places[0], plane)), outside, -1))
    return tuple(tops)


def _averages(g: Place, x: Value, geometry: dict[str, Any], pad: tuple[int, int], ends: tuple[int, int]) -> Value:
    """Caffe's average: over the part of a window that lies within the padded extent, whose zeros count."""
    if not any(pad):
        # what lies behind the input is in no average
        return g("AveragePool", x, **geometry, **({"pads": (0, 0, *ends)} if any(ends) else {}))
    if all(end <= before for end, before in zip(ends, pad, strict=True)):
        return g("AveragePool", x, **geometry, pads=(*pad, *ends), count_include_pad=1)
    within = tuple(min(end, before) for end, before in zip(ends, pad, strict=True))
    x = g("Pad", x, g.ints([0, 0, *pad, 0, 0, *within], "pads"))
    beyond = tuple(end - before for end, before in zip(ends, within, strict=True))
    return g("AveragePool", x, **geometry, pads=(0, 0, *beyond))


def _resized(g: Place, x: Value, more: tuple[int, int], value: float) -> Value:
    """x with so many rows and columns behind, which windows beyond the input give."""
    if not any(more):
        return x
    return g("Pad", x, g.ints([0, 0, 0, 0, 0, 0, *more], "beyond"), g.constant(value, "value"))
