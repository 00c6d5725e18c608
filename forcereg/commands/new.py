"""forcereg new"""

from __future__ import annotations

from pathlib import Path

import click

from forcereg.commands.telling import lines
from forcereg.system.terminal import echo

KINDS = ("lenet", "cifar10_full", "resnet", "alexnet")


@click.command(epilog="\b\nExample: forcereg new resnet --n 9 experiments")
@click.argument("kind", metavar="|".join(KINDS), type=click.Choice(KINDS))
@click.argument("dest", type=click.Path(file_okay=False, path_type=Path), default=".")
@click.option(
    "--n", type=click.IntRange(1, 200), help="Blocks a group of resnet, which gets 6n + 2 layers.  [default: 3]"
)
@click.option("--force", "-f", is_flag=True, help="Overwrite files that exist and differ.")
def command(kind: str, dest: Path, n: int | None, force: bool) -> None:
    """Write a starter: a solver, its net with force set up, and the net for use, below DEST (the working directory).

    Paths in them start at DEST, so run the solver from there, or from anywhere by its path.
    """
    from forcereg.workflows.new import new

    made = new(kind, dest, n=n, force=force, observer=lines)
    echo(f"next, in {dest}: {made.data}, then forcereg train --solver {made.solver.relative_to(dest)}")
