"""A starter: `forcereg new`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from forcereg.errors import ForceregError, UsageError, did_you_mean
from forcereg.schema.starter import STARTERS
from forcereg.system.arguments import checked
from forcereg.system.events import Observer, Tell
from forcereg.system.files import differs, write_text
from forcereg.system.paths import StrPath

MOST = 200
"""Blocks a group of a resnet; the command's option has the same bounds."""


@dataclass(frozen=True)
class Started:
    """A starter as written: `files`, the solver's first; `data`: the command that makes what they read."""

    files: list[Path]
    data: str

    @property
    def solver(self) -> Path:
        """The solver prototxt."""
        return self.files[0]


@checked
def new(
    kind: str,
    dest: StrPath = ".",
    *,
    n: int | None = None,
    force: bool = False,
    observer: Observer | None = None,
) -> Started:
    """Writes a solver, its net with force set up, and the net for use, below the folder `dest`.

    `kind`: "lenet", "cifar10_full", "resnet", whose `n` blocks a group (3) make 6n + 2 layers, or "alexnet". Paths in
    the files start at `dest`. The result has `.solver`, `.files`, all paths, and `.data`, the command that makes what
    they read, to be run in `dest`. Raises ForceregError, before anything is written, for a file that is there and
    differs unless `force`, and UsageError for another kind, or `n` of one that has one size.

    >>> made = forcereg.new("lenet", "mine")
    >>> print(made.solver.as_posix())
    mine/examples/mnist/lenet_force_solver.prototxt
    >>> made.data
    'forcereg data mnist IDX_DIR examples/mnist'
    """
    tell, folder = Tell(observer), Path(dest)
    if kind not in STARTERS:
        hint = did_you_mean(kind, STARTERS) or f"; expected {', '.join(STARTERS)}"
        raise UsageError(f"no starter is called '{kind}'{hint}")
    if n is not None and kind != "resnet":
        raise UsageError(f"--n is for resnet; {kind} has one size")
    if n is not None and not 1 <= n <= MOST:
        raise UsageError(f"n is {n}; expected 1 to {MOST}")
    starter = STARTERS[kind](n or 3) if kind == "resnet" else STARTERS[kind]()
    targets = [folder / path for path in starter.files]
    for target, text in zip(targets, starter.files.values(), strict=True):
        if target.is_dir():
            raise ForceregError(f"{target}: is a folder; choose another one for the starter")
        if not force and differs(target, text.encode()):
            raise ForceregError(f"{target}: exists and differs; give --force to overwrite it, or another folder")
    for target, text in zip(targets, starter.files.values(), strict=True):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ForceregError(f"{target.parent}: cannot be made ({error.strerror}); choose another folder") from error
        write_text(target, text)
        tell.note(f"wrote {target}")
    return Started(targets, starter.data)
