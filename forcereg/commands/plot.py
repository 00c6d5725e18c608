"""forcereg plot"""

from __future__ import annotations

from pathlib import Path

import click

from forcereg.terminal import echo


@click.command(epilog="\b\nExample: forcereg plot plain.log force.log -o curves.svg")
@click.argument("logs", nargs=-1, required=True, metavar="LOG_OR_JSON...", type=click.Path(path_type=Path))
@click.option("--out", "-o", required=True, metavar="OUT.png|svg|pdf|html", type=click.Path(path_type=Path),
              help="Picture, or a page with the picture and a table.")  # fmt: skip
def command(logs: tuple[Path, ...], out: Path) -> None:
    """Draw loss, scores, learning rate and ranks of one or several runs over the iterations.

    LOG is what `forcereg train` or Caffe printed, or what --log-json wrote.
    """
    from forcereg.files import write_bytes
    from forcereg.report.curves import read_run
    from forcereg.report.plot import draw, kind_of

    kind = kind_of(out)
    stems = [log.stem for log in logs]
    names = [log.stem if stems.count(log.stem) == 1 else str(log) for log in logs]
    runs = [read_run(log, name) for log, name in zip(logs, names, strict=True)]
    echo(*(remark for run in runs for remark in run.remarks))
    write_bytes(out, draw(runs, kind))
    echo(f"wrote {out}")
