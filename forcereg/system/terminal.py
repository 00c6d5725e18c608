"""The standard streams: where all that forcereg says goes, whatever state they are in and whatever it is made of.

Names come from files of strangers, so that `echo`, and what else prints, escapes what isn't to be shown; what a stream
can't encode comes as escapes too. Results are what standard output is for: not to write them is an error. A log,
progress and warnings may fail, the work goes on.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any

from forcereg.errors import ForceregError, printable

WIDE = 1000
"""Columns where nobody looks at it, behind a pipe."""


def echo(*lines: str, err: bool = False) -> None:
    """Writes each as one line to standard output, or standard error."""
    stream = sys.stderr if err else sys.stdout
    stream.write("".join(f"{printable(line)}\n" for line in lines))
    stream.flush()


def log_line(text: str) -> str:
    """`text` on one line; tabs, which Caffe's own lines have, stay."""
    return "\t".join(map(printable, text.split("\t")))


def console(err: bool = False) -> Any:
    """rich's console, as wide as the terminal; behind a pipe, where rich takes 80 columns for granted, `WIDE`."""
    from rich.console import Console

    stream = sys.stderr if err else sys.stdout
    return Console(stderr=err, width=None if stream.isatty() else WIDE)


def on_terminal() -> bool:
    """Whether progress can be shown: standard error is a terminal that isn't dumb."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def bar(*columns: Any) -> Any:
    """rich's Progress with these columns, gone once it is done."""
    from rich.progress import Progress

    return Progress(*columns, console=console(err=True), transient=True)


def prepare() -> None:
    """Makes the process's standard streams such that they can be used: call it first.

    A closed one becomes the null device: a file opened in its place would get what is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 (open as long as the process is)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        # a stream that a test or a program has put there is left alone
        if stream is None or (stream is getattr(sys, f"__{name}__") and _is_plain(stream)):
            setattr(sys, name, _text_stream(number, None if stream is None else stream.encoding))


def lost() -> OSError | None:
    """Why standard error couldn't be written to, None while all is well."""
    found = getattr(getattr(sys.stderr, "buffer", None), "raw", None)
    return found.lost if isinstance(found, _Descriptor) else None


def _is_plain(stream: Any) -> bool:
    """Whether it writes to its descriptor without anything between, as Windows's console has."""
    buffer = getattr(stream, "buffer", None)
    return type(getattr(buffer, "raw", buffer)) is io.FileIO


def _text_stream(number: int, encoding: str | None) -> io.TextIOWrapper:
    buffer = io.BufferedWriter(_Descriptor(number))
    # a log shows what has happened by now; results in a pipe may wait for a full buffer
    lines = number == 2 or os.isatty(number)
    return io.TextIOWrapper(buffer, encoding or "utf-8", "backslashreplace", line_buffering=lines)


class _Descriptor(io.FileIO):
    """A standard stream's descriptor; `lost` is why it couldn't be written to, if so.

    Of standard output that is raised once, as ForceregError or, where nobody reads any more, BrokenPipeError, and
    what comes behind is dropped, so that leaving has nothing left to fail at. Standard error is tried again each time.
    """

    def __init__(self, number: int) -> None:
        # the descriptor stays the process's: nothing else may get its number
        super().__init__(number, "w", closefd=False)
        self.lost: OSError | None = None

    def write(self, data: Any) -> int:
        if self.lost is not None and self.fileno() == 1:
            return len(data)
        try:
            while (written := super().write(data)) is None:  # the other end made it non-blocking
                select.select([], [self], [])
            return written
        except OSError as error:
            self.lost = error
            if self.fileno() != 1:
                return len(data)
            # whoever read has seen enough, as `head` has
            if isinstance(error, BrokenPipeError):
                raise
            cause = str(error.strerror).lower()
            raise ForceregError(f"cannot write to standard output: {cause}; give it room or another place") from None
