"""In which order a net's layers run, where gradients stop, when blobs are done with; and which labels are valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forcereg.data.feed import Feed
from forcereg.errors import ForceregError
from forcereg.layers import Layer, make_layer
from forcereg.layers.base import Shape
from forcereg.layers.loss import ClassScores
from forcereg.layers.neuron import ReLU
from forcereg.net.fuse import Run
from forcereg.schema.spec import LayerSpec, NetSpec, is_loss
from forcereg.system.memory import is_shortage


@dataclass(frozen=True)
class Step:
    """One layer in execution order, or several computed as one; `keys` are their modules' names in the net.

    `cut` are the positions of bottoms through which no gradient flows, `dead` the blobs nobody reads from here on.
    """

    spec: LayerSpec
    keys: tuple[str, ...]
    cut: tuple[int, ...]
    dead: tuple[str, ...]


def plan_steps(net: NetSpec, runs: Sequence[Run]) -> tuple[Step, ...]:
    """The steps of a net's layers; an in-place ReLU learns whether it may overwrite."""
    last_use: dict[str, Run] = {}
    producer: dict[str, Layer] = {}
    steps = []
    for run in runs:
        last_use.update(dict.fromkeys(run.spec.bottoms, run))
    losses = {top for spec in net.layers for top, w in zip(spec.tops, spec.loss_weights, strict=True) if w}
    keep = losses.union(net.outputs)
    for run in runs:
        spec, module = run.spec, run.module
        previous = producer.get(spec.bottoms[0]) if spec.bottoms else None
        if isinstance(module, ReLU) and spec.tops == spec.bottoms and previous is not None:
            module.overwrite = previous.overwritable and spec.tops[0] not in losses
        producer.update(dict.fromkeys(spec.tops, module))
        blocked = {i for i, flag in enumerate(spec.message.propagate_down) if not (flag or net.force_backward)}
        cut = (blocked | module.labels) & set(range(len(spec.bottoms)))
        dead = {b for b in spec.bottoms if last_use[b] is run and b not in spec.tops} - keep
        steps.append(Step(spec, run.keys, tuple(sorted(cut)), tuple(dead)))
    return tuple(steps)


def limit_labels(built: Sequence[tuple[LayerSpec, Layer | None]], feeds: Mapping[str, Feed]) -> None:
    """Tells every data layer whose top is read as labels which ones its reader takes, a loss before all others."""
    origin = {top: (name, top) for name, feed in feeds.items() for top in feed.tops}
    for spec, _ in built:
        if spec.type == "Split" and spec.bottoms[0] in origin:
            origin.update(dict.fromkeys(spec.tops, origin[spec.bottoms[0]]))
    readers = [(spec, module) for spec, module in built if isinstance(module, ClassScores)]
    limited: set[tuple[str, str]] = set()
    for spec, module in sorted(readers, key=lambda reader: not is_loss(reader[0].type)):
        source = origin.get(spec.bottoms[1])
        if source is not None and source not in limited:
            name, top = source
            feeds[name].limit_labels(module.classes, module.ignore_label, spec.where, top)
            limited.add(source)


def explained(
    error: Exception, spec: LayerSpec, bottoms: Sequence[Tensor], module: Layer | None = None, more: str = ""
) -> Exception:
    """What a layer raised on these bottoms, as one line that names it; as it is if it does so, or for a GPU.

    `module`: the layer, if it ran by itself; then what it says of such bottoms when it is made counts. `more` is said
    behind the line.
    """
    if isinstance(error, torch.OutOfMemoryError) or (isinstance(error, ForceregError) and not more):
        return error
    shapes = ", ".join(str(list(b.shape)) for b in bottoms)
    if isinstance(error, ForceregError):
        told = error
    elif is_shortage(error):
        told = spec.fail(f"not enough memory to run it on bottoms {shapes}; use a smaller batch or smaller layers")
    else:
        refused = None if module is None else _refused(spec, module, [tuple(bottom.shape) for bottom in bottoms])
        told = refused or spec.fail(f"cannot run on bottoms {shapes}: {str(error).splitlines()[0]}")
    return ForceregError(f"{told}{more}") if more else told


def _refused(spec: LayerSpec, module: Layer, shapes: Sequence[Shape]) -> ForceregError | None:
    """What is wrong with bottoms of these shapes, as making one of our layers for them tells; None if nothing is."""
    if not type(module).__module__.startswith("forcereg.layers"):
        return None
    try:
        with torch.device("meta"):
            fresh = make_layer(spec, shapes)
    except ForceregError as error:
        return error
    return misfit(spec, module, fresh, shapes[0] if shapes else ())


def misfit(spec: LayerSpec, module: Layer, fresh: Layer, bottom: Shape) -> ForceregError | None:
    """What is wrong with a layer's blobs where others would be made, as `fresh`'s, for a bottom of this shape."""
    for name, mine, needed in zip(module.blob_names, module.shaped_blobs, fresh.blobs, strict=True):
        if mine.shape != needed.shape:
            fix = "give it what the net was made for"
            if spec.type == "InnerProduct" and len(bottom) > 2:
                fix = (
                    "give all images one size (crop_size, new_height and new_width), or pool over all positions in "
                    "front of it (global_pooling)"
                )
            return spec.fail(
                f"its {name} {list(mine.shape)} doesn't fit bottom {list(bottom)}, which needs "
                f"{list(needed.shape)}; {fix}"
            )
    return None


def resized(found: Mapping[str, Shape], declared: Mapping[str, Shape], feeds: Mapping[str, Feed]) -> str:
    """What to say behind an error of inputs of other sizes than declared, records by name; empty if there are none."""
    texts = []
    for name, shape in found.items():
        if shape[1:] != declared[name][1:]:
            record = next((feed.named() for feed in feeds.values() if name in feed.tops), "")
            where = f" ({record})" if record else ""
            texts.append(f"; '{name}' is {list(shape)}{where}, the net was made for {list(declared[name])}")
    return "".join(texts)
