"""forcereg plot"""

from __future__ import annotations

from pathlib import Path

import click

from forcereg.commands.telling import lines
from forcereg.system.terminal import echo


@click.command(epilog="\b\nExample: forcereg plot plain.log force.log --only accuracy --line whole=0.991 -o tuned.svg")
@click.argument("logs", nargs=-1, required=True, metavar="LOG_OR_JSON_OR_RESULTS...", type=click.Path(path_type=Path))
@click.option("--out", "-o", required=True, metavar="OUT.png|svg|pdf|html|csv", type=click.Path(path_type=Path),
              help="Picture, a page with the picture and a table, or all points as CSV.")  # fmt: skip
@click.option("--labels", metavar="A,B,..", help="Names of the runs.  [default: their files']")
@click.option("--only", metavar="A,B,..", default="", help="Draw these curves, names or patterns (accuracy, conv*).")
@click.option("--smooth", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
              help="Draw the mean of N values around each.")  # fmt: skip
@click.option("--line", multiple=True, metavar="[NAME=]VALUE", help="A horizontal line at a value; repeatable.")
@click.option("--x-range", metavar="A,B", help="Where the iterations begin and end; either may be left out.")
@click.option("--y-range", metavar="A,B", help="Where the values begin and end; either may be left out.")
def command(
    logs: tuple[Path, ...],
    out: Path,
    labels: str | None,
    only: str,
    smooth: int,
    line: tuple[str, ...],
    x_range: str | None,
    y_range: str | None,
) -> None:
    """Draw loss, scores, learning rate and ranks of one or several runs over the iterations.

    LOG is what `forcereg train`, Caffe or NVIDIA's Caffe printed, also behind what containers and launchers put in
    front of lines, or what --log-json wrote. As CSV each point is a row of log, phase, name, iteration and value.

    RESULTS is a sweep's results.csv: drawn is, of each layer, the rank that it needs against the net's test error.
    """
    from forcereg.workflows.plot import plot

    plot(
        logs, out, labels=labels, only=only, smooth=smooth, line=line, x_range=x_range, y_range=y_range, observer=lines
    )
    echo(f"wrote {out}")
