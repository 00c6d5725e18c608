"""--latency and --batch: ranks from measured times, for commands that choose ranks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import click

from forcereg.commands.lowrank_options import Opened, gathered
from forcereg.commands.lowrank_rules import RankOptions
from forcereg.errors import ForceregError, UsageError
from forcereg.system.terminal import echo

if TYPE_CHECKING:
    import torch

    from forcereg.lowrank.decompose import Decomposition
    from forcereg.lowrank.ranks import Criterion
    from forcereg.lowrank.timed import Timed
    from forcereg.report.latency import Latency

BUDGETS = ("max_macs", "max_params")


@dataclass(frozen=True)
class LatencyOptions:
    """What the options of `latency_options` say."""

    latency: str | None
    batch: int | None

    def device(self) -> torch.device | None:
        """The device to measure on, None if --latency isn't given. Raises UsageError and ForceregError."""
        from forcereg.study.latency import measuring_device

        if self.latency is None:
            if self.batch is not None:
                raise UsageError("--batch is what --latency cpu or cuda measures with; give that too")
            return None
        return measuring_device(self.latency)

    def choose(self, device: torch.device, opened: Opened, criterion: Criterion, ranks: RankOptions) -> Timed:
        """The criterion's ranks or faster ones near them, by what the layers take there. Raises ForceregError."""
        from forcereg.lowrank.timed import by_times
        from forcereg.study.latency import LayerTimer

        timer = LayerTimer(opened.prepared, device, self.batch, partial(echo, err=True))
        budget = any(getattr(ranks, name) is not None for name in BUDGETS)
        return by_times(opened.prepared.candidates, criterion, timer, budget)

    def measured(self, device: torch.device, opened: Opened, timed: Timed, result: Decomposition) -> Latency:
        """All times, with those of the whole net before and after unless its test phase can't run by itself."""
        from forcereg.report.latency import Latency, device_text
        from forcereg.schema.text import net_from_message
        from forcereg.study.latency import net_latencies

        file, net = opened.prepared.file, None
        try:
            net = net_latencies(
                [(file, opened.prepared.weights), (net_from_message(result.net, file.name), result.weights)],
                self.batch,
                device=device,
                input_shapes=opened.accounts.fed,
                root=opened.accounts.root,
                allow_python_layers=opened.accounts.allow_python_layers,
            )
        except ForceregError as error:
            echo(f"the whole net isn't measured: {error}", err=True)
        return Latency(device_text(device), self.batch, timed.trials, net)


latency_options = gathered("latency", LatencyOptions, [
    click.option("--latency", metavar="cpu|cuda",
                 help="Measure the layers there, take the fastest rank near the rule's (above it; below it under a "
                      "budget), and leave layers whole that no chain makes faster."),
    click.option("--batch", type=click.IntRange(min=1), metavar="N", help="For --latency.  [default: the net's]"),
])  # fmt: skip
