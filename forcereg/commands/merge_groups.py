"""forcereg merge-groups"""

from __future__ import annotations

from pathlib import Path

import click

from forcereg.commands.lowrank_files import default_prefix, format_option, write_net
from forcereg.errors import ForceregError
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
    from forcereg.commands.lowrank_options import opened_model
    from forcereg.lowrank.groups import merge_groups

    weights, file = opened_model(snapshot, model)
    net, blobs, made = merge_groups(file.message, weights.layers)
    if not made:
        raise ForceregError(
            f"{file.name}: has no equal parallel Convolutions between a Slice and a Concat, so nothing to merge"
        )
    prefix = Path(out) if out else default_prefix(snapshot, "merged")
    written = write_net(
        prefix, net, blobs, weights, model, f"parallel layers of {', '.join(made)} as groups", form=form
    )
    echo(f"merged into {', '.join(made)}; wrote {written['model']} and {written['weights']}")
