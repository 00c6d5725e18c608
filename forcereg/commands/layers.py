"""forcereg layers"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from forcereg.commands.options import import_option

if TYPE_CHECKING:
    from forcereg.support import Support


@click.command(epilog="\b\nExample: forcereg layers --markdown")
@click.option("--markdown", "style", flag_value="markdown", help="Print a Markdown table.")
@click.option("--json", "style", flag_value="json", help="Print one JSON list.")
@import_option
def command(style: str | None) -> None:
    """List every layer type that runs, with the parameters it reads and its limits; installed packages' ones too."""
    from forcereg.support import markdown, supported

    rows = supported()
    if style == "markdown":
        click.echo(markdown(rows), nl=False)
    elif style == "json":
        click.echo(json.dumps([row.__dict__ for row in rows]))
    else:
        show(rows)


def show(rows: list[Support]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table("type", Column("parameters", overflow="fold"), Column("limits", overflow="fold"), show_lines=True)
    for row in rows:
        params = "\n".join(f"{name}: {', '.join(fields)}" for name, fields in row.params.items())
        table.add_row(escape(row.type), params, escape(row.limits))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
