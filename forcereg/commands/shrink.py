"""forcereg shrink"""

from __future__ import annotations

import json
from typing import Any

import click

from forcereg.commands.options import code_options, format_option, given_shapes, input_shape_option, runtime_options
from forcereg.system.terminal import echo


@click.command(epilog="\b\nExample: forcereg shrink net_iter_10000.caffemodel.h5 --latency cpu --batch 1")
@click.argument("snapshot", metavar="SNAPSHOT", type=click.Path())
@click.option("--model", metavar="FILE", type=click.Path(),
              help="Net prototxt.  [default: the net that the snapshot holds]")  # fmt: skip
@click.option("--latency", metavar="cpu|cuda", help="Measure the net before and after there.")
@click.option("--batch", type=click.IntRange(min=1), metavar="N", help="For --latency.  [default: the net's]")
@runtime_options
@code_options
@input_shape_option
@click.option("--out", metavar="PREFIX", help="Of both files written.  [default: <snapshot>_shrunk beside it]")
@format_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def command(
    snapshot: str,
    input_shape: tuple[str, ...],
    out: str | None,
    form: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Cut out of a net what adds nothing to its outputs: filters, channels and neurons that are zero or constant or
    that nobody reads, branches of sums, and the borders of kernels.

    The net computes what it did, in the test phase. Writes PREFIX.prototxt and PREFIX.caffemodel, or .caffemodel.h5.
    """
    from forcereg.net.made import default_prefix
    from forcereg.report.progress import Shown
    from forcereg.workflows.shrink import shrink

    with Shown() as observer:
        made = shrink(snapshot, input_shapes=given_shapes(input_shape), observer=observer, **options)
        written = made.write(out or default_prefix(snapshot, "shrunk"), form)
    if as_json:
        echo(json.dumps({**made.report, **written}))
        return
    show(made.report)
    echo(f"wrote {written['model']} and {written['weights']}")


def show(report: dict[str, Any]) -> None:
    """Print the table, what is gone and what could not be cut, the times, and how equal the outputs are."""
    from forcereg.report.latency import times
    from forcereg.report.lowrank import costs, values
    from forcereg.report.table import Table, numeric, whole

    numbers = ("MACs before", "MACs after", "speed-up", "params before", "params after")
    table = Table("layer", "type", whole("before"), whole("after"), *numeric(*numbers))
    for layer in report["layers"]:
        # what only works on channels follows from these
        if layer["macs_before"]:
            before, after = ("x".join(map(str, layer[key] or ())) or "gone" for key in ("before", "after"))
            table.row(layer["name"], layer["type"], before, after, *costs(layer), *values(layer))
    table.section()
    nets = {"whole net": report["net"]}
    if report["train_net"] is not None:
        nets = {"whole net, TEST": report["net"], "whole net, TRAIN": report["train_net"]}
    for name, cost in nets.items():
        table.row(name, "", "", "", *costs(cost), *values(cost))
    table.show()
    if report["gone"]:
        echo(f"gone: {', '.join(report['gone'])}")
    for name, reason in report["whole"].items():
        echo(f"left as it is: {name}: {reason}")
    for line in report["remarks"]:
        echo(line)
    if (measured := report.get("latency")) is not None:
        net = measured["net"]
        before, after, ratio = times(net["ms_before"], net["ms_after"])
        batch = "the net's batch" if measured["batch"] is None else f"batch {measured['batch']}"
        echo(f"{before} ms before, {after} ms after, {ratio}: forward passes on {measured['device']}, {batch}")
    if report["difference"] is not None:
        echo(f"outputs for random data, in float64: equal to {report['difference']:.1e}")
