"""The bytes of a text file as text, and what files are that hold something else than was expected."""

from __future__ import annotations

import re

from forcereg.errors import ForceregError
from forcereg.schema.scan import position

_WIDE = (  # by their marks, the longer first
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_WITHOUT_MARK = (  # what letters of two or four bytes look like
    (re.compile(rb"(?:[\t\n\r -~]\0\0\0){2}"), "UTF-32"),
    (re.compile(rb"(?:\0\0\0[\t\n\r -~]){2}"), "UTF-32"),
    (re.compile(rb"(?:[\t\n\r -~]\0){4}"), "UTF-16"),
    (re.compile(rb"(?:\0[\t\n\r -~]){4}"), "UTF-16"),
)
_KINDS = (
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", ""),
    (rb"\s*<(?:!doctype\b|html\b|head\b|body\b)", "a web page", "; save the file itself (on GitHub: Raw)"),
    (rb"\s*<(?:\?xml|svg)\b", "an XML file", ""),
    (
        rb"\s*\d\d\d:? (?:Not Found|Forbidden)\b",
        "a web server's answer",
        "; correct the address that it was loaded from",
    ),
    (rb"version https://git-lfs\.github\.com/", "a Git LFS pointer", "; fetch the file itself by `git lfs pull`"),
    (rb"(?:diff --git|--- \S+[^\n]*\n\+\+\+) ", "a diff", "; apply it to the file that it changes"),
    (rb"%PDF-", "a PDF file", ""),
    (rb"\{\\rtf", "a text with formats (RTF)", "; save it as plain text"),
    (rb"\x89PNG\r\n", "a PNG image", ""),
    (rb"\xff\xd8\xff", "a JPEG image", ""),
    (rb"\x1f\x8b", "a gzip file", "; unpack it first"),
    (rb"BZh\d1AY", "a bzip2 file", "; unpack it first"),
    (rb"\xfd7zXZ", "an xz file", "; unpack it first"),
    (rb"PK\x03\x04", "a zip file (a PyTorch model?)", ""),
    (rb"\x7fELF", "a program", ""),
)
_KNOWN = tuple((re.compile(pattern, re.IGNORECASE), kind, fix) for pattern, kind, fix in _KINDS)
_COMMENT = re.compile(rb"""#[^\n]*|"[^"\\\n]*(?:\\.[^"\\\n]*)*+"?|'[^'\\\n]*(?:\\.[^'\\\n]*)*+'?""")
"""A comment, or a string, which may hold a #."""
_QUOTES_1252 = {0x91: "'", 0x92: "'", 0x93: '"', 0x94: '"'}


def check_kind(data: bytes, name: str, expected: str) -> None:
    """Raises ForceregError for content that is evidently of another kind than `expected` (a phrase)."""
    for pattern, kind, fix in _KNOWN:
        # from the beginning only: any text may mention HTML further down
        if match := pattern.match(data):
            line = data.count(b"\n", 0, match.end()) + 1
            # lines and columns mean nothing in a binary file
            place = "" if b"\0" in data[:1000] or not data[:1].isascii() else f":{line}:1"
            raise ForceregError(f"{name}{place}: {kind}, expected {expected}{fix}")


def check_width(data: bytes, name: str) -> None:
    """Raises ForceregError for text in UTF-16 or UTF-32, with or without a mark."""
    marked = next((coding for mark, coding in _WIDE if data.startswith(mark)), None)
    coding = marked or next((coding for pattern, coding in _WITHOUT_MARK if pattern.match(data)), None)
    if coding:
        raise ForceregError(f"{name}:1:1: text in {coding}, expected UTF-8; save the file as UTF-8 (without NULs)")


def decode_text(data: bytes, name: str) -> str:
    """The text of a file, a byte order mark left out; comments may be in any encoding, as Caffe reads none of them.

    Raises ForceregError 'file:line:column: ...' for other bytes that aren't UTF-8.
    """
    # ahead of decoding: in UTF-16 every second byte is a NUL, which is valid UTF-8
    check_width(data, name)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        # only if it has to be: comments of old nets are in any encoding, and strings have to be right
        data = _COMMENT.sub(lambda match: _readable(match[0]), data)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        good, byte = data[: error.start].decode("utf-8", "replace"), data[error.start]
        fix = "save the file as UTF-8"
        if byte in _QUOTES_1252:
            fix = f"{fix}, with {_QUOTES_1252[byte]} for the typographic quotes"
        where = position(good, len(good))
        raise ForceregError(f"{name}:{where}: byte 0x{byte:02x} is not UTF-8; {fix}") from None


def _readable(found: bytes) -> bytes:
    """A comment with marks for what isn't UTF-8 in it; a string as it is."""
    return found.decode("utf-8", "replace").encode() if found.startswith(b"#") else found
