"""forcereg split-groups"""

from __future__ import annotations

from pathlib import Path

import click

from forcereg.commands.lowrank_files import default_prefix, format_option, write_net
from forcereg.errors import ForceregError, UsageError
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
    from forcereg.commands.lowrank_options import names, opened_model
    from forcereg.lowrank.groups import split_groups, splittable

    only = names("--only-layers", only_layers)
    weights, file = opened_model(snapshot, model)
    known = splittable(file.message, weights.layers)
    if not known:
        raise ForceregError(f"{file.name}: has no grouped Convolution with weights of its own, so nothing to split")
    if missing := [name for name in only or () if name not in known]:
        raise UsageError(
            f"--only-layers: '{missing[0]}' is no grouped Convolution of {file.name} that can be split; "
            f"those are {', '.join(known)}"
        )
    net, blobs, split = split_groups(file.message, weights.layers, only)
    prefix = Path(out) if out else default_prefix(snapshot, "split")
    written = write_net(
        prefix, net, blobs, weights, model, f"groups of {', '.join(split)} as parallel layers", form=form
    )
    echo(f"split {', '.join(split)}; wrote {written['model']} and {written['weights']}")
