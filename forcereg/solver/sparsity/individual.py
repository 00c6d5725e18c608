"""Individual weight decay: a file of a multiplier for each value of a blob (the SSL branch's decay_proto)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from forcereg.net.module import Net
from forcereg.schema.blobs import read_blob
from forcereg.system.paths import resolve


def multipliers(net: Net) -> dict[str, Tensor]:
    """By "layer/index" the multipliers that the blob's decay_proto names, laid out as the blob.

    Relative paths start at the net's root. Raises ForceregError for a file that can't be read, of another shape, or
    with values that aren't finite.
    """
    specs = {spec.name: spec for spec in net.spec.layers}
    found = {}
    for one in net.learnable:
        if one.sparse.decay_proto:
            what = f"{specs[one.layer].where}: param {one.index}: decay_proto"
            path = resolve(net.spec.root, one.sparse.decay_proto)
            values = read_blob(path, what)
            if values.shape != tuple(one.blob.shape):
                shapes = f"{list(values.shape)}; expected the blob's shape, {list(one.blob.shape)}"
                raise specs[one.layer].fail(f"param {one.index}: decay_proto {path} has shape {shapes}")
            if not np.isfinite(values).all():
                raise specs[one.layer].fail(f"param {one.index}: decay_proto {path} holds values that aren't finite")
            found[f"{one.layer}/{one.index}"] = torch.empty_like(one.blob).copy_(torch.from_numpy(values))
    return found
