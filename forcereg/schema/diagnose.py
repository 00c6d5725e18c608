"""What is wrong with a prototxt, as one line for the user: where, what was found, what was expected, the fix.

Protobuf's parser only says where it stopped; the words are ours, from what stands there and what the schema allows.
"""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.text_format import ParseError

from forcereg.errors import slip
from forcereg.schema import LayerParameter, NetParameter, SolverParameter, forks
from forcereg.schema.foreign import OWN, Foreign
from forcereg.schema.habits import habit
from forcereg.schema.numbers import INTEGERS, number_fix
from forcereg.schema.place import CLOSING, OPENING, Block, Place, Wanted, find_place, said
from forcereg.schema.scan import position, shown
from forcereg.schema.types import BUILT_IN
from forcereg.schema.upgrade import V1_TYPES

# the only sentences of the runtime that say more than where it stopped
_TWICE = re.compile("should not have multiple")
UNCLOSED = re.compile('Expected "[}>]"')
_END = 'Expected "}"'
_NOT_UTF8 = re.compile("Couldn't parse string")

_INTEGER = re.compile("[+-]?(0x[0-9a-f]+|0[0-7]*|[1-9][0-9]*)", re.IGNORECASE)
_UNQUOTED = re.compile(r"(?:\w|\.*/|~/)[\w./~+-]*", re.ASCII)
_EXTENSION = re.compile(r"\[[\w.\s]*$")

OLD_FORMAT = "`layers` is the old format; write `layer {`"
_OLD_FIELDS = {
    "blobs_lr": "write param { lr_mult: 1 }, one for each blob",
    "weight_decay": "write param { decay_mult: 1 }, one for each blob",
    "blob_share_mode": "write param { share_mode: STRICT }, one for each blob",
}
"""Of `layers`, and what a `layer` has in their place."""


_SWITCHES = {
    **dict.fromkeys(("t", "true", "y", "yes", "on", "enable", "enabled"), "true"),
    **dict.fromkeys(("f", "false", "n", "no", "off", "none", "disable", "disabled"), "false"),
}
"""What is written for true and false elsewhere."""
_LANGUAGES = {
    **dict.fromkeys(("import", "from", "def", "class"), "Python"),
    **dict.fromkeys(("syntax", "message", "package"), "a .proto file"),
}
"""The first word of a text in another language."""


def explain(error: ParseError, foreign: Foreign, name: str, descriptor: Any, unclosed: int | None) -> str:
    """One line 'file:line:column: ...' for `error`, raised when the text was parsed as a message of `descriptor`.

    `unclosed`: line of the innermost block open at the end of the text (from `scan`), None if none is.
    """
    text, sentence = foreign.text, str(error)
    offset = error_offset(error, foreign)
    # a field of the type's own: the parser doesn't know it, and says nothing of what is wrong inside
    if offset == foreign.broken:
        sentence = "" if text[offset:].strip() else _END
    place = find_place(text, descriptor, offset)
    where = f"{name}:{position(text, offset)}"
    # ahead of the field's own mistake, which follows from it
    if problem := _layer_problem(place):
        return f"{name}:{problem}"
    if place.field is not None and _TWICE.search(sentence):
        return f"{where}: '{place.field.name}' is set twice in one {place.blocks[-1].kind.name}; remove one"
    if unclosed and UNCLOSED.search(sentence):
        return f"{where}: the block opened in line {unclosed} is never closed; add a }}"
    if _NOT_UTF8.search(sentence):
        found = f"found {place.before and shown(place.before)}"
        # the parser stops behind the string, the bad bytes are in it
        at = position(text, text.rfind(place.before, 0, place.offset))
        return f"{name}:{at}: {found}, which is not UTF-8, expected a string in UTF-8{_of_field(place)}"
    line = text.rfind("\n", 0, offset) + 1
    source = text[line:].partition("\n")[0]
    # a habit says what to write, the schema only what it expected
    if hint := habit(place, source):
        return f"{where}: {hint}"
    return f"{where}: {_unexpected(place)}"


def error_offset(error: ParseError, foreign: Foreign) -> int:
    """Where the text went wrong: of a field that a layer may have beside Caffe's, inside it."""
    start = 0
    for _ in range((error.GetLine() or 1) - 1):
        start = foreign.text.find("\n", start) + 1
    offset = start + (error.GetColumn() or 1) - 1
    return foreign.broken if foreign.broken is not None and offset >= foreign.begins else offset


# -- what the layer around the place says comes first


