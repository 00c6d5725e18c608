"""Test batches through a written file: compared blob by blob, and their accuracy beside our net's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from forcereg.errors import UsageError
from forcereg.exports.pixels import Pixels
from forcereg.exports.proof import Comparison
from forcereg.layers import Layer
from forcereg.net.batching import gathered
from forcereg.net.module import Net
from forcereg.schema.spec import LayerSpec


@torch.no_grad()
def scored(
    comparison: Comparison, net: Net, batches: int, pixels: Mapping[str, Pixels]
) -> dict[str, tuple[float, float]]:
    """Accuracy layer's top -> its mean over batches of the test net `net`, by that and by the file.

    Layers whose scores aren't in the file are left out. Raises ForceregError as `comparison.add`, UsageError for a
    test net without the file's inputs.
    """
    plain = comparison.net
    if missing := [name for name in plain.inputs if name not in net.inputs]:
        raise UsageError(
            f"{net.spec.filename}: the test net reads no '{missing[0]}', which the file does; give its solver"
        )
    # what several layers read has a name for each of them
    copied = {top: spec.bottoms[0] for spec in net.spec.layers if spec.type == "Split" for top in spec.tops}
    sums: dict[str, tuple[float, float]] = {}
    for _ in range(batches):
        blobs = gathered(net, None)
        inputs = {name: blobs[name].cpu() for name in plain.inputs}
        if wrong := [name for name, x in inputs.items() if not comparison.takes(name, tuple(x.shape))]:
            raise UsageError(
                f"{net.spec.filename}: its test batches of '{wrong[0]}' are {list(inputs[wrong[0]].shape)}, which the "
                "file doesn't take; leave out --batch, or give another batch_size there"
            )
        fed = {name: pixels[name].undone(x) if name in pixels else x for name, x in inputs.items()}
        found = comparison.add(inputs, fed)
        for spec, module, bottoms, ours in _accuracies(net, blobs):
            value = comparison.last(copied.get(spec.bottoms[0], spec.bottoms[0]))
            if value is not None:
                theirs = module(torch.from_numpy(found[value]).to(bottoms[0]), *bottoms[1:])
                before = sums.get(spec.tops[0], (0.0, 0.0))
                sums[spec.tops[0]] = before[0] + float(ours), before[1] + float(_first(theirs))
    return {top: (ours / batches, theirs / batches) for top, (ours, theirs) in sums.items()}


def _accuracies(net: Net, blobs: Mapping[str, Tensor]) -> list[tuple[LayerSpec, Layer, list[Tensor], Tensor]]:
    """Each Accuracy layer with its module, what it reads and what it gives, of one batch."""
    found: list[tuple[LayerSpec, Layer, list[Tensor], Tensor]] = []

    def around(spec: LayerSpec, module: Layer, bottoms: list[Tensor]) -> Any:
        made = module(*bottoms)
        if spec.type == "Accuracy":
            # a layer behind may work in place on what it read
            found.append((spec, module, [bottom.clone() for bottom in bottoms], _first(made)))
        return made

    net.around = around
    try:
        net(dict(blobs))
    finally:
        net.around = None
    return found


def _first(tops: Any) -> Tensor:
    """The first top: a second one has the accuracy of each class."""
    first: Tensor = tops if isinstance(tops, Tensor) else tops[0]
    return first
