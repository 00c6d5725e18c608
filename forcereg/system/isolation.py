"""The working directory stays off Python's module path: a random.py there must not pass for the library's.

Whoever wants modules from there names them (--import, --allow-python-layers), which puts it last on the path.
"""

from __future__ import annotations

import os
import sys

_given: str | None = None
"""PYTHONPATH before anything was taken from it."""
HOME = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))


def leave_out_working_directory() -> None:
    """Takes from the path the entries that name whatever is the working directory, here and in processes started here.

    They come from `python -m` and from PYTHONPATH, where it has empty entries, "." or "./". They stay if forcereg
    itself was found by them.
    """
    try:
        here = os.path.realpath(os.getcwd())
    except OSError:  # it was deleted
        return
    if here == HOME:
        return
    global _given
    _given = os.environ.get("PYTHONPATH")
    given = (_given or "").split(os.pathsep)
    named = [entry for entry in given if os.path.normpath(entry) != os.curdir]
    if named != given and given != [""]:
        os.environ["PYTHONPATH"] = os.pathsep.join(named)
    if here in map(os.path.realpath, named):
        return
    # in front of the library only: what comes behind it can shadow nothing
    library = os.path.dirname(os.__file__)
    ours = sys.path.index(library) if library in sys.path else len(sys.path)
    sys.path[:ours] = [entry for entry in sys.path[:ours] if os.path.realpath(entry) != here]


def put_back() -> None:
    """PYTHONPATH as it was given, here and for processes started here, for a program of the user's own."""
    if not _given:
        return
    os.environ["PYTHONPATH"] = _given
    here = os.getcwd()
    if here not in sys.path and any(os.path.normpath(entry) == os.curdir for entry in _given.split(os.pathsep)):
        sys.path.insert(0, here)


def python() -> list[str]:
    """The command line of this Python with a module path as it has here: `[*python(), "-m", "forcereg"]`."""
    found_there = os.path.realpath(os.getcwd()) == HOME
    # -P: python -m would put the working directory back in front
    return [sys.executable] if found_there else [sys.executable, "-P"]
