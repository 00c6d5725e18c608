"""The nets, solvers and rank configs that forcereg ships: `forcereg configs`."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from forcereg.errors import ForceregError, did_you_mean
from forcereg.system import shipped
from forcereg.system.arguments import checked
from forcereg.system.events import Observer, Tell
from forcereg.system.files import differs, write_bytes
from forcereg.system.paths import StrPath, listed
from forcereg.system.shipped import Shipped, configs_dir


def shipped_configs() -> list[Shipped]:
    """The nets, solvers and rank configs that forcereg ships, by path.

    Each has `.path`, relative to the folder that `copy_configs` fills, `.kind`, "net", "solver" or "ranks", and
    `.description`.

    >>> [config.path.name for config in forcereg.shipped_configs() if config.kind == "solver"][:2]
    ['cifar10_full_force_solver.prototxt', 'cifar10_full_solver.prototxt']
    """
    return list(shipped.shipped_configs())


@checked
def copy_configs(
    dest: StrPath,
    patterns: str | Sequence[str] = (),
    *,
    force: bool = False,
    observer: Observer | None = None,
) -> list[Path]:
    """Copies the shipped files to the folder `dest`, all or those that a pattern names; the paths written.

    A pattern is a path as `shipped_configs` lists it, a folder (examples/mnist), or has wildcards ("*resnet20*"). The
    folders are kept, so that the solvers find their nets. Raises ForceregError for a pattern that names none and,
    before anything is written, for a file that is there and differs unless `force`.

    >>> for path in forcereg.copy_configs("mine", ["*/lenet_solver.prototxt"]):
    ...     print(path.as_posix())
    mine/examples/mnist/lenet_solver.prototxt
    """
    tell = Tell(observer)
    chosen = choose(listed(patterns))
    targets = [Path(dest) / file.path for file in chosen]
    if not force:
        refuse_overwriting(chosen, targets)
    for file, target in zip(chosen, targets, strict=True):
        copy_file(configs_dir() / file.path, target)
        tell.note(str(target))
    return targets


def choose(patterns: Sequence[str]) -> list[Shipped]:
    """The shipped files that any pattern names, all without patterns; ForceregError if one names none."""
    files = shipped_configs()
    for pattern in patterns:
        if not any(matches(file, pattern) for file in files):
            known = [file.path.as_posix() for file in files]
            hint = did_you_mean(pattern, known) or "; `forcereg configs` lists them"
            raise ForceregError(f"no shipped file matches {pattern!r}{hint}")
    return [file for file in files if not patterns or any(matches(file, pattern) for pattern in patterns)]


def matches(file: Shipped, pattern: str) -> bool:
    """True if `pattern` is the file's path, a folder it lies in, or a wildcard pattern of either."""
    pattern = pattern.rstrip("/")
    # the last parent is ".", in which all lie
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
