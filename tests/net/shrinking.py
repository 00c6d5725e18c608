"""Nets with zeros by chance, and what they compute before and after they are shrunk."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcereg.errors import ForceregError
from forcereg.net.load import load_net, meta_net
from forcereg.net.module import Net
from forcereg.net.shrink import Shrunk, shrink
from forcereg.schema import TEST, TRAIN
from forcereg.schema.rules import net_state
from forcereg.schema.text import NetFile, net_from_message, parse_net
from tests.lowrank.test_rewrite import fill

Blobs = dict[str, dict[int, np.ndarray]]


def layer(kind: str, name: str, bottoms: str, tops: str, more: str = "") -> str:
    """One layer; names of blobs are separated by spaces."""
    blobs = " ".join([*(f'bottom: "{one}"' for one in bottoms.split()), *(f'top: "{one}"' for one in tops.split())])
    return f'layer {{ name: "{name}" type: "{kind}" {blobs} {more} }}\n'


def inputs(**shapes: tuple[int, ...]) -> str:
    return "".join(
        layer("Input", name, "", name, f"input_param {{ shape {{ {' '.join(f'dim: {n}' for n in shape)} }} }}")
        for name, shape in shapes.items()
    )


def conv(name: str, bottom: str, top: str, outputs: int, body: str, kind: str = "Convolution", more: str = "") -> str:
    return layer(kind, name, bottom, top, f"{more} convolution_param {{ num_output: {outputs} {body} }}")


def ip(name: str, bottom: str, top: str, outputs: int, body: str = "") -> str:
    return layer("InnerProduct", name, bottom, top, f"inner_product_param {{ num_output: {outputs} {body} }}")


def phases(file: NetFile, **shapes: Any) -> list[tuple[Any, Net]]:
    """The nets of both phases, of those that can be built."""
    found = []
    for phase in (TEST, TRAIN):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                net = meta_net(file, phase, shapes)
            found.append((net_state(phase, file.message.state, net_state(phase)), net))
        except ForceregError:
            continue
    return found


def trained(file: NetFile, chance: random.Random, **shapes: Any) -> Blobs:
    """Weights as training leaves them, of all phases."""
    generator, weights = np.random.default_rng(chance.getrandbits(32)), Blobs()
    for _, net in phases(file, **shapes):
        for spec in net.spec.layers:
            for at, blob in enumerate(net.params[spec.name]):
                if f"{spec.name}/{at}" in net.shared or at in weights.get(spec.name, {}):
                    continue
                fan = blob[0].numel() if blob.dim() > 1 else 1
                values = generator.normal(size=tuple(blob.shape)) / fan**0.5
                if spec.type == "BatchNorm" and at in (1, 2):
                    values = np.abs(values) + 0.5
                weights.setdefault(spec.name, {})[at] = np.asarray(values, np.float32)
    return weights


def zeroed(file: NetFile, weights: Blobs, chance: random.Random, share: float = 0.4, **shapes: Any) -> Blobs:
    """The same with rows, columns, borders of kernels and whole layers of zeros, biases among them."""
    found = {name: {at: blob.copy() for at, blob in blobs.items()} for name, blobs in weights.items()}
    types = {layer.name: layer.type for layer in file.message.layer}
    for name, blobs in found.items():
        if types.get(name) not in ("Convolution", "Deconvolution", "InnerProduct"):
            continue
        weight = blobs[0]
        rows = [at for at in range(len(weight)) if chance.random() < share]
        weight[rows] = 0
        if 1 in blobs and chance.random() < 0.7:
            blobs[1][[at for at in range(len(blobs[1])) if chance.random() < share]] = 0
        weight[:, [at for at in range(weight.shape[1]) if chance.random() < share]] = 0
        for axis in range(2, weight.ndim):
            lead = [slice(None)] * axis
            if chance.random() < 0.5 and weight.shape[axis] > 2:
                weight[(*lead, 0)] = 0
                weight[(*lead, chance.choice((1, -1)))] = 0
        if chance.random() < 0.1:
            weight[:] = 0
    return found


def run(file: NetFile, weights: Blobs, feed: Mapping[str, Tensor], phase: str = "TEST", **shapes: Any) -> Any:
    """Its outputs, in float64 and without dropout."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = load_net(file, phase=phase, input_shapes=shapes or None, seed=0)
    fill(net, {name: blobs for name, blobs in weights.items() if name in net.params})
    net = net.double().eval()
    with torch.no_grad():
        return net(dict(feed))


def shrunk(file: NetFile, weights: Blobs, **shapes: Any) -> Shrunk:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return shrink(file, weights, phases(file, **shapes))


def agrees(text: str | NetFile, weights: Blobs, tolerance: float = 1e-6, **shapes: Any) -> Shrunk:
    """The shrunk net, which gives what the net gave, in both phases as far as they can be built."""
    file = parse_net(text) if isinstance(text, str) else text
    made = shrunk(file, weights, **shapes)
    new = net_from_message(made.net)
    for state, net in phases(file, **shapes):
        name = ("TRAIN", "TEST")[state.phase]
        generator = torch.Generator().manual_seed(3)
        feed = {
            one: torch.zeros(net.shapes[one], dtype=torch.float64)
            if len(net.shapes[one]) == 1
            else torch.randn(net.shapes[one], generator=generator, dtype=torch.float64)
            for one in net.inputs
        }
        old, found = run(file, weights, feed, name, **shapes), run(new, made.weights, feed, name, **shapes)
        assert list(old) == list(found)
        for blob, values in old.items():
            assert values.shape == found[blob].shape
            scale = max(1.0, float(values.abs().max()))
            assert float((values - found[blob]).abs().max()) <= tolerance * scale, blob
    return made


def sizes(made: Shrunk) -> dict[str, tuple[int, ...]]:
    """Layer -> shape of its first blob."""
    return {name: blobs[0].shape for name, blobs in made.weights.items() if 0 in blobs}


def with_zeros(text: str, chance: random.Random, change: Callable[[Blobs], None] | None = None) -> Blobs:
    """Trained weights of a net, with what `change` does to them, or zeros by chance."""
    file = parse_net(text)
    weights = trained(file, chance)
    if change is None:
        return zeroed(file, weights, chance)
    change(weights)
    return weights
