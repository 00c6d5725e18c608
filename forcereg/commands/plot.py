"""forcereg plot"""

from __future__ import annotations

from pathlib import Path

import click

from forcereg.commands.telling import lines
from forcereg.system.terminal import echo


@click.command(epilog="\b\nExample: forcereg plot plain.log force.log -o curves.svg")
@click.argument("logs", nargs=-1, required=True, metavar="LOG_OR_JSON...", type=click.Path(path_type=Path))
@click.option("--out", "-o", required=True, metavar="OUT.png|svg|pdf|html|csv", type=click.Path(path_type=Path),
              help="Picture, a page with the picture and a table, or all points as CSV.")  # fmt: skip
def command(logs: tuple[Path, ...], out: Path) -> None:
    """Draw loss, scores, learning rate and ranks of one or several runs over the iterations.

    LOG is what `forcereg train`, Caffe or NVIDIA's Caffe printed, also behind what containers and launchers put in
    front of lines, or what --log-json wrote. As CSV each point is a row of log, phase, name, iteration and value.
    """
    from forcereg.workflows.plot import plot

    plot(logs, out, observer=lines)
    echo(f"wrote {out}")
