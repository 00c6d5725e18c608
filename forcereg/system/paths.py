"""Where files named in solvers and nets are looked for.

A relative path is taken from the *root*: the working directory, if the net that the solver names exists
there; else the nearest folder, from the solver file's own upwards, in which it does. So a solver that says
`net: "examples/mnist/lenet.prototxt"` works from any directory, wherever its tree lies. The named net is
`net`, `train_net` or `test_net`; for a net without a solver (`--model`) the first data `source` stands in.
`source`, `mean_file` and `snapshot_prefix` use the same root.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, overload

from forcereg.errors import ForceregError

StrPath = str | os.PathLike[str]


@overload
def listed(given: str | Iterable[str]) -> list[str]: ...
@overload
def listed(given: StrPath | Iterable[StrPath]) -> list[StrPath]: ...
def listed(given: Any) -> Any:
    """One name or path, or several, as a list: a string alone would be taken for its letters."""
    return [given] if isinstance(given, str | os.PathLike) else list(given)


def find_root(named: str, naming_file: str | Path | None) -> Path:
    """The folder that relative paths start from, absolute (module docstring).

    `named`: the path written in `naming_file` (None if there is no file). The working directory if `named` is
    empty, absolute, or in none of the folders.
    """
    here = Path.cwd()
    # the working directory first, as Caffe has only that
    if os.path.isabs(named) or os.path.exists(here / named) or naming_file is None:
        return here
    # abspath, not resolve: a linked solver belongs to the folder in which the user sees it
    folders = Path(os.path.abspath(naming_file)).parents
    return next((folder for folder in folders if os.path.exists(folder / named)), here)


def resolve(root: Path, path: str) -> Path:
    """`path` seen from `root`; absolute paths stay. Raises ForceregError for a path that no system has."""
    if "\0" in path:
        raise ForceregError(f"the path '{path}' holds a NUL character; correct it")
    return root / path


def snapshot_prefix(root: Path, prefix: str, solver_file: str | Path) -> Path:
    """`prefix` from `root`, which snapshots' names begin with; if it is a folder, the solver's stem in it."""
    path = resolve(root, prefix)
    if prefix.endswith("/") or os.path.isdir(path):
        return path / Path(solver_file).stem
    return path


def learned_nets(root: Path, learned_net: str, state_path: str | Path) -> list[Path]:
    """Files that a solver state may name as its weights: as written, under the root, and beside the state.

    Each file once. Raises ForceregError naming all three places if there is none.
    """
    written = Path(learned_net)
    # beside the state last: that is where both are when a run's folder has been moved
    tried = [written, resolve(root, learned_net), Path(state_path).parent / written.name]
    found: dict[str, Path] = {}
    for path in tried:
        if os.path.isfile(path):
            found.setdefault(os.path.realpath(path), path)
    if found:
        return list(found.values())
    places = ", ".join(str(path) for path in dict.fromkeys(tried))
    raise ForceregError(f"{state_path}: its weights file (learned_net) is in none of these places: {places}")
