"""forcereg split-groups"""

from __future__ import annotations

import click

from forcereg.commands.lowrank_options import names
from forcereg.commands.options import format_option
from forcereg.system.terminal import echo


@click.command(epilog="\b\nExample: forcereg split-groups alexnet.caffemodel --model train_val.prototxt --out split")
@click.argument("snapshot", metavar="SNAPSHOT", type=click.Path())
@click.option("--model", metavar="FILE", type=click.Path(),
              help="Net prototxt.  [default: the net that the snapshot holds]")  # fmt: skip
@click.option("--only-layers", metavar="A,B", help="Split these layers only.")
@click.option("--out", metavar="PREFIX", help="Of both files written.  [default: <snapshot>_split beside it]")
@format_option
def command(snapshot: str, model: str | None, only_layers: str | None, out: str | None, form: str | None) -> None:
    """Turn each grouped convolution X into parallel layers X_group0, X_group1, ... between a Slice and a Concat.

    The net computes what it did; every group can then have its own multipliers, rank or method. Writes
    PREFIX.prototxt and PREFIX.caffemodel, or .caffemodel.h5. `forcereg merge-groups` is the way back.
    """
    from forcereg.net.made import default_prefix
    from forcereg.report.progress import Shown
    from forcereg.workflows.split_groups import split_groups

    with Shown() as observer:
        made = split_groups(snapshot, model=model, layers=names("--only-layers", only_layers), observer=observer)
        written = made.write(out or default_prefix(snapshot, "split"), form)
    echo(f"split {', '.join(made.layers)}; wrote {written['model']} and {written['weights']}")
