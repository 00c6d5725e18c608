"""Caffe's layers as torch modules; importing this package registers them all."""

from forcereg.layers import fillers, loss, neuron, norm, pooling, shape, weighted
from forcereg.layers.base import Layer, check_arity, unknown_type

__all__ = [
    "Layer",
    "check_arity",
    "fillers",
    "loss",
    "neuron",
    "norm",
    "pooling",
    "shape",
    "unknown_type",
    "weighted",
]
