"""Single settings from the command line (`base_lr=0.001`), put into a solver as if its file said so."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from forcereg.errors import ForceregError, UsageError, printable, slip
from forcereg.schema import SolverParameter
from forcereg.schema.numbers import repeats
from forcereg.schema.scan import shown
from forcereg.schema.text import SolverFile, parse_text
from forcereg.schema.upgrade import upgrade_solver

_ITEM = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^,])+""")
"""Of a list, which commas separate; not those inside quotes."""


def with_settings(file: SolverFile, settings: Iterable[str]) -> SolverFile:
    """`file` with each `field=value` in place of what it says of that field; later ones win.

    A value is as in a solver file, quotes around plain strings left out at will: `stepvalue=[5000,7000]` replaces a
    repeated field whole, `train_state={stage: "a"}` gives a message, nothing behind the = unsets a field.
    Raises UsageError for what isn't `field=value`, ForceregError for an unknown field or a value of another kind.
    """
    message = SolverParameter()
    message.CopyFrom(file.message)
    for setting in settings:
        name, equals, value = setting.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name:
            raise UsageError(f"--set {setting}: expected FIELD=VALUE, as in --set base_lr=0.001")
        _put(message, name, value, f"--set {setting}")
    # again: a setting may bring an old field or an inline net
    return replace(file, message=upgrade_solver(message, file.name))


def settings_of(asked: Mapping[str, Any] | Iterable[str]) -> list[str]:
    """Python's {"base_lr": 0.001} as `with_settings` takes it; what has that form already stays. Raises UsageError."""
    if isinstance(asked, Mapping):
        return [f"{name}={written(asked[name])}" for name in asked]
    texts = [asked] if isinstance(asked, str) else list(asked) if isinstance(asked, Iterable) else [asked]
    for one in texts:
        if not isinstance(one, str):
            raise UsageError(f'set has {one!r}; expected {{"base_lr": 0.001}} or ["base_lr=0.001"]')
    return texts


def plain(message: Any) -> dict[str, Any]:
    """The fields of a solver that are set, but for messages: numbers, booleans, texts and lists of these."""
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            several = [_plain(field, one) for one in value] if repeats(field) else _plain(field, value)
            found[field.name] = several
    return found


def _plain(field: FieldDescriptor, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_ENUM:
        return field.enum_type.values_by_number[value].name
    # the shortest number that is this float32
    return float(f"{value:.7g}") if field.type == FieldDescriptor.TYPE_FLOAT else value


def written(value: Any) -> str:
    """A Python value as a setting; None as nothing, which unsets a field."""
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).lower()
    if hasattr(value, "tolist"):  # of numpy or torch, whose text has no commas
        return written(value.tolist())
    if isinstance(value, list | tuple):
        return f"[{','.join(_quoted(one) if isinstance(one, str) else written(one) for one in value)}]"
    return str(value)


def _put(message: Any, name: str, value: str, where: str) -> None:
    fields = SolverParameter.DESCRIPTOR.fields_by_name
    if name not in fields:
        outer = name.partition(".")[0]
        whole = outer in fields and fields[outer].message_type
        hint = f"; give {outer} whole, as in {outer}={{...}}" if whole else slip(name, fields)
        raise ForceregError(f"{where}: '{shown(name)}' is no field of SolverParameter{hint}")
    read = _read(_as_text(fields[name], value, where), where) if value else None
    for other in {"type": ("solver_type",), "solver_type": ("type",)}.get(name, ()):
        message.ClearField(other)  # two names of one setting
    # before it is merged: repeated fields would be appended to
    message.ClearField(name)
    if read is not None:
        # a value is text of a prototxt: it may close its field and go on with another
        if {field.name for field, _ in read.ListFields()} - {name}:
            raise ForceregError(f"{where}: holds more than one setting; give each a --set of its own")
        message.MergeFrom(read)


def _read(text: str, where: str) -> Any:
    """`text` as a SolverParameter; an error says nothing of lines and columns, which the user has not written."""
    try:
        return parse_text(text, SolverParameter, where)
    except ForceregError as error:
        said = str(error).removeprefix(printable(where))
        raise ForceregError(where + re.sub(r"^:\d+:\d+", "", said)) from None


def _as_text(field: FieldDescriptor, value: str, where: str) -> str:
    """The setting as a line of a solver file. Raises ForceregError for a list without brackets."""
    if field.type == FieldDescriptor.TYPE_STRING:
        if value.startswith("[") and value.endswith("]"):
            items = [_quoted(item.strip()) for item in _ITEM.findall(value[1:-1]) if item.strip()]
            return f"{field.name}: [{', '.join(items)}]"
        return f"{field.name}: {_quoted(value)}"
    if "," in value and field.message_type is None and value[0] != "[" and repeats(field):
        raise ForceregError(f"{where}: found a comma; several values go in brackets, as in {field.name}=[{value}]")
    return f"{field.name}: {value}"


def _quoted(text: str) -> str:
    # quoted by whoever wrote it
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
