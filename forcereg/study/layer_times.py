"""How long each layer of a net takes by itself in another runtime than torch: `forcereg time --runtime`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from forcereg.net.module import Net
from forcereg.net.timing import LayerTime, Timing
from forcereg.schema import LayerParameter
from forcereg.schema.spec import LayerSpec
from forcereg.study import latency
from forcereg.study.bench import Bench


def measure(
    net: Net, bench: Bench, iterations: int, told: Callable[[int, float], None] = lambda index, wall: None
) -> Timing:
    """Forward passes of a net for use and of each layer as a model of its own, all in turns, `iterations` (>= 1) times.

    `told` hears the whole net's milliseconds of each. What is fed is random. Raises ForceregError.
    """
    layers = [spec for spec, module in net.built if module is not None and spec.type not in ("Input", "Split")]
    nets = [net, *(alone(net, spec) for spec in layers)]
    runs = [bench.run(one, {name: torch.rand(one.shapes[name]) for name in one.inputs}) for one in nets]
    with bench.at_work():
        wall, *times = latency.interleaved(runs, bench.device, rounds=iterations)
    for index, ms in enumerate(wall):
        told(index, ms)
    means = [sum(own) / iterations for own in times]
    rows = [LayerTime(spec.name, spec.type, ms, 0.0) for spec, ms in zip(layers, means, strict=True)]
    return Timing(rows, wall, bench.runtime)


def alone(net: Net, spec: LayerSpec) -> Net:
    """A layer of a net as a net with the same weights, fed with blobs of the shapes that it has there."""
    layer = LayerParameter()
    layer.CopyFrom(spec.message)
    # as the net calls them where several layers read one
    del layer.bottom[:]
    layer.bottom.extend(spec.bottoms)
    made = latency.layer_net([layer], {name: net.shapes[name] for name in spec.bottoms}, torch.device("cpu"))
    with torch.no_grad():
        for own, blob in zip(made.params[spec.name], net.params[spec.name], strict=True):
            own.copy_(blob)
    return made
