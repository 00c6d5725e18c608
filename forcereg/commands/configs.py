"""`forcereg configs`: list the shipped files, and copy them to where they can be edited and run."""

from __future__ import annotations

from pathlib import Path

import click

from forcereg.commands.telling import lines
from forcereg.system.terminal import echo


@click.group(invoke_without_command=True, epilog="\b\nExample: forcereg configs copy . examples/mnist")
@click.pass_context
def command(context: click.Context) -> None:
    """List the nets, solvers and rank configs that forcereg ships.

    Each path is relative to the folder that `forcereg configs copy` fills.
    """
    if context.invoked_subcommand is None:
        list_configs()


def list_configs() -> None:
    """Print one line per file: path, kind, what it is for."""
    from forcereg.workflows.configs import shipped_configs

    files = shipped_configs()
    width = max(len(file.path.as_posix()) for file in files)
    for file in files:
        echo(f"{file.path.as_posix():<{width}}  {file.kind:<6}  {file.description}")


@command.command(epilog="\b\nExample: forcereg configs copy . examples/mnist")
@click.argument("dest", type=click.Path(file_okay=False, path_type=Path))
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1)
@click.option("--force", is_flag=True, help="Overwrite files that exist and differ.")
def copy(dest: Path, patterns: tuple[str, ...], force: bool) -> None:
    """Copy the shipped files to DEST, all or those that a PATTERN names.

    A PATTERN is a path as `forcereg configs` lists it, a folder (examples/mnist), or has wildcards
    ("*resnet20*"). The folders are kept, so that the solvers find their nets: run them with DEST as the
    working directory, or from anywhere by their path.
    """
    from forcereg.workflows.configs import copy_configs

    copy_configs(dest, patterns, force=force, observer=lines)
