"""What protobuf's parser does not tell about a prototxt: where layers start, which block is left open."""

from __future__ import annotations

import re
from dataclasses import dataclass

from forcereg.errors import ForceregError, printable

_FIRST = ("layer", "layers", "input")
MAX_DEPTH = 64  # Caffe's deepest message is 7 down; this only keeps hostile input from exhausting the stack

_TOKEN = re.compile(
    r"""
      (?P<comment> \#[^\n]* )
    | (?P<string> "[^"\\\n]*(?:\\.[^"\\\n]*)*+"? | '[^'\\\n]*(?:\\.[^'\\\n]*)*+'? )
    | (?P<word> [\w.+-]+ )
    | (?P<open> [{<] )
    | (?P<close> [}>] )
    """,
    re.VERBOSE,
)
_HIDDEN = re.compile(r"\r+[^\r]*\S")  # behind old Mac line ends
# backslash sequences that the runtime would keep as they are, with a warning from inside Python's codecs
_ESCAPE = re.compile(r"""\\(?:(?P<octal>[4-7][0-7]{2})|[abfnrtv0-7xuU'"\\]|(?P<other>.))""")


@dataclass(frozen=True)
class Scan:
    """Lines, counted from 1."""

    layer_lines: tuple[int, ...]
    """Where each top-level `layer` or `layers` block starts."""
    first: dict[str, int]
    """Where the first `layer`, `layers` and `input` of the file start."""
    unclosed: int | None
    """Where the innermost block still open at the end starts; None if all are closed."""


def position(text: str, offset: int) -> str:
    """'line:column', both 1-based, of the character at `offset`."""
    return f"{text.count(chr(10), 0, offset) + 1}:{offset - text.rfind(chr(10), 0, offset)}"


def shown(text: str, limit: int = 40) -> str:
    """`text` fit for an error message: cut to `limit` characters, on one line."""
    return printable(text if len(text) <= limit else text[: limit - 3] + "...")


def scan(text: str, name: str) -> Scan:
    """What `text` looks like to a reader who knows brackets, strings and comments only.

    Raises ForceregError (file, line, column) for blocks nested too deep, for unknown escapes in strings, for what a
    lone CR hides in a comment, and for half a character pair, as os.fsdecode leaves them: it crashes protobuf.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ForceregError(f"{name}:{position(text, error.start)}: a character that is not UTF-8") from None
    starts: list[int] = []
    first: dict[str, int] = {}
    opened: list[int] = []
    word, word_at = "", -1
    for match in _TOKEN.finditer(text):
        kind, at = match.lastgroup, match.start()
        if kind == "string":
            if "\\" in match[0]:
                _check_escapes(match[0], at, text, name)
        elif kind == "comment":
            if "\r" in match[0]:
                _check_comment(match[0], at, text, name)
        elif kind == "word" and not opened:
            word, word_at = match[0], at
            if word in _FIRST:
                first.setdefault(word, at)
        elif kind == "open":
            if not opened and word in ("layer", "layers"):
                # in `layer: [{...}, {...}]` the word stands only before the first
                starts.append(word_at if word_at >= 0 else at)
                word_at = -1
            opened.append(at)
            if len(opened) > MAX_DEPTH:
                raise ForceregError(f"{name}:{position(text, at)}: blocks are nested more than {MAX_DEPTH} deep")
        elif kind == "close":
            if not opened:  # the parser gets no further than here either
                break
            opened.pop()
    unclosed = _lines(text, opened[-1:])[0] if opened else None
    return Scan(_lines(text, starts), {word: _lines(text, [at])[0] for word, at in first.items()}, unclosed)


def _check_escapes(string: str, start: int, text: str, name: str) -> None:
    for match in _ESCAPE.finditer(string):
        if match["octal"] or match["other"]:
            where = position(text, start + match.start())
            raise ForceregError(
                f'{name}:{where}: "{shown(match[0])}" is no escape sequence; write "\\\\" for a backslash'
            )


def _check_comment(comment: str, start: int, text: str, name: str) -> None:
    if hidden := _HIDDEN.search(comment):
        raise ForceregError(
            f"{name}:{position(text, start + hidden.start())}: a carriage return (CR) ends no line, so that what is "
            "behind it is a comment too; save the file with line ends LF or CRLF"
        )


def _lines(text: str, offsets: list[int]) -> tuple[int, ...]:
    lines, line, done = [], 1, 0
    for offset in offsets:
        line += text.count("\n", done, offset)
        done = offset
        lines.append(line)
    return tuple(lines)
