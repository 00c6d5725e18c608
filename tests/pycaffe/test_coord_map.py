"""caffe.coord_map: FCN's offsets, and the rules one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from forcereg.pycaffe import net_spec
from forcereg.pycaffe.coord_map import (
    AxisMismatchException,
    UndefinedMapException,
    compose,
    coord_map,
    coord_map_from_to,
    crop,
    inverse,
)
from forcereg.pycaffe.net_spec import Top

L = net_spec.layers


def fcn() -> list[int]:
    """The offsets at which FCN-32s, FCN-16s and FCN-8s crop, in the order that they are made."""
    data = x = L.Input()
    pools = []
    for stage, convolutions in enumerate((2, 2, 3, 3, 3)):
        for number in range(convolutions):
            pad = 100 if stage == number == 0 else 1
            x = L.ReLU(L.Convolution(x, kernel_size=3, num_output=4, pad=pad), in_place=True)
        x = L.Pooling(x, kernel_size=2, stride=2)
        pools.append(x)
    score = L.Convolution(L.Dropout(L.Convolution(x, kernel_size=7, num_output=4)), kernel_size=1, num_output=2)

    def up(top: Top, stride: int) -> Top:
        return L.Deconvolution(top, convolution_param=dict(num_output=2, kernel_size=2 * stride, stride=stride))

    crops = [crop(up(score, 32), data)]
    for pool in (pools[3], pools[2]):
        larger = up(score, 2)
        crops.append(crop(L.Convolution(pool, kernel_size=1, num_output=2), larger))
        score = L.Eltwise(larger, crops[-1])
        crops.append(crop(up(score, 16 if pool is pools[3] else 8), data))
    assert all(one.fn.params["crop_param"]["axis"] == 2 for one in crops)
    return [offset for one in crops for offset in one.fn.params["crop_param"]["offset"]]


def test_offsets_of_fcn() -> None:
    """Those in its published nets."""
    assert fcn() == [19, 5, 27, 9, 31]


def test_the_crop_s_message() -> None:
    data = L.Input()
    layer = crop(L.Convolution(data, kernel_size=1, num_output=1, pad=3), data).to_proto().layer[-1]
    assert (layer.type, layer.crop_param.axis, list(layer.crop_param.offset)) == ("Crop", 2, [3])


@pytest.mark.parametrize(
    ("kind", "keywords", "expected"),
    [
        pytest.param("Convolution", dict(kernel_size=5, stride=2, pad=1), (1, 0.5, -0.5), id="convolution"),
        pytest.param("Convolution", dict(kernel_size=3, dilation=2), (1, 1, -2), id="dilated"),
        pytest.param("Convolution", dict(convolution_param=dict(kernel_size=3, axis=2)), (2, 1, -1), id="dict"),
        pytest.param("Pooling", dict(kernel_size=2, stride=2), (1, 0.5, -0.25), id="pooling"),
        pytest.param("Im2col", dict(convolution_param=dict(kernel_size=3)), (1, 1, -1), id="im2col"),
        pytest.param("Deconvolution", dict(kernel_size=4, stride=2, pad=1), (1, 2, 0.5), id="deconvolution"),
        pytest.param("Crop", dict(crop_param=dict(axis=2, offset=4)), (1, 1, -4), id="crop"),
        pytest.param("ReLU", {}, (None, 1, 0), id="relu"),
        pytest.param("Scale", {}, (None, 1, 0), id="scale"),
    ],
)
def test_maps_of_types(kind: str, keywords: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert coord_map(getattr(L, kind)(L.Input(), **keywords).fn) == expected


@pytest.mark.parametrize(
    ("kind", "keywords", "error"),
    [
        pytest.param("InnerProduct", dict(num_output=1), UndefinedMapException, id="no-coordinates"),
        pytest.param("Convolution", dict(kernel_h=3, kernel_w=3), AssertionError, id="sides"),
        pytest.param("Convolution", dict(convolution_param=dict(kernel_h=3)), AssertionError, id="in-dict"),
        pytest.param("Pooling", dict(global_pooling=True), KeyError, id="global"),
    ],
)
def test_types_without_a_map(kind: str, keywords: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        coord_map(getattr(L, kind)(L.Input(), **keywords).fn)


def test_composed_and_inverted() -> None:
    one, two = (1, 2.0, 3.0), (None, 1, 0)
    assert compose(one, two) == compose(two, one) == one
    assert compose(one, (1, 4.0, 5.0)) == (1, 8.0, 13.0) and compose(one, inverse(one)) == (1, 1.0, 0.0)
    with pytest.raises(AxisMismatchException):
        compose(one, (2, 1, 0))


def test_a_crop_s_second_bottom_gives_its_size_only() -> None:
    data, other = L.Input(), L.Input()
    with pytest.raises(RuntimeError):
        coord_map_from_to(L.Crop(data, other), other)


def test_sizes_of_each_axis() -> None:
    data = L.Input()
    made = crop(L.Convolution(data, kernel_size=1, num_output=1, pad=[2, 3]), data)
    assert made.fn.params["crop_param"]["offset"] == [2, 3]


@pytest.mark.parametrize(
    "keywords",
    [
        pytest.param(dict(kernel_size=1, stride=2), id="scale"),
        pytest.param(dict(kernel_size=3), id="outside"),
        pytest.param(dict(kernel_size=2, pad=2), id="not-whole"),
    ],
)
def test_crops_that_can_t_be(keywords: dict[str, Any]) -> None:
    data = L.Input()
    with pytest.raises(AssertionError):
        crop(L.Convolution(data, num_output=1, **keywords), data)


def test_maps_are_arrays_with_a_value_for_each_axis() -> None:
    data = L.Input()
    axis, scale, shift = coord_map_from_to(L.Pooling(data, kernel_size=2, stride=2), data)
    assert axis == 1 and np.shape(scale) == np.shape(shift) == (1,)
