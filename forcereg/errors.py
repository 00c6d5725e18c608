"""User-facing errors: one clear line each, turned into an exit code by the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import SupportsFloat

LONGEST = 1000
"""Characters of an error; of a longer one the middle is left out."""


class ForceregError(Exception):
    """Bad input, stated in one line: where (file, line or layer), what was found, what was expected.

    Whatever the input was: what would break the line is escaped, and what is too long is cut. The command line prints
    it without a traceback and exits with `exit_code`.

    >>> try:
    ...     forcereg.load_net("none.prototxt")
    ... except forcereg.ForceregError as error:
    ...     print(error)
    none.prototxt: no such file; did you mean "net.prototxt"?
    """

    exit_code = 1

    def __init__(self, text: str = "") -> None:
        # before, to spare the work on megabytes; behind, because escapes are longer
        super().__init__(_cut(printable(_cut(text))))


def _cut(text: str) -> str:
    # the end stays too, where the fix stands
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 300]} ... {text[-290:]}"


def printable(text: str) -> str:
    """`text` on one line: line breaks, control characters and the like as backslash sequences."""
    # looked at as a whole first: nearly every text is
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def storable(path: object) -> str:
    """A path as text that prototxts and snapshots can hold. Raises ForceregError for one that isn't UTF-8."""
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ForceregError(f"'{text}' is no UTF-8, as paths in nets, solvers and states must be; rename it") from None
    return text


class UsageError(ForceregError):
    """A command or function was called wrongly: options that exclude each other, a missing argument.

    >>> try:
    ...     forcereg.draw("net.prototxt", "net.gif")
    ... except forcereg.UsageError as error:
    ...     print(error)
    OUT is 'net.gif'; expected a name that ends in .svg, .png, .pdf, .dot or .txt
    """

    exit_code = 2


def did_you_mean(found: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """'; did you mean "x"?' for the nearest known name, or '' if none is near (`cutoff`, of 1 for equal ones)."""
    if (
        not isinstance(found, str) or len(found) > LONGEST
    ):  # no slip of the pen, and comparing takes a hundred times its memory
        return ""
    known = list(known)
    folded = {name.lower(): name for name in known}
    near = difflib.get_close_matches(found.lower(), folded, n=1, cutoff=cutoff)
    return f'; did you mean "{folded[near[0]]}"?' if near else ""


def slip(found: str, known: Iterable[str]) -> str:
    """'; did you mean "x"?' for a known name of which `found` is a misspelling by one or two letters, or ''.

    A letter may be wrong, missing, too much, or exchanged with the next; of short names one may be, of the shortest
    (two letters) none.
    Case doesn't count, and endings that both names have (`_param`) make neither longer. A known name with a digit
    behind it is another (`ReLU6`, `Pooling3D`).
    """
    if len(found) > LONGEST:
        return ""
    best, name = 3, ""
    for one in known:
        left, right = found.lower(), one.lower()
        if left.endswith("_param") and right.endswith("_param"):
            left, right = left.removesuffix("_param"), right.removesuffix("_param")
        if left.startswith(right) and left[len(right) : len(right) + 1].isdigit():
            continue
        short = min(len(left), len(right))
        most = min(best - 1, 0 if short < 3 else 1 if short < 6 else 2)
        # lengths first: counting edits takes their product
        if abs(len(left) - len(right)) <= most and (edits := _edits(left, right)) <= most:
            best, name = edits, one
    return f'; did you mean "{name}"?' if name else ""


def _edits(left: str, right: str) -> int:
    """Letters to change, insert, remove or exchange with the next, from one word to the other."""
    before: list[int] = []
    last = list(range(len(right) + 1))
    for i, letter in enumerate(left, 1):
        row = [i]
        for j, other in enumerate(right, 1):
            row.append(min(row[-1] + 1, last[j] + 1, last[j - 1] + (letter != other)))
            if i > 1 and j > 1 and letter == right[j - 2] and left[i - 2] == other:
                row[-1] = min(row[-1], before[j - 2] + 1)
        before, last = last, row
    return last[-1]


def check_share(what: str, value: float) -> None:
    """Raises UsageError unless a number is from 0 to 1; `what` it is opens the line."""
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        raise UsageError(f"{what} is {value!r}; expected a number, 0 to 1")
    if not 0 <= value <= 1:
        raise UsageError(f"{what} is {value:g}; expected 0 to 1")


class Fatal(ForceregError, RuntimeError):
    """What Caffe's Python interface raises where Caffe would have ended the process; scripts catch RuntimeError."""


class UserCodeError(ForceregError):
    """What users' own code, such as a Python layer, raised, which is the cause."""
