"""What went wrong in a layer while a net ran, as one line that names the layer and says how to mend it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from forcereg.data.feed import Feed
from forcereg.errors import ForceregError
from forcereg.layers import Layer, make_layer
from forcereg.layers.base import Shape
from forcereg.schema.spec import LayerSpec
from forcereg.system.memory import is_shortage


def explained(
    error: Exception, spec: LayerSpec, bottoms: Sequence[Tensor], module: Layer | None = None, more: str = ""
) -> Exception:
    """What a layer raised on these bottoms, as one line that names it; as it is if it does so, or for a GPU.

    `module`: the layer, if it ran by itself; then what it says of such bottoms when it is made counts. `more` is said
    behind the line.
    """
    # a GPU's shortage says itself how much is lacking, and where
    if isinstance(error, torch.OutOfMemoryError) or (isinstance(error, ForceregError) and not more):
        return error
    shapes = ", ".join(str(list(b.shape)) for b in bottoms)
    if isinstance(error, ForceregError):
        told = error
    elif is_shortage(error):
        told = spec.fail(f"not enough memory to run it on bottoms {shapes}; use a smaller batch or smaller layers")
    else:
        refused = None if module is None else _refused(spec, module, [tuple(bottom.shape) for bottom in bottoms])
        # the first line: torch goes on with C++ frames
        told = refused or spec.fail(f"cannot run on bottoms {shapes}: {str(error).splitlines()[0]}")
    return ForceregError(f"{told}{more}") if more else told


def _refused(spec: LayerSpec, module: Layer, shapes: Sequence[Shape]) -> ForceregError | None:
    """What is wrong with bottoms of these shapes, as making one of our layers for them tells; None if nothing is."""
    # other people's code isn't run a second time just for a better message
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
            # the usual cause: images of several sizes in front of a classifier
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
