"""forcereg test"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import click

from forcereg.commands.gflags import CaffeCommand
from forcereg.commands.options import asked_devices, code_options, data_options, device_options, stage_list
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
@data_options
@code_options
def command(**options: Any) -> None:
    """Score a net: each batch's outputs on standard error, then the mean of each output on standard output."""
    from forcereg.net.load import load_net
    from forcereg.net.scoring import check_blobs, coverage, read_outputs, score
    from forcereg.solver.debug import Watch
    from forcereg.solver.log import GlogWriter, describe
    from forcereg.system.device import choose_device
    from forcereg.system.events import Event

    given = SimpleNamespace(**options)
    if "," in given.weights and not os.path.exists(given.weights):
        raise UsageError(f"--weights is '{given.weights}'; a single model can be scored, give one file")
    batches, means = GlogWriter(file="test.py"), GlogWriter(sys.stdout, "test.py")
    device = choose_device(asked_devices(given.gpu, given.device)[0], None, lambda text: batches.line(text, "W"))
    net = load_net(
        given.model,
        given.weights,
        "TEST",
        given.level,
        stage_list(given.stage),
        device=device,
        budget=given.data_budget << 20,
        workers=given.workers,
        allow_python_layers=given.allow_python_layers,
    )

    def show(index: int, outputs: Mapping[str, Any]) -> None:
        if watch is not None:
            batches(Event("debug", watch.told()))
        for output in read_outputs(outputs, {}):
            batches.line(f"Batch {index}, {output.name} = {output.value:g}")

    check_blobs(net, device)
    one_batch = given.iterations == 1
    for one in coverage(net, given.iterations, quick=True):
        text = f"{'covers' if one_batch else 'cover'} {one.seen:,} of the {one.records:,} records"
        if one.seen > one.records:
            verb = "goes" if one_batch else "go"
            text = f"{verb} round the {one.records:,} records {one.seen / one.records:.3g} times"
        batches.line(f"{given.iterations:,} {'batch' if one_batch else 'batches'} of {one.batch:,} {text}", "W")
    with Watch(net) if net.spec.debug_info else contextlib.nullcontext() as watch:
        result = score(net, given.iterations, after=show)
    means.line(f"Loss: {result.loss:g}")
    for output in result.outputs:
        means.line(describe(output))
