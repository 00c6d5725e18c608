"""forcereg new"""

from __future__ import annotations

from pathlib import Path

import click

from forcereg.errors import ForceregError, UsageError
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
    from forcereg.schema.starter import STARTERS
    from forcereg.system.files import differs, write_text

    if n is not None and kind != "resnet":
        raise UsageError(f"--n is for resnet; {kind} has one size")
    starter = STARTERS[kind](n or 3) if kind == "resnet" else STARTERS[kind]()
    for path, text in starter.files.items():
        target = dest / path
        if target.is_dir():
            raise ForceregError(f"{target}: is a folder; choose another one for the starter")
        if not force and differs(target, text.encode()):
            raise ForceregError(f"{target}: exists and differs; give --force to overwrite it, or another folder")
    for path, text in starter.files.items():
        target = dest / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ForceregError(f"{target.parent}: cannot be made ({error.strerror}); choose another folder") from error
        write_text(target, text)
        echo(f"wrote {target}")
    solver = dest / next(iter(starter.files))
    echo(f"next, in {dest}: {starter.data}, then forcereg train --solver {solver.relative_to(dest)}")
