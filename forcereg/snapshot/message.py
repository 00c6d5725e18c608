"""A net as the message that Caffe puts into a binary model."""

from __future__ import annotations

from typing import Any

from forcereg.schema import NetParameter
from forcereg.schema.spec import LayerSpec, NetSpec, is_loss

_STATISTICS = 3  # of a BatchNorm layer, the first of its blobs, none of which learns


def net_message(spec: NetSpec) -> Any:
    """The NetParameter of a built net: its name and, for every layer (Splits too), what it was built from.

    As Caffe writes it: the phase is resolved, loss weights and BatchNorm's `param`s are in place; no blobs.
    """
    net = NetParameter()
    if spec.name:
        net.name = spec.name
    for layer in spec.layers:
        _put_layer(layer, net.layer.add())
    return net


def _put_layer(spec: LayerSpec, message: Any) -> None:
    message.CopyFrom(spec.message)
    # bottoms and weights are those behind the splits
    for field in ("blobs", "bottom", "loss_weight"):
        message.ClearField(field)
    # written out, as Caffe does: a binary model holds one phase's layers only
    message.phase = spec.phase
    message.bottom.extend(spec.bottoms)
    # a Split may have taken over a loss's weight: then the 0 stands for that, as none would mean 1
    if any(spec.loss_weights) or spec.message.loss_weight or is_loss(spec.type):
        message.loss_weight.extend(spec.loss_weights)
    if spec.type == "BatchNorm":
        while len(message.param) < _STATISTICS:
            message.param.add()
        for param in message.param[:_STATISTICS]:
            param.lr_mult = 0
