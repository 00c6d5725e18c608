"""What a decomposition came to: the table, and remarks on what isn't faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forcereg.cost import Cost
from forcereg.lowrank.account import Accounted, LayerReport
from forcereg.lowrank.decompose import LowrankNet
from forcereg.lowrank.factor import rank_text
from forcereg.report.table import Table, numeric
from forcereg.system.terminal import echo

SMALL = 0.5
"""The share of a net's MACs below which the rest of the net is worth a remark."""


def net_report(before: Cost, after: Cost) -> dict[str, Any]:
    """The whole net's cost as plain data; MACs and their ratio are None where shapes are unknown."""
    known = before.macs is not None and after.macs is not None
    return {
        "macs_before": before.macs,
        "macs_after": after.macs,
        "speedup": (before.macs or 0) / after.macs if known and after.macs else None,
        "params_before": before.params,
        "params_after": after.params,
    }


def remarks(result: Accounted, net: dict[str, Any], leave: str = "leave it: --except-layers") -> list[str]:
    """What may surprise, a line each: ranks that were rounded, chains that cost more than their layer, what is left.

    leave: how a layer is left whole, before its name.
    """
    lines = [f"{layer.name}: {layer.rounding}" for layer in result.layers if layer.rounding]
    lines += [slower(layer, leave) for layer in result.layers if is_slower(layer)]
    before, whole = result.totals.macs_before, net["macs_before"]
    if before is not None and whole and before < SMALL * whole:
        # Amdahl's law: as if the decomposed layers took no time
        most = f"the whole net can't be more than {whole / (whole - before):.2f}x faster by them"
        lines.append(f"the decomposed layers do {before / whole:.0%} of the net's MACs: {most}")
    return lines


def is_slower(layer: LayerReport) -> bool:
    """Whether the chain costs as much as the layer did, or more."""
    if layer.macs_before is None or layer.macs_after is None:
        return layer.params_after >= layer.params_before
    return layer.macs_after >= layer.macs_before


def slower(layer: LayerReport, leave: str) -> str:
    """The remark on such a layer."""
    if layer.macs_before is None or layer.macs_after is None:
        cost = f"{layer.params_after / layer.params_before:.2f}x the parameters"
    else:
        cost = f"{layer.macs_after / layer.macs_before:.2f}x the MACs"
    limit = layer.cheaper_up_to
    better = f"ranks up to {rank_text(limit)} cost less, or " if limit else "no rank costs less; "
    return f"{layer.name}: its chain has {cost} of the layer before; {better}{leave} {layer.name}"


def show(result: LowrankNet, net: dict[str, Any], train_net: dict[str, Any] | None = None) -> None:
    """Print the table, the remarks, and what was left whole and why; `train_net`: the TRAIN net's cost, if another."""
    numbers = ("full rank", "rank", "error", "MACs before", "MACs after", "speed-up", "params before", "params after")
    table = Table("layer", "method", *numeric(*numbers))
    for layer in result.layers:
        ranks = (shown(layer.full_ranks), shown(layer.ranks), f"{layer.error:.4f}")
        table.row(layer.name, layer.method, *ranks, *costs(layer), *values(layer))
    table.section()
    full, kept = (summed([getattr(layer, key) for layer in result.layers]) for key in ("full_ranks", "ranks"))
    params = [f"{sum(getattr(one, key) for one in result.layers):,}" for key in ("params_before", "params_after")]
    table.row("total", "", full, kept, "", *costs(result.totals), *params)
    nets = {"whole net": net} if train_net is None else {"whole net, TEST": net, "whole net, TRAIN": train_net}
    for name, cost in nets.items():
        table.row(name, "", "", "", "", *costs(cost), *values(cost))
    table.show()
    for line in remarks(result, net):
        echo(line)
    for name, reason in result.skipped.items():
        echo(f"left whole: {name}: {reason}")


def shown(ranks: Sequence[int]) -> str:
    """A layer's rank, or its ranks as 4-16."""
    return rank_text(tuple(ranks))


def summed(ranks: Sequence[Sequence[int]]) -> str:
    """The sums of the layers' ranks, empty where some have more of them than others."""
    return shown([sum(same) for same in zip(*ranks, strict=True)]) if len(set(map(len, ranks))) == 1 else ""


def costs(of: Any) -> list[str]:
    """MACs before and after and the speed-up, as table cells; - for what is unknown."""
    before, after, speedup = (field(of, key) for key in ("macs_before", "macs_after", "speedup"))
    macs = ["-" if count is None else f"{count:,}" for count in (before, after)]
    return [*macs, "-" if speedup is None else f"{speedup:.2f}x"]


def values(of: Any) -> list[str]:
    """Learned values before and after, as table cells."""
    return [f"{field(of, key):,}" for key in ("params_before", "params_after")]


def field(of: Any, key: str) -> Any:
    """Of a report or of plain data."""
    return of[key] if isinstance(of, dict) else getattr(of, key)
