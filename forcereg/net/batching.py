"""Several consecutive test batches as one, where every number that is reported stays that of the batches in the file.

Layers that treat items apart run once on all of them, losses and accuracies on each batch for itself. So a device
that one batch can't fill has more to do at once, and fewer launches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from forcereg.data.feed import supply
from forcereg.layers import Layer
from forcereg.layers.base import Shape
from forcereg.net.module import Net

ITEMS = 1000
"""At once on a GPU, as far as they fit `SHARE` of its memory."""
SHARE = 1 / 8
Outputs = dict[str, Tensor]


def batches_at_once(net: Net) -> int:
    """How many test batches of `net` to run as one, at least 1; see the module's text for what stays the same.

    On a GPU as many as make `ITEMS` items, if all their blobs together fit `SHARE` of the memory. On the CPU 1, where
    larger ones gain nothing. Milliseconds of one core per item, in passes of 1, 2, 5 and 10 batches of 100:
    LeNet 0.075, 0.078, 0.080, 0.083; cifar10_full 0.305, 0.302, 0.295, 0.295; ResNet-20 1.02, 1.08, 1.09 (5); and of
    1 and 2 batches of 50 AlexNet 27.6, 27.5.
    """
    device = next((blob.device for blobs in net.params.values() for blob in blobs), None)
    if device is None or device.type != "cuda" or not joinable(net):
        return 1
    room = SHARE * torch.cuda.get_device_properties(device).total_memory
    return most(net, ITEMS, room)


def most(net: Net, items: int, room: float) -> int:
    """How many batches hold at most that many items and fit that many bytes, at least 1."""
    size = max(shape[0] for feed in net.feeds.values() for shape in feed.shapes)
    # more than a pass holds at a time, which frees what nobody reads any more
    blobs = 4 * sum(prod(shape) for shape in net.shapes.values())
    return max(1, min(items // max(1, size), int(room / max(1, blobs))))


def joinable(net: Net) -> bool:
    """Whether several of its batches may run as one.

    Its own data layers feed it, each layer treats items apart or is a loss or accuracy, nothing is in training and
    nobody watches.
    """
    fed = {top: shape for feed in net.feeds.values() for top, shape in zip(feed.tops, feed.shapes, strict=True)}
    if net.around is not None or not fed or not fed.keys() >= set(net.inputs) or not all(fed.values()):
        return False
    if any(module._forward_hooks or module._forward_pre_hooks for module in net.modules()):
        return False
    shapes: dict[str, Shape] = dict(fed)
    for spec, module in net.built:
        if module is None:
            continue
        if module.training or not (module.per_batch or _treats_apart(module, [shapes[name] for name in spec.bottoms])):
            return False
        shapes.update(zip(spec.tops, module.out_shapes, strict=True))
    return True


def _treats_apart(module: Layer, bottoms: Sequence[Shape]) -> bool:
    items = {shape[:1] for shape in (*bottoms, *module.out_shapes)}
    # a scalar has no axis of items
    return module.per_item and (len(items) == 1 or not module.out_shapes) and () not in items


def forward_batches(net: Net, batches: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, list[Outputs]]:
    """The sum of the batches' total losses, 0-d, and the output blobs of each.

    More than one batch only where `joinable`; they must be of one size.
    """
    if len(batches) == 1:
        loss, outputs = net.forward_loss(batches[0])
        return loss, [outputs]
    inputs = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    net.batches = len(batches)
    try:
        loss, outputs = net.forward_loss(inputs)
    finally:
        net.batches = 1
    # losses, without axes of their own, came as one value per batch
    parts = {name: blob.chunk(len(batches)) if net.shapes[name] else blob.unbind() for name, blob in outputs.items()}
    return loss, [{name: part[index] for name, part in parts.items()} for index in range(len(batches))]


def gathered(net: Net, inputs: Mapping[str, Tensor] | None) -> Outputs:
    """All that a forward of `net` reads: `inputs`, and the next batch of each data layer that they leave out."""
    blobs = dict(inputs or {})
    supply(net.feeds.values(), blobs)
    return blobs


def same_size(net: Net, batches: Sequence[Mapping[str, Tensor]]) -> bool:
    """Whether all batches are of the declared shapes."""
    return all(tuple(blob.shape) == net.shapes[name] for batch in batches for name, blob in batch.items())
