"""What a decomposition did to each layer, as plain data; and how a net made by one says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from forcereg.cost import chain_cost
from forcereg.lowrank.factor import Factors, Rank, rank_text
from forcereg.lowrank.ranks import Candidate
from forcereg.system.sidefiles import of_form, parse_json
from forcereg.version import __version__

PROVENANCE = "forcereg_decomposed"
"""The attribute of a weights file that tells how its weights were made."""


@dataclass(frozen=True)
class LayerReport:
    """What the decomposition did to one layer. MACs are for one image, None where shapes are unknown.

    `ranks` and `full_ranks`: of a method of several ranks all of them (tucker2: outputs, inputs), of which `rank` and
    `full_rank` are the first. `widths`: outputs of each layer of the chain but the last. `cheaper_up_to`: the largest
    rank at which the chain costs less than the layer did, 0 if there is none; of several those at equal shares of the
    full ones. `rounding`: which rank was asked for, where another had to be taken; or empty.
    """

    name: str
    type: str
    method: str
    full_rank: int
    rank: int
    error: float
    macs_before: int | None
    macs_after: int | None
    params_before: int
    params_after: int
    speedup: float | None
    widths: tuple[int, ...]
    cheaper_up_to: Rank
    ranks: tuple[int, ...] = ()
    full_ranks: tuple[int, ...] = ()
    rounding: str = ""


@dataclass(frozen=True)
class Totals:
    """Sums over the decomposed layers; None where shapes are unknown or no layer was decomposed."""

    macs_before: int | None
    macs_after: int | None
    speedup: float | None


class Accounted:
    """What was done to layers, and why others are whole (`skipped`: name -> reason), whatever kind of net it was."""

    layers: tuple[LayerReport, ...]
    skipped: Mapping[str, str]

    @property
    def totals(self) -> Totals:
        """The cost of all decomposed layers together."""
        return totals(self.layers)

    def report(self) -> dict[str, Any]:
        """Layers, totals and skipped layers as plain data, for JSON."""
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "totals": asdict(self.totals),
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped.items()],
        }


def layer_report(one: Candidate, factors: Factors, rounding: str = "") -> LayerReport:
    """The account of one layer. A pair's speed-up is known without shapes, MACs never are."""
    after = chain_cost([part.weight.numel() for part in factors.parts], one.positions, one.bias)
    speedup: float | None
    if one.dense.macs is not None and after.macs is not None:
        speedup = one.dense.macs / after.macs
    else:  # every part of a pair works at the output's positions
        pair = all(slot.axes is None or not slot.axes for slot in one.ladder.slots[:2]) and len(factors.parts) == 2
        # a bias is added, not multiplied, in the chain as in the layer
        speedup = (one.dense.params - one.bias) / (after.params - one.bias) if pair else None
    return LayerReport(
        name=one.name,
        type=one.type,
        method=one.method,
        full_rank=factors.full_rank,
        rank=factors.rank,
        error=factors.error,
        macs_before=one.dense.macs,
        macs_after=after.macs,
        params_before=one.dense.params,
        params_after=after.params,
        speedup=speedup,
        widths=tuple(len(part.weight) for part in factors.parts[:-1]),
        cheaper_up_to=one.cheaper_up_to,
        ranks=factors.ranks,
        full_ranks=factors.full_ranks,
        rounding=rounding,
    )


def totals(layers: Sequence[LayerReport]) -> Totals:
    """The cost of all decomposed layers together."""
    before = [layer.macs_before for layer in layers if layer.macs_before is not None]
    after = [layer.macs_after for layer in layers if layer.macs_after is not None]
    # a sum without the unknown ones would look like one of all
    if not layers or len(before) < len(layers):
        return Totals(None, None, None)
    return Totals(sum(before), sum(after), sum(before) / sum(after))


def heading(layers: Sequence[LayerReport]) -> str:
    """What was done, for the comment that opens the net written."""
    parts = (f"{one.name} {rank_text(one.ranks)} of {rank_text(one.full_ranks)} ({one.method})" for one in layers)
    return f"decomposed by forcereg; ranks: {', '.join(parts)}"


def provenance(layers: Sequence[LayerReport], source: str, attrs: Mapping[str, str]) -> list[dict[str, Any]]:
    """How weights were made: one entry for every decomposition of theirs, the last one last.

    source: the name of the file that they are made of; attrs: that file's.
    """
    try:
        before = of_form(parse_json(attrs.get(PROVENANCE, "[]")), list[dict[str, Any]])
    # damaged, or somebody else's: what was done before is unknown, which is no reason not to go on
    except ValueError:
        before = []
    keys = ("name", "method", "full_rank", "rank", "ranks", "widths", "error")
    done = [{key: getattr(layer, key) for key in keys} for layer in layers]
    return [*before, {"snapshot": source, "version": __version__, "layers": done}]
