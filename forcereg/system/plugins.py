"""The users' own code: modules that they name, and layer types that installed packages offer.

A package offers a layer type by an entry point of the group `forcereg.layers`, whose value is a torch.nn.Module or
forcereg.Layer class:

    [project.entry-points."forcereg.layers"]
    Mish = "mypackage.layers:Mish"
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from forcereg.errors import ForceregError

LAYER_GROUP = "forcereg.layers"

_NOT_THEIRS = (
    *(f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], Path(importlib.__file__).parent)),
    "<frozen",
)


class _Late(MetaPathFinder):
    """Finds in the users' folders what is found nowhere else.

    At the end of Python's path they would come before packages without an __init__.py, as google of protobuf is.
    Names of Python's own library are never theirs: it asks for some that only other systems have.
    """

    def __init__(self) -> None:
        self.folders: list[str] = []

    def look_in(self, folders: Iterable[str]) -> None:
        self.folders += [folder for folder in dict.fromkeys(folders) if folder not in self.folders]
        if self not in sys.meta_path:
            sys.meta_path.append(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        # `path` is that of a package: its parts are found in it
        if path is not None or fullname in sys.stdlib_module_names:
            return None
        return PathFinder.find_spec(fullname, self.folders, target)


_late = _Late()
_named: list[str] = []
"""Modules that users have named, in order."""


def import_module(name: str, folders: Iterable[Path] = ()) -> ModuleType:
    """Imports a module that the user names, from Python's path, the working directory or `folders`, in this order.

    The folders stay, as PYTHONPATH's do: the module may import its neighbours when it runs.
    Raises ForceregError, one line, if there is no such module or it fails.
    """
    folders = [Path.cwd(), *folders]
    _late.look_in(map(str, folders))
    # a module written a moment ago isn't in the finders' lists of their folders yet
    importlib.invalidate_caches()
    try:
        found = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ForceregError(_why_not(name, error, folders)) from error
    _named.append(name)
    return found


def named_modules() -> list[str]:
    """Modules that users have named until now."""
    return list(dict.fromkeys(_named))


def _why_not(name: str, error: BaseException, folders: Iterable[Path]) -> str:
    if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        return f"'{name}' is not the name of a Python module; expected a name as in `import mylayers`"
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and f"{name}.".startswith(f"{missing}."):
        places = ", ".join(dict.fromkeys(map(str, folders)))
        return f"there is no Python module '{missing}' on Python's path or in {places}; correct the name or PYTHONPATH"
    return f"Python module '{name}' cannot be imported: {told(error)}"


def told(error: BaseException, file: str | None = None) -> str:
    """An exception of the user's code as one line: type, text, and where it arose (the last line in `file`, if any)."""
    if isinstance(error, ForceregError):
        return str(error)
    try:
        text = " ".join(str(error).split())
    except Exception:  # that of a class of theirs may fail, too
        text = ""
    frames = traceback.extract_tb(error.__traceback__)
    # the place in their code is what helps them, not where we or Python's import called it
    theirs = [frame for frame in frames if not frame.filename.startswith(_NOT_THEIRS)]
    shown = [frame for frame in theirs if frame.filename == file] or theirs
    place = f" ({Path(shown[-1].filename).name}:{shown[-1].lineno})" if shown else ""
    return type(error).__name__ + (f": {text}" if text else "") + place


def entry_point_layers() -> dict[str, EntryPoint]:
    """Layer type -> the entry point of the installed package that offers it. Nothing is imported."""
    return {point.name: point for point in entry_points(group=LAYER_GROUP)}


def load(point: EntryPoint) -> Any:
    """What an entry point names. Raises ForceregError, one line, if that cannot be imported."""
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        package = point.dist.name if point.dist else "an installed package"
        raise ForceregError(f"layer type '{point.name}' of {package} ({point.value}): {told(error)}") from error
