"""`forcereg split-groups`: grouped convolutions as parallel layers."""

from __future__ import annotations

from typing import Any

from forcereg.errors import ForceregError, UsageError
from forcereg.lowrank.decompose import Named, matching
from forcereg.lowrank.groups import split_groups as split
from forcereg.lowrank.groups import splittable
from forcereg.net.made import RegroupedNet
from forcereg.net.read import read_net_of
from forcereg.system.arguments import checked
from forcereg.system.events import Observer, Tell
from forcereg.system.paths import StrPath, listed


@checked
def split_groups(
    snapshot: StrPath | Any,
    *,
    model: StrPath | None = None,
    layers: Named | str | None = None,
    observer: Observer | None = None,
) -> RegroupedNet:
    """Turn each grouped convolution X into parallel layers X_group0, X_group1, ... between a Slice and a Concat.

    The net computes what it did; every group can then have its own multipliers, rank or method. snapshot: a
    .caffemodel, also as .h5, its solver state, or a net in memory as for `decompose`. model: the net's prototxt, None
    for the net that the snapshot holds. layers: just these, by names or patterns (conv*). observer: gets warnings.
    Raises UsageError for a name that is no such layer's, ForceregError for files that can't be read or don't fit, and
    for a net with nothing to split.

    >>> made = forcereg.split_groups("grouped.caffemodel.h5", model="grouped.prototxt")
    >>> [layer.name for layer in made.net.layer if layer.name.startswith("conv2")]
    ['conv2_slice', 'conv2_group0', 'conv2_group1', 'conv2_concat']
    >>> made.weights["conv2_group0"][0].shape
    (8, 4, 3, 3)
    """
    tell = Tell(observer)
    read = read_net_of(snapshot, model, warn=tell.warn)
    only = _known(layers, splittable(read.file.message, read.model.layers), read.file.name)
    net, weights, done = split(read.file.message, read.model.layers, only)
    return RegroupedNet(net, weights, tuple(done), read, f"groups of {', '.join(done)} as parallel layers", tell.warn)


def _known(asked: Named | str | None, known: list[str], name: str) -> list[str]:
    """The layers to split."""
    if not known:
        raise ForceregError(f"{name}: has no grouped Convolution with weights of its own, so nothing to split")
    if asked is None:
        return known
    if not asked:
        raise UsageError("layers is empty; leave it out for all layers")
    found = []
    for one in listed(asked):
        if not (matches := matching(one, known)):
            raise UsageError(
                f"--only-layers: '{one}' is no grouped Convolution of {name} that can be split; "
                f"those are {', '.join(known)}"
            )
        found += matches
    return found
