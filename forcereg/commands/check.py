"""forcereg check"""

from __future__ import annotations

import click

from forcereg.commands.options import code_options, decode_option, given_shapes
from forcereg.errors import ForceregError
from forcereg.system.terminal import echo


@click.command(epilog="\b\nExample: forcereg check configs/examples/mnist/lenet_force_solver.prototxt")
@click.argument("file", metavar="SOLVER_OR_NET", type=click.Path())
@click.option("--records", type=click.IntRange(min=0), default=1000, show_default=True,
              help="Records of each data source to read and to check the labels of.")  # fmt: skip
@click.option("--level", type=int, help="Level of the training net's state.")
@click.option("--stage", default="", metavar="A,B", help="Stages of the training net's state, comma separated.")
@click.option("--input-shape", multiple=True, metavar="BLOB=N,C,H,W",
              help="Shape of a data layer's top, whose source is then not opened; repeatable.")  # fmt: skip
@decode_option
@code_options
def command(
    file: str,
    records: int,
    level: int | None,
    stage: str,
    input_shape: tuple[str, ...],
    allow_python_layers: bool,
) -> None:
    """Look for everything that would go wrong in a run, without running: a list of all problems, exit code 1 if any.

    Checks paths, layers and shapes in both phases, the first records of the data and their labels, weights,
    the schedule, room for snapshots, and memory.
    """
    from forcereg.workflows.check import check

    report = check(
        file, records=records, level=level, stage=stage, input_shapes=given_shapes(input_shape),
        allow_python_layers=allow_python_layers,
    )  # fmt: skip
    width = max(map(len, report.facts), default=0)
    for name, text in report.facts.items():
        echo(f"{name:<{width}}  {text}")
    for text in report.warnings:
        echo(f"warning: {text}")
    for text in report.errors:
        echo(f"problem: {text}")
    if report.errors:
        count = len(report.errors)
        # as an error, for the exit code
        raise ForceregError(f"{file}: {count} problem{'s' if count > 1 else ''} found, listed above")
    echo(f"{file}: no problems found")
