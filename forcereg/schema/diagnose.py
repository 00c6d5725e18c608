"""Protobuf's parse errors as one line for the user: where, what was found, what was expected, the fix."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.text_format import ParseError

from forcereg.errors import did_you_mean
from forcereg.schema import NetParameter, SolverParameter
from forcereg.schema.scan import shown
from forcereg.schema.upgrade import V1_TYPES

_FIELD = re.compile(r'Message type "([\w.]+)" has no field named "([^"]*)"')
_ENUM = re.compile(r'Enum type "([\w.]+)" has no value (?:named|with number) (.*?)\.?$')
_TWICE = re.compile(r'Message type "\w+\.(\w+)" should not have multiple "(\w+)" fields')
_TOKEN = re.compile(r"""[\w.+-]+|"[^"]*"?|'[^']*'?|\S""")
_EXPECTED = {  # what the runtime's sentence begins with: what was wanted
    "Couldn't parse float": "a number",
    "Couldn't parse integer": "an integer",
    "Value out of range": "a number in the field's range",
    "Expected string": "a string in quotes",
    "Couldn't parse string": "a string in UTF-8",
    "String missing ending quote": "a closing quote on the same line",
    'Expected "true" or "false"': "true or false",
    "Expected identifier": "a field name",
    "does not have extensions": "a field name",
}


def explain(error: ParseError, text: str, name: str, message: Any, unclosed: int | None) -> str:
    """One line 'file:line:column: ...' for `error`, raised when `text` was parsed into a `message`.

    `unclosed`: line of the innermost block open at the end of the text (from `scan`), None if none is.
    """
    line, column = error.GetLine() or 1, error.GetColumn() or 1
    # the runtime opens its sentence with the position and often the whole source line
    source = (text.split("\n")[line - 1 : line] or [""])[0]
    sentence = str(error).removeprefix(f"{line}:{column} : ")
    sentence = sentence.removeprefix(f"'{source}': ").removeprefix("'': ")
    where = f"{name}:{line}:{column}"
    if match := _FIELD.search(sentence):
        return f"{where}: {_unknown_field(message, match[1], match[2])}"
    if match := _ENUM.search(sentence):
        return f"{where}: {_unknown_value(message, match[1], match[2])}"
    if match := _TWICE.search(sentence):
        return f"{where}: '{match[2]}' is set twice in one {match[1]}; remove one"
    if unclosed and re.match('Expected "[}>]"', sentence):
        return f"{where}: the block opened in line {unclosed} is never closed; add a }}"
    return f"{where}: {_unexpected(sentence, source, column)}"


def _unknown_field(message: Any, owner: str, field: str) -> str:
    descriptor = message.DESCRIPTOR.file.pool.FindMessageTypeByName(owner)
    found = f"'{shown(field)}' is no field of {descriptor.name}"
    if field in ("layer", "layers") and descriptor.name != "SolverParameter":
        return f"{found}; is the block above closed? a }} may be missing"
    holders = [f.name for f in descriptor.fields if _holds(f.message_type, field)]
    if holders and descriptor.name != "SolverParameter":
        return f"{found}; it belongs in {', '.join(holders)}"
    if descriptor.name == "SolverParameter" and field in NetParameter.DESCRIPTOR.fields_by_name:
        return f"{found}; is this a net file?"
    if descriptor.name == "NetParameter" and field in SolverParameter.DESCRIPTOR.fields_by_name:
        return f"{found}; is this a solver file?"
    return found + did_you_mean(field, descriptor.fields_by_name)


def _holds(descriptor: Any, field: str) -> bool:
    if descriptor is None or descriptor.name in ("V1LayerParameter", "V0LayerParameter"):
        return False
    return field in descriptor.fields_by_name


def _unknown_value(message: Any, owner: str, value: str) -> str:
    descriptor = message.DESCRIPTOR.file.pool.FindEnumTypeByName(owner)
    bare, known = value.strip("\"'"), list(descriptor.values_by_name)
    if bare in known:
        return f"found {shown(value)}, expected {bare}, without quotes"
    hint = f"; known are {', '.join(known)}" if len(known) < 10 else ""
    return f"'{shown(bare)}' is no value of {descriptor.name}{did_you_mean(bare, known) or hint}"


def _unexpected(sentence: str, source: str, column: int) -> str:
    match = _TOKEN.match(source, column - 1)
    token = match[0] if match else ""
    wanted = next((text for start, text in _EXPECTED.items() if start in sentence), "")
    if not wanted:
        wanted = sentence.removeprefix("Expected ").rstrip(".")
    field = re.search(r"(\w+)\s*:\s*$", source[: column - 1])
    context = f" for '{field[1]}'" if field else ""
    found = f"'{shown(token)}'" if token else "the end of the line"
    fix = ""
    if wanted == "a string in quotes" and token.isidentifier():
        fix = f'; write "{V1_TYPES.get(token, token)}"'
    return f"found {found}, expected {shown(wanted, 80)}{context}{fix}"
