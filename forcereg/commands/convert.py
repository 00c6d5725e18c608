"""forcereg convert"""

from __future__ import annotations

import click

from forcereg.commands.options import import_option
from forcereg.system.terminal import echo


@click.command(epilog="\b\nExample: forcereg convert net_iter_10000.caffemodel.h5 net.caffemodel")
@click.argument("source", metavar="A", type=click.Path())
@click.argument("target", metavar="B", type=click.Path())
@click.option("--model", metavar="FILE", type=click.Path(),
              help="Net prototxt of a model that holds none, for the layers' settings in a binary file.")  # fmt: skip
@click.option("--dialect", metavar="FORK", help="Fork that wrote a binary model or net whose numbers are ambiguous: "
              "ssl, force or skimcaffe.")  # fmt: skip
@import_option
def command(source: str, target: str, model: str | None, dialect: str | None) -> None:
    """Write the model or solver state A as B: binary (.caffemodel, .solverstate) or HDF5 (the same with .h5).

    A model may be a .safetensors or .npz, too: arrays named <layer>.<position of the blob>, and texts. All of it is
    kept: weights and history bit for bit, names, the net, seed and whatever training needs to go on as if nothing had
    happened. Models of old formats (V0, V1, half precision) are read and come out in today's, as float32.
    """
    from pathlib import Path

    from forcereg.workflows.convert import convert

    done = convert(source, target, model=None if model is None else Path(model), dialect=dialect)
    for remark in done.remarks:
        echo(f"{source}: {remark}")
    echo(f"wrote {target}: {done.summary}")
