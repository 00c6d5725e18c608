"""forcereg test"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import click

from forcereg.commands.gflags import CaffeCommand
from forcereg.commands.options import asked_devices, code_options, data_options, device_options, sparse_option
from forcereg.errors import UsageError


@click.command(
    cls=CaffeCommand,
    epilog="\b\nExample: forcereg test --model net.prototxt --weights net_iter_10000.caffemodel.h5 --iterations 100",
)
@click.option("--model", required=True, metavar="FILE", type=click.Path(), help="Net prototxt; its TEST phase is run.")
@click.option("--weights", required=True, metavar="FILE", type=click.Path(), help="Model to score, a single one.")
@click.option("--iterations", type=click.IntRange(min=1), default=50, show_default=True, help="Batches to run.")
@device_options
@click.option("--level", type=int, default=0, help="Level of the net's state.")
@click.option("--stage", default="", metavar="A,B", help="Stages of the net's state, comma separated.")
@sparse_option
@data_options
@code_options
def command(**options: Any) -> None:
    """Score a net: each batch's outputs on standard error, then the mean of each output on standard output."""
    from forcereg.solver.log import GlogWriter, describe
    from forcereg.workflows.score import score

    given = SimpleNamespace(**options)
    # a list, as train takes it; a file's own name may have commas
    if "," in given.weights and not os.path.exists(given.weights):
        raise UsageError(f"--weights is '{given.weights}'; a single model can be scored, give one file")
    # the means alone on standard output, which scripts read
    batches, means = GlogWriter(file="test.py"), GlogWriter(sys.stdout, "test.py")
    result = score(
        given.model,
        given.weights,
        iterations=given.iterations,
        device=asked_devices(given.gpu, given.device)[0],
        level=given.level,
        stage=given.stage,
        sparse=given.sparse,
        data_budget=given.data_budget,
        workers=given.workers,
        allow_python_layers=given.allow_python_layers,
        observer=batches,
    )
    for one in result.sparse:
        batches.line(f"{one.layer}: {one.text}")
    means.line(f"Loss: {result.loss:g}")
    for output in result.outputs:
        means.line(describe(output))
