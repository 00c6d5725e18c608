"""Everything that is wrong with a prototxt, and what is left of it without that: what `forcereg check` goes on with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from forcereg.errors import ForceregError
from forcereg.schema.diagnose import UNCLOSED, error_offset, explain
from forcereg.schema.fields import Field, read_fields
from forcereg.schema.foreign import parsed
from forcereg.schema.place import CLOSING, OPENING, tokens
from forcereg.schema.scan import scan

Tell = Callable[[ForceregError], object]

MOST = 100
"""Problems of a file that are told; one with more is another file than was meant."""
LARGEST = 4 << 20
"""Characters of a text that is looked through whole: its fields take hundreds of times the memory."""
_LAYERS = ("layer", "layers")
_START = re.compile(r"^[ \t]*(layers?)[ \t]*:?[ \t]*[{<]", re.MULTILINE)
_RULE = re.compile(r"\b(?:include|exclude)\s*:?\s*\{[^{}#\"']*(?:\"[^\"\n]*\"[^{}#\"']*)*\}")
_KEPT = frozenset({"name", "type", "top", "bottom"})


def mended(text: str, kind: Callable[[], Any], name: str, tell: Tell) -> tuple[str, frozenset[int]]:
    """The text with blanks for what is wrong with it, and the lines where the layers begin that lack something so.

    Every problem is told, in one line. Of a field that is unknown or has no such value, only that is lost; of a layer
    whose brackets don't fit, all but its name, type, blobs and rules. A text of more than LARGEST stays as it is, for
    the first problem alone. Raises ForceregError for more than MOST problems, and as `scan`.
    """
    if len(text) > LARGEST:
        return text, frozenset()
    scan(text, name)
    if parsed(text, kind)[1] is None:
        return text, frozenset()
    survey = _Survey(kind, name, tell)
    broken = set()
    for start, end in _chunks(text):
        if parsed(text[start:end], kind)[1] is None:
            continue
        ahead = text[:start]
        lead = "\n" * ahead.count("\n") + " " * (start - ahead.rfind("\n") - 1)  # as long in lines and columns
        text = ahead + survey.repaired(lead + text[start:end])[len(lead) :] + text[end:]
        broken.add(lead.count("\n") + 1)
    return survey.repaired(text), frozenset(broken)  # fields that may stand there once stand in several chunks


class _Survey:
    def __init__(self, kind: Callable[[], Any], name: str, tell: Tell) -> None:
        self._kind, self._name, self._tell = kind, name, tell
        self._descriptor = kind().DESCRIPTOR
        self._told = 0

    def repaired(self, text: str) -> str:
        """A text of the same length and lines without problems; they are told."""
        while found := self._problem(text):
            offset, told = found
            self._told += 1
            if self._told > MOST:
                raise ForceregError(f"{self._name}: has more than {MOST} problems, of which the first are told")
            self._tell(ForceregError(told))
            shorter = _without(text, offset)
            # or the same problem would be found for ever
            text = shorter if shorter != text else _blank(text, 0, len(text))
        return text

    def _problem(self, text: str) -> tuple[int, str] | None:
        """Where the first problem is, and what."""
        _, error, foreign = parsed(text, self._kind)
        if error is None:
            return None
        unclosed = scan(text, self._name).unclosed
        # the parser tells of the end of the file, and the block to take out is the last one
        offset = len(text) if UNCLOSED.search(str(error)) else error_offset(error, foreign)
        return offset, explain(error, foreign, self._name, self._descriptor, unclosed)


def _chunks(text: str) -> list[tuple[int, int]]:
    """Parts that can be judged one by one: the outermost fields, or where brackets don't fit what begins as a layer."""
    fields, broken = read_fields(text)
    if broken is None and not any(_swallows(one) for one in fields):
        return [(one.at, one.end) for one in fields]
    found = list(_START.finditer(text))
    starts = [match.start(1) for match in found if match[1] == found[0][1]]  # `layers { layer {` is an old form
    return list(pairwise([0, *starts, len(text)]))


def _swallows(one: Field) -> bool:
    """Whether a layer holds the next one, because it isn't closed."""
    return one.name in _LAYERS and any(
        part.name == one.name or part.name == "layers" for block in one.blocks for part in block.fields
    )


def _without(text: str, offset: int) -> str:
    """The text without the field at `offset`, or without what can't be read there."""
    fields, broken = read_fields(text)
    path = _path(fields, offset)
    if path and path[-1].end and (len(path) > 1 or path[0].name not in _LAYERS):
        return _blank(text, path[-1].at, path[-1].end)
    if broken is None:
        return _salvaged(text)
    last = fields[-1] if fields and not fields[-1].end else None
    if last is not None and last.name in _LAYERS:
        return _salvaged(text)
    start = last.at if last is not None else broken
    end = text.find("\n", broken)
    line = text[start:end] if end >= 0 else text[start:]
    marks = [token for token, _ in tokens(line) if token in OPENING or token in CLOSING]
    fits = sum(mark in OPENING for mark in marks) == sum(mark in CLOSING for mark in marks)
    return _blank(text, start, start + len(line) if fits or last is None else len(text))


def _path(fields: Sequence[Field], offset: int) -> list[Field]:
    """The fields around `offset`, outermost first."""
    for one in fields:
        if one.at <= offset < (one.end or offset + 1):
            return [one, *(_path([part for block in one.blocks for part in block.fields], offset))]
    return []


def _salvaged(text: str) -> str:
    """Of a layer whose brackets don't fit: its name, type, blobs and rules. Of anything else, nothing."""
    stream = list(tokens(text))
    if len(stream) < 3 or stream[0][0] not in _LAYERS:
        return _blank(text, 0, len(text))
    # with a colon between, the bracket comes third
    head = next((at for token, at in stream[1:3] if token in OPENING), None)
    if head is None:
        return _blank(text, 0, len(text))
    kept, depth = [(stream[0][1], head + 1)], 0
    for index, (token, at) in enumerate(stream):
        if token in _KEPT and depth == 1 and len(stream) > index + 2 and stream[index + 1][0] == ":":
            value, where = stream[index + 2]
            # a string without its closing quote would take the rest along
            kept += [(at, where + len(value))] * (value[:1] not in "\"'" or value[-1] == value[0] != value)
        depth += (token in OPENING) - (token in CLOSING)
    kept += [match.span() for match in _RULE.finditer(text)]
    stop, done, pieces = len(text.rstrip()), 0, []
    for start, end in sorted(kept):
        if start >= done and end < stop:
            pieces += [_blank(text[done:start]), text[start:end]]
            done = end
    rest = _blank(text[done:])
    # one bracket in place of the last character: lines and length stay
    return "".join(pieces) + rest[: stop - done - 1] + "}" + rest[stop - done :]


def _blank(text: str, start: int = 0, end: int | None = None) -> str:
    """The text with blanks from `start` to `end`, lines as they were."""
    end = len(text) if end is None else end
    return text[:start] + re.sub(r"[^\n]", " ", text[start:end]) + text[end:]
