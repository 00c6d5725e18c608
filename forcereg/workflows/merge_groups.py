"""`forcereg merge-groups`: parallel convolutions as one with groups."""

from __future__ import annotations

from typing import Any

from forcereg.errors import ForceregError
from forcereg.lowrank.groups import merge_groups as merge
from forcereg.net.made import RegroupedNet
from forcereg.net.read import read_net_of
from forcereg.system.arguments import checked
from forcereg.system.events import Observer, Tell
from forcereg.system.paths import StrPath


@checked
def merge_groups(
    snapshot: StrPath | Any, *, model: StrPath | None = None, observer: Observer | None = None
) -> RegroupedNet:
    """Turn equal parallel convolutions between a Slice and a Concat into one with groups: what `split_groups` made.

    The net computes what it did. Arguments as for `split_groups`. Raises ForceregError for files that can't be read or
    don't fit, and for a net with nothing to merge.

    >>> split = forcereg.split_groups("grouped.caffemodel.h5", model="grouped.prototxt").write("split")
    >>> made = forcereg.merge_groups(split["weights"])
    >>> made.layers, made.weights["conv2"][0].shape
    (('conv2',), (16, 4, 3, 3))
    """
    tell = Tell(observer)
    read = read_net_of(snapshot, model, warn=tell.warn)
    net, weights, made = merge(read.file.message, read.model.layers)
    if not made:
        raise ForceregError(
            f"{read.file.name}: has no equal parallel Convolutions between a Slice and a Concat, so nothing to merge"
        )
    return RegroupedNet(net, weights, tuple(made), read, f"parallel layers of {', '.join(made)} as groups", tell.warn)
