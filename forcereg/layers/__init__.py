"""Caffe's layers as torch modules; importing this package registers them all."""

from forcereg.layers import (
    class_loss,
    loss,
    neuron,
    norm,
    output,
    pair_loss,
    pooling,
    python,
    rectify,
    recurrent,
    reduce,
    select,
    shape,
    spp,
    weighted,
)
from forcereg.layers.base import Layer
from forcereg.layers.make import make_layer

__all__ = [
    "Layer",
    "class_loss",
    "loss",
    "make_layer",
    "neuron",
    "norm",
    "output",
    "pair_loss",
    "pooling",
    "python",
    "rectify",
    "recurrent",
    "reduce",
    "select",
    "shape",
    "spp",
    "weighted",
]
