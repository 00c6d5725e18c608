"""forcereg summary"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from forcereg.commands.options import code_options, given_shapes, net_options
from forcereg.system.terminal import echo

if TYPE_CHECKING:
    from forcereg.net.summary import Summary


@click.command(epilog="\b\nExample: forcereg summary configs/models/alexnet/deploy.prototxt")
@click.argument("net", metavar="NET", type=click.Path())
@net_options
@code_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def command(
    net: str, phase: str, level: int, stage: str, input_shape: tuple[str, ...], allow_python_layers: bool, as_json: bool
) -> None:
    """Print a net's layers: output shapes, parameters, multiply-accumulates (MACs), memory of the outputs."""
    from forcereg.workflows.summary import summary

    found = summary(
        net, phase=phase, level=level, stage=stage, input_shapes=given_shapes(input_shape),
        allow_python_layers=allow_python_layers,
    )  # fmt: skip
    echo(json.dumps(found.report())) if as_json else show(found)


def show(summary: Summary) -> None:
    """Print the table and the totals."""
    from forcereg.net.summary import size
    from forcereg.report.table import Table, numeric, whole

    title = f"{summary.name or 'net'}, phase {summary.phase}, batch {summary.batch}"
    table = Table("layer", "type", whole("output"), *numeric("params", "MACs", "memory"), title=title)
    for row in summary.rows:
        shapes = ["x".join(map(str, shape)) or "scalar" for shape in row.tops.values()]
        params = f"{amount(row.params)} ({row.borrowed:,})".strip() if row.borrowed else amount(row.params)
        table.row(row.name, row.type, shapes, params, amount(row.macs), size(row.memory))
    table.section()
    table.row("total", "", "", amount(summary.params), amount(summary.macs), size(summary.memory))
    table.show()
    echo(f"{summary.params:,} parameters ({size(4 * summary.params) or '0 B'})" + statistics(summary))
    if any(row.borrowed for row in summary.rows):
        echo("parameters in brackets are an earlier layer's, shared by name")
    echo("MACs are for one item, memory for the outputs of the whole batch")


def statistics(summary: Summary) -> str:
    """What is to be said of values that are gathered, not learned."""
    return f" and {summary.statistics:,} statistics" if summary.statistics else ""


def amount(count: int) -> str:
    """A count with thousands separators; nothing for none."""
    return f"{count:,}" if count else ""
