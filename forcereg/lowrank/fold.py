"""BatchNorm and Scale folded into the layer before them: outputs of the test phase stay equal (pure functions)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from forcereg.lowrank.rewrite import Weights
from forcereg.schema import NetParameter
from forcereg.schema.synonyms import is_affine


def fold_bn(
    net: Any, weights: Weights, kept: Collection[str] = ()
) -> tuple[Any, dict[str, dict[int, np.ndarray]], dict[str, list[str]]]:
    """A new NetParameter and weights without the BatchNorm (and Scale) layers that only a convolution feeds.

    Caffe's stored statistics become part of the weight and bias of a Convolution or InnerProduct, in float64:
    W' = W * gamma / sqrt(variance + eps), b' = (b - mean) * gamma / sqrt(variance + eps) + beta. Third: layer name ->
    the layers that went into it. What can't be folded stays, and what makes one of the blobs `kept`.
    """
    folds = {found[0]: found[1:] for found in _folds(net, weights, kept)}
    gone = {name for names in folds.values() for name in names}
    finals = {
        base: next(layer for layer in net.layer if layer.name == names[-1]).top[0] for base, names in folds.items()
    }
    # NVCaffe's BatchNorm has scale and shift behind its three statistics
    specs = {layer.name: list(layer.param)[3 if is_affine(layer.batch_norm_param) else 0 :] for layer in net.layer}
    new = NetParameter()
    new.CopyFrom(net)
    del new.layer[:]
    for layer in net.layer:
        if layer.name in gone:
            continue
        new.layer.append(layer)
        if layer.name in folds:
            take_bias(new.layer[-1], specs[folds[layer.name][-1]])
            new.layer[-1].top[:] = [finals[layer.name]]
    blobs = {name: dict(values) for name, values in weights.items() if name not in gone}
    kinds = {layer.name: layer for layer in net.layer}
    for base, names in folds.items():
        blobs[base] = _folded(kinds[base], weights[base], [kinds[name] for name in names], weights)
    return new, blobs, {base: list(names) for base, names in folds.items()}


def _folds(net: Any, weights: Weights, kept: Collection[str]) -> Iterator[list[str]]:
    """Names of a layer that can take its BatchNorm in, of that, and of the Scale behind it if there is one."""
    shared = _shared(net)
    # once, though a net for both phases may have two layers of a name
    for name in dict.fromkeys(
        layer.name for layer in net.layer if _is_base(layer) and 0 in weights.get(layer.name, {})
    ):
        # a layer that shares its blobs has no such BatchNorm behind it
        if name in shared:
            continue
        norm = _only_reader(net, name, kept)
        if norm is None or norm.type != "BatchNorm" or norm.name in shared or _is_of_the_batch(net, norm.name):
            continue
        if len(weights.get(norm.name, {})) != (5 if is_affine(norm.batch_norm_param) else 3):
            continue
        scale = _only_reader(net, norm.name, kept)
        if scale is not None and _is_learned_scale(scale, weights) and scale.name not in shared:
            yield [name, norm.name, scale.name]
        else:
            yield [name, norm.name]


def _is_base(layer: Any) -> bool:
    """Whether its output channels lie on axis 1, where BatchNorm looks, and nothing else comes out."""
    if len(layer.top) != 1 or len(layer.bottom) != 1:
        return False
    if layer.type == "InnerProduct":
        return layer.inner_product_param.axis == 1
    return layer.type == "Convolution" and layer.convolution_param.axis == 1


def _is_of_the_batch(net: Any, name: str) -> bool:
    """Whether a BatchNorm goes by each batch's own statistics in every phase."""
    params = [layer.batch_norm_param for layer in net.layer if layer.name == name]
    return all(param.HasField("use_global_stats") and not param.use_global_stats for param in params)


def _is_learned_scale(layer: Any, weights: Weights) -> bool:
    param = layer.scale_param
    plain = layer.type == "Scale" and len(layer.bottom) == 1 and param.axis == 1 and param.num_axes == 1
    return plain and 0 in weights.get(layer.name, {})


def _only_reader(net: Any, name: str, kept: Collection[str]) -> Any | None:
    """The layer that alone reads what the layer `name` writes, or that works on it in place before all others do.

    None for a blob that is one of `kept`, unless it is worked on in place.
    """
    own = [layer for layer in net.layer if layer.name == name]
    readers: dict[str, Any] = {}
    for layer in own:
        # order counts: who reads the blob before another works on it in place sees another value
        behind = list(net.layer)[list(net.layer).index(layer) + 1 :]
        for other in behind:
            if layer.top[0] in other.bottom and other.name != name:
                readers.setdefault(other.name, other)
                if layer.top[0] in other.top:
                    break
    if len(readers) != 1:
        return None
    (reader,) = readers.values()
    if own[0].top[0] in kept and own[0].top[0] not in reader.top:
        return None
    return reader if list(reader.bottom) == list(own[0].top) and len(reader.top) == 1 else None


def _shared(net: Any) -> set[str]:
    """Names of layers whose blobs another layer uses too."""
    users: dict[str, set[str]] = {}
    for layer in net.layer:
        for spec in layer.param:
            if spec.name:
                users.setdefault(spec.name, set()).add(layer.name)
    return {name for names in users.values() if len(names) > 1 for name in names}


def take_bias(layer: Any, specs: Sequence[Any] = ()) -> None:
    """The layer has a bias from now on; its multipliers are the Scale's bias's where it had none itself."""
    param = layer.inner_product_param if layer.type == "InnerProduct" else layer.convolution_param
    if not param.bias_term:
        # true is the default, and shorter in the text
        param.ClearField("bias_term")
        del layer.param[1:]
        if len(specs) > 1 and layer.param:
            layer.param.extend(specs[1:2])
            layer.param[1].ClearField("name")


def _folded(
    layer: Any, own: Mapping[int, np.ndarray], behind: Sequence[Any], weights: Weights
) -> dict[int, np.ndarray]:
    """The weight and bias that do what the layer, its BatchNorm and its Scale do. (N, ...) and (N,), float32."""
    norm, *scales = behind
    # float64, so that folding adds nothing but the rounding of what is written
    mean, variance, count = (np.asarray(weights[norm.name][index], np.float64).reshape(-1) for index in range(3))
    # Caffe keeps moving sums and what to divide them by, which is 0 before any batch
    factor = 0.0 if count[0] == 0 else 1 / count[0]
    gain = 1 / np.sqrt(variance * factor + norm.batch_norm_param.eps)
    shift = -mean * factor * gain
    affine = [(weights[norm.name], 3)] if is_affine(norm.batch_norm_param) else []
    for blobs, first in affine + [(weights[scale.name], 0) for scale in scales]:
        gamma = np.asarray(blobs[first], np.float64).reshape(-1)
        beta = np.asarray(blobs.get(first + 1, 0.0), np.float64).reshape(-1)
        gain, shift = gain * gamma, shift * gamma + beta
    weight = np.asarray(own[0], np.float64)
    transposed = layer.type == "InnerProduct" and layer.inner_product_param.transpose
    rows = gain if transposed else gain.reshape(-1, *[1] * (weight.ndim - 1))
    bias = np.asarray(own.get(1, 0.0), np.float64).reshape(-1) * gain + shift
    return {0: (weight * rows).astype(np.float32), 1: bias.astype(np.float32)}
