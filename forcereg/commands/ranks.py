"""forcereg ranks"""

from __future__ import annotations

import json

import click

from forcereg.commands.lowrank_options import LayerOptions, bounds, layer_options
from forcereg.system.terminal import echo


@click.command(epilog="\b\nExample: forcereg ranks net_iter_10000.caffemodel.h5 --error 0.01,0.05,0.1,0.2")
@click.argument("snapshot", metavar="SNAPSHOT", type=click.Path())
@click.option("--error", default="0.01,0.05,0.1,0.2", show_default=True, metavar="A,B,..",
              help="Bounds on each layer's relative squared error.")  # fmt: skip
@layer_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def command(snapshot: str, error: str, layers: LayerOptions, as_json: bool) -> None:
    """Show the rank that each layer needs at several errors, what the net would cost, and a bar for each layer.

    SNAPSHOT: a .caffemodel, also as .h5, or its solver state. Nothing is written.
    """
    from forcereg.report.progress import Shown
    from forcereg.report.ranks import show
    from forcereg.workflows.ranks import ranks

    errors = bounds(error)
    with Shown() as observer:
        found = ranks(snapshot, error=errors, observer=observer, **layers.keywords)
    if as_json:
        echo(json.dumps(found.report))
        return
    show(found.table)
    for line in found.opened.remarks:
        echo(line)
    for name, reason in found.skipped.items():
        echo(f"can't be decomposed: {name}: {reason}")
