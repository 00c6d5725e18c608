"""forcereg test"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from forcereg.commands.options import asked_device, code_options, data_options, device_options, stage_list


@click.command(
    epilog="Example: forcereg test --model net.prototxt --weights net_iter_10000.caffemodel.h5 --iterations 100"
)
@click.option("--model", required=True, metavar="FILE", help="Net prototxt; its TEST phase is run.")
@click.option("--weights", required=True, metavar="FILE", help=".caffemodel.h5 to score.")
@click.option("--iterations", type=click.IntRange(min=1), default=50, show_default=True, help="Batches to run.")
@device_options
@click.option("--level", type=int, default=0, help="Level of the net's state.")
@click.option("--stage", default="", metavar="A,B", help="Stages of the net's state, comma separated.")
@data_options
@code_options
def command(
    model: str,
    weights: str,
    iterations: int,
    gpu: str | None,
    device: str | None,
    level: int,
    stage: str,
    data_budget: int,
    workers: int,
    allow_python_layers: bool,
) -> None:
    """Score a net: each batch's outputs on standard error, then the mean of each output on standard output."""
    from forcereg.device import choose_device
    from forcereg.load import load_net
    from forcereg.scoring import check_blobs, read_outputs, score
    from forcereg.solver.log import GlogWriter, describe

    batches, means = GlogWriter(), GlogWriter(sys.stdout)
    target = choose_device(asked_device(gpu, device), None, lambda text: batches.line(text, "W", "test.py"))
    net = load_net(
        model,
        weights,
        "TEST",
        level,
        stage_list(stage),
        device=target,
        budget=data_budget << 20,
        workers=workers,
        allow_python_layers=allow_python_layers,
    )

    def show(index: int, outputs: Mapping[str, Any]) -> None:
        for output in read_outputs(outputs, {}):
            batches.line(f"Batch {index}, {output.name} = {output.value:g}", file="test.py")

    check_blobs(net, target)
    result = score(net, iterations, after=show)
    means.line(f"Loss: {result.loss:g}", file="test.py")
    for output in result.outputs:
        means.line(describe(output), file="test.py")
