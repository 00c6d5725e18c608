"""In which order a net's layers run, where gradients stop, when blobs are done with, what the loss adds up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forcereg.layers import Layer
from forcereg.layers.neuron import ReLU
from forcereg.net.fuse import Run, fuse
from forcereg.schema.spec import LayerSpec, NetSpec


@dataclass(frozen=True)
class Step:
    """One layer in execution order, or several computed as one; `keys` are their modules' names in the net.

    `cut` are the positions of bottoms through which no gradient flows, `dead` the blobs nobody reads from here on.
    """

    spec: LayerSpec
    keys: tuple[str, ...]
    cut: tuple[int, ...]
    dead: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """How a net runs: `steps` layer by layer, `fused` with those joined that can compute as one.

    `losses` are the blobs that the total loss adds up, with their weights.
    """

    steps: tuple[Step, ...]
    fused: tuple[Step, ...]
    losses: tuple[tuple[str, float], ...]


def plan_net(net: NetSpec, runs: Sequence[Run]) -> Plan:
    """The plan of a net whose layers, in net order, are `runs`."""
    # the fused ones last: an in-place ReLU goes by what it was told last, and fused is how nets train
    steps = plan_steps(net, runs)
    fused = plan_steps(net, fuse(runs))
    losses = ((top, w) for spec in net.layers for top, w in zip(spec.tops, spec.loss_weights, strict=True) if w)
    return Plan(steps, fused, tuple(losses))


def plan_steps(net: NetSpec, runs: Sequence[Run]) -> tuple[Step, ...]:
    """The steps of a net's layers; an in-place ReLU learns whether it may overwrite."""
    last_use: dict[str, Run] = {}
    producer: dict[str, Layer] = {}
    steps = []
    for run in runs:
        last_use.update(dict.fromkeys(run.spec.bottoms, run))
    losses = {top for spec in net.layers for top, w in zip(spec.tops, spec.loss_weights, strict=True) if w}
    keep = losses.union(net.outputs)  # a loss blob may have a reader too, and is read again by the total loss
    for run in runs:
        spec, module = run.spec, run.module
        previous = producer.get(spec.bottoms[0]) if spec.bottoms else None
        if isinstance(module, ReLU) and spec.tops == spec.bottoms and previous is not None:
            module.overwrite = previous.overwritable and spec.tops[0] not in losses
        producer.update(dict.fromkeys(spec.tops, module))
        # as in Caffe force_backward goes over propagate_down, but not over what a layer refuses
        blocked = {i for i, flag in enumerate(spec.message.propagate_down) if not (flag or net.force_backward)}
        # a bottom that needn't be there may be among a layer's labels
        cut = (blocked | module.labels) & set(range(len(spec.bottoms)))
        dead = {b for b in spec.bottoms if last_use[b] is run and b not in spec.tops} - keep
        steps.append(Step(spec, run.keys, tuple(sorted(cut)), tuple(dead)))
    return tuple(steps)
