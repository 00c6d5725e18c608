"""What layers cost: multiply-accumulates (MACs) for one image, biases not counted."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from forcereg.errors import ForceregError
from forcereg.net import infer_shapes
from forcereg.schema import TEST, TRAIN
from forcereg.schema.text import NetFile

Shapes = Mapping[str, Sequence[int]]
"""Blob name -> shape."""


def dense_macs(num_output: int, channels_per_group: int, kernel_h: int, kernel_w: int) -> int:
    """MACs of a convolution per output position."""
    return num_output * channels_per_group * kernel_h * kernel_w


def lowrank_macs(
    num_output: int, channels_per_group: int, kernel_h: int, kernel_w: int, groups: int, rank: int
) -> float:
    """MACs of its low-rank pair per output position; both parts grouped, `rank` the total of all groups."""
    return dense_macs(rank, channels_per_group, kernel_h, kernel_w) + num_output * rank / groups


def lowrank_speedup(
    num_output: int, channels_per_group: int, kernel_h: int, kernel_w: int, groups: int, rank: int
) -> float:
    """MACs of a convolution over those of its low-rank pair: the theoretical speed-up."""
    dense = dense_macs(num_output, channels_per_group, kernel_h, kernel_w)
    return dense / lowrank_macs(num_output, channels_per_group, kernel_h, kernel_w, groups, rank)


def positions(layer: Any, shapes: Shapes | None) -> int | None:
    """Output positions of a Convolution for one image, over all its tops; None without their shapes."""
    if shapes is None or any(top not in shapes for top in layer.top):
        return None
    total = 0
    for top in layer.top:
        shape = shapes[top]
        axis = layer.convolution_param.axis % len(shape)
        total += prod(shape[1:axis]) * prod(shape[axis + 1 :])
    return total


def net_shapes(
    file: NetFile, input_shapes: str | None = None, root: Path | None = None, allow_python_layers: bool = False
) -> Shapes | None:
    """Blob shapes of a net, of its test phase where both phases have the blob; None if they cannot be known.

    input_shapes: JSON, data layers' tops -> shapes, as snapshots keep them; else the sources are opened.
    """
    given = json.loads(input_shapes) if input_shapes else None
    shapes: dict[str, Sequence[int]] = {}
    for phase in (TRAIN, TEST):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # told where the net is trained
                shapes.update(infer_shapes(file, phase, given, root, allow_python_layers))
        except ForceregError:
            continue  # a phase without layers, a data source that is not here, code that may not run
    return shapes or None
