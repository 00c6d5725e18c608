"""Files that one process holds at a time, on machines that share the folder too; who dies lets go."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from forcereg.system.files import refused


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Holds a file, made if there is none, until the block ends, once nobody else does.

    Raises ForceregError if the system refuses.
    """
    try:
        file = open(path, "ab")  # noqa: SIM115 (closed below; errors of the block aren't the file's)
    except OSError as error:
        raise refused(path, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise refused(path, error) from None
        yield


def is_held(path: Path) -> bool:
    """Whether a process holds a file now. Raises FileNotFoundError if there is none."""
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
