"""User-facing errors: one clear line each, turned into an exit code by the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ForceregError(Exception):
    """Bad input, stated in one line: where (file, line or layer), what was found, what was expected.

    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 1


class UsageError(ForceregError):
    """The command was called wrongly (flags that exclude each other, a missing argument)."""

    exit_code = 2


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """'; did you mean "x"?' for the nearest known name, or '' if none is near."""
    known = list(known)
    folded = {name.lower(): name for name in known}
    near = difflib.get_close_matches(found.lower(), folded, n=1, cutoff=0.6)
    return f'; did you mean "{folded[near[0]]}"?' if near else ""
