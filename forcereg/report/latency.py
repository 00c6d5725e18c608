"""What was measured for ranks by times: tables and plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from forcereg.lowrank.factor import rank_text
from forcereg.lowrank.ranks import Whole
from forcereg.lowrank.timed import Trial
from forcereg.report.table import Column, Table, numeric
from forcereg.system.terminal import echo


@dataclass(frozen=True)
class Latency:
    """Trials of layers, and milliseconds of the whole net before and after; `batch` is None for the net's own.

    `threads` is None on a GPU.
    """

    device: str
    batch: int | None
    trials: Sequence[Trial]
    net: Sequence[float] | None
    runtime: str = "torch"
    threads: int | None = None

    def report(self) -> dict[str, Any]:
        """Everything as plain data, for JSON; `rank` is null for a layer that stays whole."""
        layers = [
            {
                "name": one.name,
                "asked": one.asked,
                "rank": None if isinstance(one.choice, Whole) else one.choice,
                "ms_before": one.before,
                "ms_after": one.after,
                "chains": [{"rank": rank, "ms": ms} for rank, ms in one.times.items()],
            }
            for one in self.trials
        ]
        net = None
        if self.net is not None:
            before, after = self.net
            net = {"ms_before": before, "ms_after": after, "speedup": before / after}
        on = {"device": self.device, "runtime": self.runtime, "threads": self.threads, "batch": self.batch}
        return {**on, "layers": layers, "net": net}

    def show(self) -> None:
        """Print the milliseconds of each layer and of the whole net."""
        by = "" if self.runtime == "torch" else f" in {self.runtime}"
        right = numeric("asked", "rank", "ms before", "ms after", "faster")
        table = Table("layer", *right, Column(f"chains measured{by}, rank: ms", "text"))
        for one in self.trials:
            chosen = "whole" if isinstance(one.choice, Whole) else rank_text(one.choice)
            tried = ", ".join(f"{rank_text(rank)}: {ms:.3g}" for rank, ms in one.times.items())
            table.row(one.name, rank_text(one.asked), chosen, *times(one.before, one.after), tried)
        if self.net is not None:
            table.section()
            table.row("whole net", "", "", *times(*self.net), "")
        table.show()
        batch = "the net's batch" if self.batch is None else f"batch {self.batch}"
        echo(f"medians of forward passes on {self.device}, {batch}")


def device_text(device: torch.device, threads: int | None = None) -> str:
    """The device for people, with what its speed depends on; `threads`: None for as many as torch takes."""
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    # a CPU's times hang on it
    threads = threads or torch.get_num_threads()
    return f"{device}, {threads} thread{'s' if threads > 1 else ''}"


def times(before: float, after: float) -> list[str]:
    """Milliseconds and their ratio, as table cells."""
    return [f"{before:.3g}", f"{after:.3g}", f"{before / after:.2f}x"]
