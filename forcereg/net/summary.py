"""What a net is made of: shapes, parameters, multiply-accumulates (MACs) and memory, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn

from forcereg.cost import Cost
from forcereg.net.module import Net

FLOAT = 4
"""Bytes of a value."""


@dataclass(frozen=True)
class Row:
    """One layer. `params` are learned values that the layer owns, `statistics` those it only gathers (BatchNorm).

    `borrowed` are values that it shares by name with the earlier layer that owns them.
    `macs` are for one item of the `batch` (see Summary), `memory` the bytes of its tops (0 if in place).
    """

    name: str
    type: str
    tops: dict[str, tuple[int, ...]]
    params: int
    statistics: int
    borrowed: int
    macs: int
    memory: int


@dataclass(frozen=True)
class Summary:
    """All layers but Splits, in net order; `batch` is the size of axis 0 of the first blob that the net is fed.

    >>> net = forcereg.summary("deploy.prototxt")
    >>> net.batch, net.macs == sum(row.macs for row in net.rows if row.macs)
    (1, True)
    """

    name: str
    phase: str
    batch: int
    rows: list[Row]

    @property
    def params(self) -> int:
        """Learned values, shared ones once."""
        return sum(row.params for row in self.rows)

    @property
    def statistics(self) -> int:
        """Values that are gathered, not learned."""
        return sum(row.statistics for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a forward pass, for one item."""
        return sum(row.macs for row in self.rows)

    @property
    def memory(self) -> int:
        """Bytes of all blobs of a forward pass."""
        return sum(row.memory for row in self.rows)

    def report(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        rows = [{**row.__dict__, "tops": {top: list(shape) for top, shape in row.tops.items()}} for row in self.rows]
        totals = {key: getattr(self, key) for key in ("params", "statistics", "macs", "memory")}
        return {"name": self.name, "phase": self.phase, "batch": self.batch, "layers": rows, "totals": totals}


def summarize(net: Net) -> Summary:
    """The summary of a net, which may lie on the meta device (see `load.shape_net`)."""
    batch = batch_size(net)
    rows = []
    for spec, module in net.built:
        if spec.type == "Split":
            continue
        blobs = module.blobs if module is not None else ()
        owned = [blob for index, blob in enumerate(blobs) if f"{spec.name}/{index}" not in net.shared]
        learned = sum(blob.numel() for blob in owned if isinstance(blob, nn.Parameter))
        fixed = sum(blob.numel() for blob in owned) - learned
        tops = {top: net.shapes[top] for top in spec.tops}
        # as papers count, whatever batch the file happens to say
        macs = module.macs // batch if module is not None else 0
        # an in-place layer's top is its bottom's memory
        memory = FLOAT * sum(prod(shape) for top, shape in tops.items() if top not in spec.bottoms)
        borrowed = sum(blob.numel() for blob in blobs) - learned - fixed
        rows.append(Row(spec.name, spec.type, tops, learned, fixed, borrowed, macs, memory))
    return Summary(net.spec.name, ("TRAIN", "TEST")[net.spec.phase], batch, rows)


def cost_of(net: Net) -> Cost:
    """All layers' MACs for one item and learned values."""
    found = summarize(net)
    return Cost(found.macs, found.params)


def batch_size(net: Net) -> int:
    """Size of axis 0 of the first blob that the net is fed, be it by a Python layer; at least 1."""
    # Python layers without bottoms feed a net too, but aren't among its inputs
    made = (top for spec in net.spec.layers if not spec.bottoms and spec.type == "Python" for top in spec.tops)
    shapes = [net.shapes[name] for name in (*net.inputs, *made)]
    return next((shape[0] for shape in shapes if shape and shape[0]), 1)


def size(count: float) -> str:
    """Bytes for people; nothing for none."""
    if not count:
        return ""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.2f} GiB"
