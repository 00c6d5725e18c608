"""Single settings from the command line (`base_lr=0.001`), put into a solver as if its file said so."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from forcereg.errors import ForceregError, UsageError, did_you_mean
from forcereg.schema import SolverParameter
from forcereg.schema.scan import shown
from forcereg.schema.text import SolverFile, parse_text
from forcereg.schema.upgrade import upgrade_solver


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
    return SolverFile(upgrade_solver(message, file.name), file.name, file.text)


def _put(message: Any, name: str, value: str, where: str) -> None:
    fields = SolverParameter.DESCRIPTOR.fields_by_name
    if name not in fields:
        raise ForceregError(f"{where}: '{shown(name)}' is no field of SolverParameter{did_you_mean(name, fields)}")
    read = _read(_as_text(fields[name], value), where) if value else None
    for other in {"type": ("solver_type",), "solver_type": ("type",)}.get(name, ()):
        message.ClearField(other)  # two names of one setting
    message.ClearField(name)
    if read is not None:
        if {field.name for field, _ in read.ListFields()} - {name}:
            raise ForceregError(f"{where}: holds more than one setting; give each a --set of its own")
        message.MergeFrom(read)


def _read(text: str, where: str) -> Any:
    """`text` as a SolverParameter; an error says nothing of lines and columns, which the user has not written."""
    try:
        return parse_text(text, SolverParameter, where)
    except ForceregError as error:
        raise ForceregError(where + re.sub(r"^:\d+:\d+", "", str(error).removeprefix(where))) from None


def _as_text(field: FieldDescriptor, value: str) -> str:
    """The setting as a line of a solver file."""
    if field.type == FieldDescriptor.TYPE_STRING:
        if value.startswith("[") and value.endswith("]"):
            items = [_quoted(item.strip()) for item in value[1:-1].split(",") if item.strip()]
            return f"{field.name}: [{', '.join(items)}]"
        return f"{field.name}: {_quoted(value)}"
    return f"{field.name}: {value}"


def _quoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
