"""forcereg layers"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from forcereg.commands.options import import_option
from forcereg.system.terminal import echo

if TYPE_CHECKING:
    from forcereg.net.support import Support


@click.command(epilog="\b\nExample: forcereg layers --markdown")
@click.option("--markdown", "style", flag_value="markdown", help="Print a Markdown table.")
@click.option("--json", "style", flag_value="json", help="Print one JSON list.")
@import_option
def command(style: str | None) -> None:
    """List every layer type that runs, with parameters, operators in ONNX and limits; of installed packages too."""
    from forcereg.net.support import markdown
    from forcereg.workflows.layers import layer_types

    rows = layer_types()
    if style == "markdown":
        echo(*markdown(rows).splitlines())
    elif style == "json":
        echo(json.dumps([row.__dict__ for row in rows]))
    else:
        show(rows)


def show(rows: list[Support]) -> None:
    """Print the table."""
    from forcereg.report.table import Column, Table, whole

    table = Table(whole("type"), Column("parameters", "text"), Column("ONNX", "text"), Column("limits", "text"))
    for row in rows:
        table.row(
            row.type,
            [f"{name}: {', '.join(fields)}" if fields else name for name, fields in row.params.items()],
            row.onnx,
            row.limits,
        )
        table.section()
    table.show(most=160)