def _layer_problem(place: Place) -> str:
    """'line:column: ...' about a layer whose type or form is wrong, so that its fields can't be right; '' if it may be.

    A field's own mistake in a layer of a known type is no such problem.
    """
    depth = next((i for i, block in enumerate(place.blocks) if _is_layer(block)), None)
    if depth is None:
        return ""
    block = place.blocks[depth]
    inside = len(place.blocks) - 1 > depth
    kind, layer_type = block.kind.name, said(place, block, "type")
    unknown_field = place.wanted is Wanted.NAME and not inside and place.token.isidentifier()
    if kind == "V1LayerParameter":
        return _old_layer_problem(place, layer_type, unknown_field)
    return ""


def _old_layer_problem(place: Place, layer_type: str, unknown_field: bool) -> str:
    """About `layers`, the old format: what belongs in a `layer`."""
    at = position(place.text, place.offset)
    if unknown_field and place.token in LayerParameter.DESCRIPTOR.fields_by_name:
        return f"{at}: '{place.token}' is no field of the old format; {OLD_FORMAT}"
    if unknown_field and layer_type.isidentifier() and layer_type not in V1_TYPES:
        name = _layer_name(place)
        line = place.text.count("\n", 0, place.blocks[-1].at) + 1
        return f"{line}: layer '{name}': '{shown(layer_type)}' is no type of the old format{_old_hint(layer_type)}"
    field = place.field.name if place.field is not None else ""
    if field == "param" and place.token == "{":
        return f"{at}: found '{{', expected a name in quotes for 'param'; {OLD_FORMAT}"
    if field == "type" and place.wanted is Wanted.VALUE and _is_string(place.token):
        bare = _bare(place.token)
        if bare not in V1_TYPES:
            return f"{at}: found {shown(place.token)}, a type of the new format; {OLD_FORMAT}"
    return ""


def _old_hint(kind: str) -> str:
    """What to say about a type that `layers` doesn't have."""
    fork, later = forks.old_home(kind), kind.replace("_", "").lower()
    new = next((name for name in BUILT_IN if name.lower() == later), "")
    whose = f", it is of {fork}'s fork" if fork else ""
    own = "for a type of your own, registered by forcereg.layer(NAME), and give --import MODULE"
    return f"{whose}; {OLD_FORMAT} {f'with type: {chr(34)}{new}{chr(34)}' if new else own}"


def _is_layer(block: Block) -> bool:
    return block.kind is not None and block.kind.name in ("LayerParameter", "V1LayerParameter")


def _is_string(token: str) -> bool:
    return token[:1] in ("'", '"') and token != ""


def _bare(token: str) -> str:
    return token.strip("\"'")


# -- what stands at the place itself


def _unexpected(place: Place) -> str:
    if (
        place.wanted is not Wanted.SEPARATOR
        and place.field is None
        # to protobuf a name in brackets is an extension, which Caffe hasn't
        and _EXTENSION.search(place.text, max(0, place.offset - 200), place.offset)
    ):
        return f"{_found(place)} after '[', expected a field name; no field of Caffe's is written in brackets"
    if place.wanted is Wanted.NAME:
        return _no_name(place)
    if place.wanted is Wanted.VALUE and place.field is not None:
        return _no_value(place, place.field)
    wanted = '":" or "{"' if place.wanted is Wanted.OPEN and place.field is None else place.wanted.value
    return f"{_found(place)}, expected {wanted}{_of_field(place)}{_bracket_fix(place)}"


def _bracket_fix(place: Place) -> str:
    token, name = place.token, place.field.name if place.field is not None else ""
    if place.wanted is Wanted.COLON and (token[:1].isalnum() or _is_string(token)):
        return f"; write {name}: {shown(token)}"
    if place.wanted is Wanted.OPEN and name == "param" and _is_string(token):
        return f"; write param {{ name: {shown(token)} }}"
    return ""


def _no_name(place: Place) -> str:
    block = place.blocks[-1]
    if place.token in CLOSING and block.bracket and OPENING[block.bracket] != place.token:
        line = place.text.count("\n", 0, block.at) + 1
        return f"{_found(place)}, expected '{OPENING[block.bracket]}' for the block opened in line {line}"
    if place.token.isidentifier() and block.kind is not None and place.token not in block.kind.fields_by_name:
        return _unknown_field(place)
    return f"{_found(place)}, expected {place.wanted.value}"


