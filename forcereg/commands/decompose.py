"""forcereg decompose"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from forcereg.commands.lowrank_options import LayerOptions, layer_options
from forcereg.commands.lowrank_rules import RankOptions, rank_options
from forcereg.commands.options import format_option, runtime_options
from forcereg.system.terminal import echo

if TYPE_CHECKING:
    from forcereg.workflows.decompose import Decomposition


@click.command(epilog="\b\nExample: forcereg decompose --snapshot net_iter_10000.caffemodel.h5 --error 0.05")
@click.option("--snapshot", required=True, metavar="FILE", type=click.Path(),
              help="A .caffemodel, also as .h5, or its solver state.")  # fmt: skip
@rank_options
@click.option("--latency", metavar="cpu|cuda",
              help="Measure the layers there, take the fastest rank near the rule's (above it; below it under a "
                   "budget), and leave layers whole that no chain makes faster.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), metavar="N", help="For --latency.  [default: the net's]")
@runtime_options
@layer_options
@click.option("--recalibrate", type=click.IntRange(min=1), metavar="N",
              help="Recompute BatchNorm's statistics on N training batches of --solver.")  # fmt: skip
@click.option("--out", metavar="PREFIX", help="Of both files written.  [default: <snapshot>_lowrank beside it]")
@format_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def command(
    snapshot: str,
    ranks: RankOptions,
    latency: str | None,
    batch: int | None,
    runtime: str,
    threads: int | None,
    layers: LayerOptions,
    recalibrate: int | None,
    out: str | None,
    form: str | None,
    as_json: bool,
) -> None:
    """Replace layers by chains of smaller ones, at ranks by exactly one rule.

    \b
    pca, svd  fewer filters, then a 1x1 convolution that combines them (the paper's; svd: its factors balanced)
    kmeans    the same with filters that several outputs share
    vh        vertical kh x 1 filters, then horizontal 1 x kw ones
    tucker2   1x1 to fewer channels, the kernel between fewer channels, 1x1 back
    cp        1x1, then kh x 1 and 1 x kw for each channel alone, then 1x1

    Writes PREFIX.prototxt and PREFIX.caffemodel, or .caffemodel.h5, which `forcereg finetune` or `train --weights`
    trains further.
    """
    from forcereg.net.made import default_prefix
    from forcereg.report.progress import Shown
    from forcereg.workflows.decompose import decompose

    rule = ranks.rule()
    # known before: scores of a search are kept beside what will be written
    prefix = Path(out) if out else default_prefix(snapshot)
    with Shown() as observer:
        made = decompose(
            snapshot,
            rule=rule,
            even_if_dearer=ranks.even_if_dearer,
            latency=latency,
            batch=batch,
            runtime=runtime,
            threads=threads,
            recalibrate=recalibrate,
            scores=f"{prefix}.scores.json",
            observer=observer,
            **layers.keywords,
        )
        written = made.write(prefix, form)
    if as_json:
        echo(json.dumps({**made.report, **written}))
        return
    show(made)
    echo(f"wrote {written['model']} and {written['weights']}")


def show(made: Decomposition) -> None:
    """Print the tables, what isn't known of the net, what costs are of, and what was folded or recomputed."""
    from forcereg.report.lowrank import show
    from forcereg.workflows.decompose import DEARER

    show(made.done, made.report["net"], made.report["train_net"])
    if made.latency is not None:
        made.latency.show()
    if made.dearer:
        echo(DEARER)
    if again := made.report.get("recalibrated"):
        echo(f"recomputed the statistics of {', '.join(again['layers'])} on {again['batches']} training batches")
    for line in made.opened.remarks:
        echo(line)
    for name, gone in made.opened.prepared.folded.items():
        echo(f"folded into {name}: {', '.join(gone)}")
