"""forcereg merge-groups"""

from __future__ import annotations

import click

from forcereg.commands.options import format_option
from forcereg.system.terminal import echo


@click.command(epilog="\b\nExample: forcereg merge-groups split.caffemodel.h5 --out merged")
@click.argument("snapshot", metavar="SNAPSHOT", type=click.Path())
@click.option("--model", metavar="FILE", type=click.Path(),
              help="Net prototxt.  [default: the net that the snapshot holds]")  # fmt: skip
@click.option("--out", metavar="PREFIX", help="Of both files written.  [default: <snapshot>_merged beside it]")
@format_option
def command(snapshot: str, model: str | None, out: str | None, form: str | None) -> None:
    """Turn equal parallel convolutions between a Slice and a Concat into one with groups: what split-groups made.

    The net computes what it did. Writes PREFIX.prototxt and PREFIX.caffemodel, or .caffemodel.h5.
    """
    from forcereg.net.made import default_prefix
    from forcereg.report.progress import Shown
    from forcereg.workflows.merge_groups import merge_groups

    with Shown() as observer:
        made = merge_groups(snapshot, model=model, observer=observer)
        written = made.write(out or default_prefix(snapshot, "merged"), form)
    echo(f"merged into {', '.join(made.layers)}; wrote {written['model']} and {written['weights']}")
