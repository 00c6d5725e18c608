"""The chains that a decomposition put in place of layers, and the force on them.

`decompose` gives every part of a chain the force_mult of the layer, as Caffe's fork does. There the force does more
than in the layer: it draws the few filters that are left to each other, and the rank sinks further.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from forcereg.errors import ForceregError
from forcereg.lowrank.merge import Chain, find_chains, written_chains
from forcereg.net.module import Net
from forcereg.schema import NetParameter
from forcereg.snapshot import net_message
from forcereg.solver.regularizers.force import forced_layers


def chains_of(net: Net) -> list[Chain]:
    """The chains of a net, longer ones first."""
    weights: Any = {name: dict(enumerate(blobs)) for name, blobs in net.params.items() if blobs}
    # by the weights too: what only has the names of a chain, and other shapes, is none
    return find_chains(net_message(net.spec), weights)


def without_chain_force(net: Any) -> tuple[Any, list[str], list[str]]:
    """A NetParameter in which no part of a chain has force_mult; the layers that have lost it, and that keep it."""
    new = NetParameter()
    new.CopyFrom(net)
    parts = {part for chain in written_chains(net) for part in chain.parts}
    lost, kept = dict[str, None](), dict[str, None]()
    for layer in new.layer:
        if any(spec.force_mult for spec in layer.param):
            (lost if layer.name in parts else kept)[layer.name] = None
        if layer.name in parts:
            for spec in layer.param:
                spec.ClearField("force_mult")
    return new, list(lost), list(kept)


def force_on_chains(net: Net, p: Any) -> str:
    """What to say where a solver (`p`: SolverParameter) lets a force act on all parts of chains; '' where it doesn't.

    A chain some of whose parts feel none was written so by somebody who meant it.
    """
    if not p.force_decay or p.force_iter == 0:
        return ""
    forced = set(forced_layers(net))
    parts = [part for chain in chains_of(net) if forced.issuperset(chain.parts) for part in chain.parts]
    if not parts:
        return ""
    return (
        f"the force acts on {', '.join(parts)}, the parts of decomposed layers, and lowers their ranks further; if "
        "that isn't meant, train by `forcereg finetune`, or remove their force_mult"
    )


def check_chains(net: Net, fresh: Collection[str]) -> None:
    """Raises ForceregError if the layers `fresh`, without weights, are of a chain: it would be tuned from nothing."""
    for chain in chains_of(net):
        if lacking := [part for part in chain.parts if part in fresh]:
            raise ForceregError(
                f"{net.spec.filename}: --weights lacks {', '.join(lacking)} in place of '{chain.name}'; "
                "give the model that decompose wrote beside this net"
            )
