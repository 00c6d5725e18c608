"""forcereg frontier"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from forcereg.commands.frontier_options import Aims, aim_options
from forcereg.commands.lowrank_options import LayerOptions, layer_options
from forcereg.commands.options import runtime_options
from forcereg.commands.reporting import ready, report_option, write
from forcereg.system.terminal import echo

ALIKE = ("model", "fc", "device", "data_budget", "workers", "allow_python_layers", "input_shapes")
"""Keywords of the nets that hold for the page, too."""


@click.command(
    epilog="\b\nExample: forcereg frontier none.caffemodel.h5 force.caffemodel.h5 --solver S --finetune 1000 -o out.png"
)
@click.argument("snapshots", metavar="SNAPSHOT...", nargs=-1, required=True, type=click.Path())
@click.option("--out", "-o", required=True, metavar="OUT.png|svg|pdf", type=click.Path(path_type=Path),
              help="Picture; OUT.csv is written beside it.")  # fmt: skip
@aim_options
@click.option("--finetune", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Iterations to train each net further, without force, at a tenth of base_lr.")  # fmt: skip
@click.option("--teacher", metavar="FILE", type=click.Path(),
              help="With --finetune: learn from this snapshot's net as well, as finetune does.")  # fmt: skip
@click.option("--labels", metavar="A,B,..", help="Names of the nets.  [default: what their paths differ in]")
@click.option("--latency", "where", metavar="cpu|cuda|no", default="cpu", show_default=True,
              help="Where to measure the nets' forward pass.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, metavar="N",
              help="Images in a measured batch.")  # fmt: skip
@runtime_options
@report_option
@layer_options
def command(
    snapshots: tuple[str, ...],
    out: Path,
    aims: Aims,
    finetune: int,
    teacher: str | None,
    labels: str | None,
    where: str,
    batch: int,
    runtime: str,
    threads: int | None,
    report: str | None,
    layers: LayerOptions,
) -> None:
    """Compare nets by the accuracy that they keep at a cost, in MACs and in measured time.

    Every SNAPSHOT (a .caffemodel, also as .h5, or its solver state) is decomposed to each aim given, by each method of
    --method A,B,.., and scored on the test net of --solver, before and after fine-tuning. Writes the picture and a CSV
    file, and beside them what was scored and tuned, so that nothing is done twice.
    """
    from forcereg.report.plot import figure_type, picture_kind
    from forcereg.report.progress import Shown
    from forcereg.study.frontier_report import table
    from forcereg.study.several import labels_of
    from forcereg.workflows.frontier import frontier

    # what is wrong in the call itself is told before anything is scored
    picture_kind(out)
    labels_of(snapshots, labels)
    rules = aims.rules()
    ready(report)
    figure_type()  # without matplotlib it ends here, not after the scores
    prefix, given = out.with_suffix(""), layers.keywords
    with Shown() as observer:
        found = frontier(
            snapshots, solver=given.pop("data"), rule=rules, finetune=finetune, teacher=teacher, labels=labels,
            latency=where, batch=batch, runtime=runtime, threads=threads, scores=f"{prefix}.scores.json",
            tuned=f"{prefix}.tuned", even_if_dearer=aims.even_if_dearer, observer=observer, **given,
        )  # fmt: skip
    table(found.points, finetune, runtime).show()
    found.write(out, by=f"forcereg {shlex.join(sys.argv[1:])}")
    echo(f"wrote {out} and {prefix}.csv; {found.runs} nets scored, the others were known")
    if report:
        alike = {name: given[name] for name in ALIKE if name in given}
        with Shown() as observer:
            said = write([f"{prefix}.csv", *snapshots], report, batch=batch, observer=observer, **alike)
        echo(*said)
