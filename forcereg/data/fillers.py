"""Caffe's fillers: FillerParameter and shape -> values (float32, drawn from `generator`).

A net draws its first weights by them, a DummyData layer all that it gives.
"""

from __future__ import annotations

from math import ceil, prod, sqrt
from typing import Any

import torch
from torch import Generator, Tensor

from forcereg.registry import filler
from forcereg.schema import FillerParameter
from forcereg.schema.spec import LayerSpec

Shape = tuple[int, ...]


def fill(message: Any, shape: Shape, generator: Generator | None, spec: LayerSpec) -> Tensor:
    """Initial values of one blob; a missing filler means zeros. Raises ForceregError for bad settings."""
    if message is None:
        return torch.zeros(shape)
    make = filler.get(message.type, spec.where)
    if message.sparse >= 0 and message.type != "gaussian":
        raise spec.fail(f"filler '{message.type}' takes no `sparse`; only gaussian does")
    # fan-in and rows of nothing would be divisions by zero
    if not prod(shape):
        return torch.empty(shape)
    return make(message, shape, generator, spec)


def _normal(shape: Shape, mean: float, std: float, generator: Generator | None) -> Tensor:
    values = torch.empty(shape)
    # on the meta device normal_ would load a part of PyTorch for more than a second
    return values if values.is_meta else values.normal_(mean, std, generator=generator)


def _rows(shape: Shape) -> int:
    return shape[0] if shape else 1


def fan(message: Any, shape: Shape) -> float:
    """The count that scaled fillers divide by: fan_in = count/dim0, fan_out = count/dim1, or their mean."""
    total = prod(shape)
    fan_in = total / _rows(shape)
    # of a vector all, as in BVLC's Caffe
    fan_out = total / shape[1] if len(shape) > 1 else total
    norms = FillerParameter.VarianceNorm
    if message.variance_norm == norms.Value("FAN_OUT"):
        return fan_out
    if message.variance_norm == norms.Value("AVERAGE"):
        return (fan_in + fan_out) / 2
    return fan_in


@filler("constant")
def constant(message: Any, shape: Shape, generator: Generator | None, spec: LayerSpec) -> Tensor:
    """`value` (0) everywhere."""
    return torch.full(shape, message.value)


@filler("uniform")
def uniform(message: Any, shape: Shape, generator: Generator | None, spec: LayerSpec) -> Tensor:
    """U[min 0, max 1)."""
    if message.min > message.max:
        raise spec.fail(f"uniform filler has min {message.min:g} > max {message.max:g}")
    # written so that nan fails, too
    if not message.max - message.min <= torch.finfo(torch.float32).max:
        raise spec.fail(f"uniform filler has min {message.min:g} and max {message.max:g}; expected finite numbers")
    return torch.empty(shape).uniform_(message.min, message.max, generator=generator)


@filler("gaussian")
def gaussian(message: Any, shape: Shape, generator: Generator | None, spec: LayerSpec) -> Tensor:
    """N(mean 0, std 1); std > 0; with `sparse` >= 0 an entry is kept with probability sparse/dim0."""
    if not message.std > 0:
        raise spec.fail(f"gaussian filler has std {message.std:g}; expected > 0")
    values = _normal(shape, message.mean, message.std, generator)
    # unset is -1: 0 is a number, which leaves nothing
    if message.sparse >= 0:
        rows = _rows(shape)
        if message.sparse > rows:
            raise spec.fail(f"gaussian filler has sparse {message.sparse}, more than the {rows} outputs")
        # drawn behind the values, as in Caffe
        # divided by the rows, as Caffe does: about `sparse` stay in each column, not in each row
        values *= torch.empty(shape).bernoulli_(message.sparse / rows, generator=generator)
    return values


@filler("positive_unitball")
def positive_unitball(message: Any, shape: Shape, generator: Generator | None, spec: LayerSpec) -> Tensor:
    """U(0,1), each row of dim 0 divided by its sum."""
    rows = torch.empty(_rows(shape), prod(shape) // _rows(shape)).uniform_(generator=generator)
    return (rows / rows.sum(1, keepdim=True)).reshape(shape)


@filler("xavier")
def xavier(message: Any, shape: Shape, generator: Generator | None, spec: LayerSpec) -> Tensor:
    """U(-a, a), a = sqrt(3/n), n by `variance_norm`."""
    bound = sqrt(3 / fan(message, shape))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


@filler("msra")
def msra(message: Any, shape: Shape, generator: Generator | None, spec: LayerSpec) -> Tensor:
    """N(0, sqrt(2/n)), n by `variance_norm`."""
    return _normal(shape, 0, sqrt(2 / fan(message, shape)), generator)


@filler("bilinear")
def bilinear(message: Any, shape: Shape, generator: Generator | None, spec: LayerSpec) -> Tensor:
    """Interpolation weights of an upsampling deconvolution: 4 axes, square kernel."""
    if len(shape) != 4 or shape[2] != shape[3]:
        raise spec.fail(f"bilinear filler needs a 4-axis blob with a square kernel; found {list(shape)}")
    size = shape[3]
    # BVLC's centre; the fork's is another unless size % 4 is 0 or 1
    factor = ceil(size / 2)
    centre = (size - 1) / (2 * factor)
    line = 1 - (torch.arange(size) / factor - centre).abs()
    return (line[:, None] * line[None, :]).expand(shape).contiguous()
