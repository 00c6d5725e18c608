"""Numbers as users write them that Caffe's text format has not, and what to write."""

from __future__ import annotations

import math
import re

from google.protobuf.descriptor import FieldDescriptor

INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}
"""Kind of a field -> its least and largest value."""
FLOATS = (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE)
_LONGEST = 40


def repeats(field: object) -> bool:
    """Whether a field may be given several times, asked in the way that old and new runtimes know."""
    known = getattr(field, "is_repeated", None)
    return bool(known) if known is not None else field.label == field.LABEL_REPEATED  # type: ignore[attr-defined]


def number_fix(token: str, limits: tuple[int, int] | None = None) -> str:
    """'; write 10 (or 8)' for the number that is meant by a token; '' if it is none, or outside the limits.

    `limits`: those of an integer; None: any number does.
    """
    bare = token.strip("\"'").replace("_", "")
    # int() of a very long one would take long
    if not bare or len(bare) > _LONGEST:
        return ""
    # protobuf takes a leading 0 for octal, and most who write one don't mean that
    if re.fullmatch("-?0[0-9]+", bare):
        plain = int(bare)
        octal = int(bare, 8) if re.fullmatch("-?[0-7]+", bare) else plain
        return f"; write {plain}" + (f" (or {octal})" if octal != plain else "") if _fits(plain, limits) else ""
    try:
        # 0x10 and 0b1 as Python reads them
        value = float(int(bare, 0))
    except ValueError:
        value = _real(bare)
    if not math.isfinite(value) or (limits and value != int(value)) or not _fits(value, limits):
        return ""
    # beyond 1e15 digits would be shown that a double hasn't
    number = str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.9g}"
    return f"; write {number}" if number != token else ""


def _real(text: str) -> float:
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return math.nan


def _fits(value: float, limits: tuple[int, int] | None) -> bool:
    return limits is None or limits[0] <= value <= limits[1]