def _unknown_field(place: Place) -> str:
    kind, field = place.blocks[-1].kind, place.token
    if words := forks.refused(kind.name, field):
        return f"'{shown(field)}' is {words}"
    found = f"'{shown(field)}' is no field of {kind.name}"
    if field in ("layer", "layers") and kind.name != "SolverParameter":
        return f"{found}; is the block above closed? a }} may be missing"
    if kind.name == "LayerParameter" and field in _OLD_FIELDS:
        return f"{found} but of the old format `layers`; {_OLD_FIELDS[field]}"
    # a slip comes before guesses at another message, file or language
    if hint := slip(field, (name for name in kind.fields_by_name if name != OWN)):
        return found + hint
    if kind.name == "TransformationParameter":
        return f"'{shown(field)}' is no field of Caffe's; {forks.TRANSFORM}"
    if kind.name == "LayerParameter" and field.endswith("_param"):
        return _unknown_param(place)
    holders = [f.name for f in kind.fields if _holds(f.message_type, field)]
    if holders and kind.name != "SolverParameter":
        return f"{found}; it belongs in {', '.join(holders)}"
    if kind.name == "SolverParameter" and field in NetParameter.DESCRIPTOR.fields_by_name:
        return f"{found}; is this a net file?"
    if kind.name == "NetParameter" and field in SolverParameter.DESCRIPTOR.fields_by_name:
        return f"{found}; is this a solver file?"
    if language := _LANGUAGES.get(field):
        return f"{found}; is this {language}?"
    return found


def _unknown_param(place: Place) -> str:
    """About a message of parameters that Caffe hasn't, in a layer of a type of Caffe's."""
    block, field = place.blocks[-1], place.token
    name, kind = (shown(_bare(said(place, block, part)), 80) for part in ("name", "type"))
    fork = forks.home_of(field)
    whose = f", it is of {fork}'s fork" if fork else ""
    known = LayerParameter.DESCRIPTOR.fields_by_name
    own = next((one for one in known if one.replace("_", "") == f"{kind.lower()}param"), "")
    options = f", whose options are in {own}" if own else ""
    return f"'{shown(field)}' is no field of Caffe's{whose}; layer '{name}' has type {kind or 'none'}{options}"


def _holds(descriptor: Any, field: str) -> bool:
    if descriptor is None or descriptor.name in ("V1LayerParameter", "V0LayerParameter"):
        return False
    return field in descriptor.fields_by_name


def _no_value(place: Place, field: Any) -> str:
    token, context = place.token, f" for '{field.name}'"
    if token in ("[", "]") and place.before != ":":
        return f"{_found(place)} after '{shown(place.before)}', expected a value{context}; remove it or what is before"
    if token == "[":
        return f"{_found(place)}, expected one value{context}, without brackets"
    if field.type == FieldDescriptor.TYPE_ENUM and token:
        return _unknown_value(place, field)
    if field.type == FieldDescriptor.TYPE_STRING:
        return f"{_found(place)}, expected {_no_string(token)}{context}{_string_fix(place)}"
    if field.type == FieldDescriptor.TYPE_BOOL:
        meant = _SWITCHES.get(_bare(token).lower(), "")
        return f"{_found(place)}, expected true or false{context}{meant and f'; write {meant}'}"
    if field.type in INTEGERS:
        return f"{_found(place)}, expected {_integer(token, field)}{context}{number_fix(token, INTEGERS[field.type])}"
    return f"{_found(place)}, expected a number{context}{number_fix(token)}"


def _layer_name(place: Place) -> str:
    return shown(_bare(said(place, place.blocks[-1], "name")), 80)


def _unknown_value(place: Place, field: Any) -> str:
    token, known = place.token, list(field.enum_type.values_by_name)
    bare = _bare(token)
    if bare in known:
        return f"found {shown(token)}, expected {bare}, without quotes"
    if not re.fullmatch(r"\w+", bare, re.ASCII) and not _is_string(token):
        return f"found '{shown(token)}', expected one of {shown(', '.join(known), 80)} for '{field.name}'"
    found = f"'{shown(bare)}' is no value of {field.enum_type.name}"
    hint = slip(bare, known)
    if field.enum_type.name == "LayerType":
        return f"{found}{hint} ({OLD_FORMAT})" if hint else f"{found}, of layer '{_layer_name(place)}'{_old_hint(bare)}"
    return found + (hint or (f"; known are {', '.join(known)}" if len(known) < 10 else ""))


def _no_string(token: str) -> str:
    if not _is_string(token):
        return "a string in quotes"
    if len(token) < 2 or token[-1] != token[0]:
        return "a closing quote on the same line"
    return 'whole escape sequences ("\\\\" for a backslash)'


def _string_fix(place: Place) -> str:
    """For a word without quotes, such as a path."""
    # from the text and not the token, which ends at a slash
    word = _UNQUOTED.match(place.text, place.offset)
    return f'; write "{V1_TYPES.get(word[0]) or word[0]}"' if word and len(word[0]) < 80 else ""


def _integer(token: str, field: Any) -> str:
    """An integer that is refused is out of range."""
    least, most = INTEGERS[field.type]
    return f"an integer from {least} to {most}" if _INTEGER.fullmatch(token) else "an integer"


def _found(place: Place) -> str:
    if place.token:
        return f"found '{shown(place.token)}'"
    return "found the end of the file" if not place.text[place.offset :].strip() else "found nothing"


def _of_field(place: Place) -> str:
    return f" for '{place.field.name}'" if place.field is not None else ""
