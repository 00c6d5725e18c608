"""Habits from elsewhere that are no prototxt: other languages' comments and brackets, word processors' quotes."""

from __future__ import annotations

import re
import unicodedata

from forcereg.schema.numbers import INTEGERS, repeats
from forcereg.schema.place import Place, Wanted
from forcereg.schema.scan import shown

_ASCII = {
    **dict.fromkeys("“”„‟«»″", '"'),
    **dict.fromkeys("‘’‚‛′´", "'"),
    **dict.fromkeys("‐‑‒–—―−", "-"),
}
"""What word processors write -> what is on the keyboard."""
_MARKERS = ("<<<<<<<", "=======", ">>>>>>>", "|||||||")
_FRACTION = re.compile(r"([-\d.][\d.e+-]*)\s*([/*])\s*([\d.]+)")


def habit(place: Place, source: str) -> str:
    """What is found and what to write, where a habit explains the place in the line `source`; '' where none does."""
    token, behind = place.token, place.text[place.offset : place.offset + 40]
    # first: whatever else is odd in the line follows from it
    if source.startswith(_MARKERS):
        return f"found '{source[:7]}', the mark of a merge conflict; keep one of the two sides and remove the marks"
    if not token.isascii() and not token.startswith(('"', "'")):
        return f"found {_not_ascii(token)}"
    # Python's identifiers may go on in letters that prototxt hasn't
    if token.isidentifier() and not behind[len(token) : len(token) + 1].isascii():
        return f"found '{shown(token)}' before {_not_ascii(behind[len(token)])}"
    if behind.startswith(("//", "/*")):
        return f"found '{behind[:2]}'; comments begin with #"
    if place.wanted is Wanted.NAME:
        return _at_name(place, source)
    if token == "=" and place.wanted is not Wanted.VALUE:
        name = place.before
        return (
            f"found '='; write {name} {{ ... }}"
            if place.wanted is Wanted.OPEN and place.field is not None
            else f"found '='; write {name}: VALUE"
        )
    if token == "]" and place.before == ",":
        return "found ']' after a comma, expected a value; remove the comma"
    return ""


def _not_ascii(token: str) -> str:
    character = next(c for c in token if not c.isascii())
    name = unicodedata.name(character, "a character without a name").lower()
    # NFKC makes full-width letters and the like ASCII
    plain = _ASCII.get(character) or unicodedata.normalize("NFKC", character)
    if character.isalpha() and not plain.isascii():
        return f"'{shown(character)}' ({name}); write an ASCII letter"
    fix = f"write {plain}" if plain.isascii() and plain.isprintable() and plain.strip() else "remove it"
    found = shown(character) if character.isprintable() else f"U+{ord(character):04X}"
    return f"'{found}' ({name}); {fix}"


def _at_name(place: Place, source: str) -> str:
    token, before = place.token, place.before
    if token in (",", ";"):
        return f"found '{token}', expected a field name; remove it"
    if token in ("{", "[") and len(place.blocks) == 1 and not before:
        return f"found '{token}', expected a field name; a prototxt has no brackets around it (is this JSON?)"
    if token == ":" and before[:1] in ("'", '"'):
        return f"found ':' behind {shown(before)}, which is a value; a field name has no quotes"
    if token[:1] in ("'", '"') and place.text[place.offset + len(token) :].lstrip().startswith(":"):
        bare = token.strip("\"'")
        return f"found {shown(token)}, expected a field name without quotes; write {shown(bare)}"
    if token in ("/", "*") and (match := _FRACTION.search(source)) and float_or_none(match[1]) is not None:
        return f"found '{token}'; there is no arithmetic here, write {_computed(*match.groups())}"
    if token[:1] in ("-", "+") and not token[1:2].isdigit():
        return f"found '{shown(token)}', expected a field name (is this YAML or a diff?)"
    if before == "," and place.field is not None and (token[:1].isdigit() or token[:1] in ("'", '"')):
        return _listed(place)
    if token[:1].isdigit() and place.field is not None and before[-1:].isdigit():
        return _listed(place)
    return ""


def _listed(place: Place) -> str:
    """One more value where there is no list."""
    name, token = place.field.name, shown(place.token)
    found = f"found '{token}', expected a field name"
    if place.field.message_type is not None:
        return found
    if repeats(place.field):
        return f"{found}; write {name}: again before each further value"
    comma = re.search(r"([-\d][\d.]*)\s*,\s*$", place.text[max(0, place.offset - 80) : place.offset])
    if comma is None or not place.token.isdigit():
        return f"{found}; '{name}' takes one value"
    # 0,5 is a decimal comma, 5,000 one for thousands
    mark = "" if place.field.type in INTEGERS else "."
    return f"{found}; write {name}: {comma[1]}{mark}{token}"


def float_or_none(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _computed(left: str, sign: str, right: str) -> str:
    first, second = float_or_none(left), float_or_none(right)
    if first is None or second is None or (sign == "/" and not second):
        return "the result"
    return f"{first / second if sign == '/' else first * second:.9g}"
