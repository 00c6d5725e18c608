"""A model's blobs in the forms that a net's layers of the same names have, where nothing but the form differs.

Caffe itself takes blobs of equal shape only. Beyond that: the weights of an InnerProduct become those of a
Convolution whose window covers its whole input, and back (a fully convolutional net), as Caffe's flattening orders
them; and statistics of NVCaffe's BatchNorm that go without their factor get it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.schema.scan import shown
from forcereg.schema.synonyms import is_affine
from forcereg.schema.text import parse_net
from forcereg.snapshot.content import NET, ModelFile

Shape = tuple[int, ...]


class Taker(Protocol):
    """A net that takes weights over: its layers' specs, and its blobs by layer."""

    @property
    def spec(self) -> Any: ...

    @property
    def params(self) -> Mapping[str, Sequence[Tensor]]: ...


def suited(model: ModelFile, net: Taker) -> ModelFile:
    """The model as `net` can take it over; its `remarks` say what has changed. What doesn't fit stays as it is."""
    return suited_to(model, (spec.message for spec in net.spec.layers), net.params)


def suited_to(
    model: ModelFile, layers: Iterable[Any], params: Mapping[str, Sequence[Tensor]] | None = None
) -> ModelFile:
    """The same for LayerParameters; without `params` Convolutions are taken for those of images."""
    changed: dict[str, dict[int, np.ndarray]] = {}
    remarks = dict.fromkeys(model.remarks)
    for layer in layers:
        blobs = model.layers.get(layer.name)
        if not blobs or layer.name in changed:
            continue
        weight, name = blobs.get(0), f"layer '{shown(layer.name, 80)}'"
        if layer.type in ("Convolution", "InnerProduct") and weight is not None:
            shapes = [tuple(blob.shape) for blob in params.get(layer.name, ())] if params is not None else None
            found = _weight(model, layer, weight, shapes[0] if shapes else None if shapes is None else ())
            if found is not None:
                other = "InnerProduct" if layer.type == "Convolution" else "Convolution"
                forms = f"{other} weights {list(weight.shape)} taken as {layer.type} weights {list(found.shape)}"
                changed[layer.name] = {**blobs, 0: found}
                remarks[f"{name}: {forms}, which are as many (Caffe would refuse them)"] = None
        elif layer.type == "BatchNorm" and is_affine(layer.batch_norm_param) and _lacks_factor(blobs):
            changed[layer.name] = {**blobs, 2: np.ones_like(blobs[2])}
            remarks[f"{name}: factor 0 of its statistics taken as 1, as NVCaffe before 0.16.5 means it"] = None
    if not changed:
        return model
    return replace(model, layers={**model.layers, **changed}, remarks=tuple(remarks))


def _lacks_factor(blobs: Mapping[int, np.ndarray]) -> bool:
    """Whether statistics that have been gathered are stored whole, with no count of what they sum up."""
    # a factor of 0 is right where nothing has been gathered yet
    return len(blobs) == 5 and not blobs[2].any() and bool(blobs[1].any())


def _weight(model: ModelFile, layer: Any, weight: np.ndarray, shape: Shape | None) -> np.ndarray | None:
    """The weight of the other of the two types in the layer's form (`shape`, if known); None if it isn't one."""
    if weight.shape == shape:
        return None
    if layer.type == "Convolution":
        return _from_inner_product(model, layer, _without_axes(model, weight, 2), shape)
    inner = layer.inner_product_param
    if weight.ndim < 3 or weight.shape[0] != inner.num_output or (model.legacy and weight.shape[:2] == (1, 1)):
        return None
    rows = weight.reshape(len(weight), -1)
    rows = rows.T if inner.transpose else rows
    return rows if shape in (None, rows.shape) else None


def _from_inner_product(model: ModelFile, layer: Any, weight: np.ndarray, shape: Shape | None) -> np.ndarray | None:
    """The weight as (num_output, channels / group, *kernel)."""
    outputs, group = layer.convolution_param.num_output, layer.convolution_param.group
    if weight.ndim != 2 or group != 1:
        return None
    square = weight.shape[0] == weight.shape[1]
    if _is_transposed(model, layer.name) if square else weight.shape[0] != outputs:
        weight = weight.T
    if weight.shape[0] != outputs:
        return None
    if shape is None:
        kernel = _kernel(layer.convolution_param)
        if not prod(kernel) or weight.shape[1] % prod(kernel):
            return None
        shape = (outputs, weight.shape[1] // prod(kernel), *kernel)
    fits = len(shape) > 1 and shape[0] == outputs and prod(shape) == weight.size
    return weight.reshape(shape) if fits else None


def _without_axes(model: ModelFile, weight: np.ndarray, axes: int) -> np.ndarray:
    """A legacy weight, which always has four axes, without leading ones beyond `axes`."""
    is_padded = (
        model.legacy and weight.ndim > axes and weight.shape[: weight.ndim - axes] == (1,) * (weight.ndim - axes)
    )
    return weight.reshape(weight.shape[-axes:]) if is_padded else weight


def _kernel(param: Any) -> Shape:
    """The window of a convolution over images."""
    if param.HasField("kernel_h") and param.HasField("kernel_w"):
        return param.kernel_h, param.kernel_w
    sizes = tuple(param.kernel_size)
    return sizes * 2 if len(sizes) == 1 else sizes


def _is_transposed(model: ModelFile, name: str) -> bool:
    """Whether the model's layer is an InnerProduct with `transpose: true`, as far as the file tells."""
    if name in model.transposed:
        return True
    try:
        net = parse_net(model.attrs.get(NET, "")).message
    except ForceregError:
        return False
    return any(layer.name == name and layer.inner_product_param.transpose for layer in net.layer)
