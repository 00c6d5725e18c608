"""`forcereg configs`: list the shipped files, and copy them to where they can be edited and run."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import click

from forcereg.errors import ForceregError, did_you_mean
from forcereg.system.files import differs, write_bytes
from forcereg.system.shipped import Shipped, configs_dir, shipped_configs
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
    files = list(shipped_configs())
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
    chosen = choose(patterns)
    targets = [dest / file.path for file in chosen]
    if not force:
        refuse_overwriting(chosen, targets)
    for file, target in zip(chosen, targets, strict=True):
        copy_file(configs_dir() / file.path, target)
        echo(str(target))


def choose(patterns: tuple[str, ...]) -> list[Shipped]:
    """The shipped files that any pattern names, all without patterns; ForceregError if one names none."""
    files = list(shipped_configs())
    for pattern in patterns:
        if not any(matches(file, pattern) for file in files):
            known = [file.path.as_posix() for file in files]
            hint = did_you_mean(pattern, known) or "; `forcereg configs` lists them"
            raise ForceregError(f"no shipped file matches {pattern!r}{hint}")
    return [file for file in files if not patterns or any(matches(file, pattern) for pattern in patterns)]


def matches(file: Shipped, pattern: str) -> bool:
    """True if `pattern` is the file's path, a folder it lies in, or a wildcard pattern of either."""
    pattern = pattern.rstrip("/")
    names = [file.path, *file.path.parents[:-1]]
    return any(fnmatchcase(name.as_posix(), pattern) for name in names)


def refuse_overwriting(files: list[Shipped], targets: list[Path]) -> None:
    """ForceregError for the first target that exists with other content; nothing is copied then."""
    for file, target in zip(files, targets, strict=True):
        if differs(target, (configs_dir() / file.path).read_bytes()):
            raise ForceregError(f"{target}: exists and differs from the shipped file; give --force to overwrite it")


def copy_file(source: Path, target: Path) -> None:
    """Copy one file, making its folder; ForceregError if the file system refuses."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ForceregError(f"{target}: cannot be written ({error.strerror})") from error
    write_bytes(target, source.read_bytes())
