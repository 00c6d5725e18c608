"""The settings of a sweep: every combination of the alternatives that `--set field=a,b` names, and their folders."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from forcereg.errors import UsageError

OWN = {"random_seed": "--seeds N", "snapshot_prefix": "--out DIR"}
"""Solver fields that a sweep sets itself -> the option that says how."""

_PLAIN = r"[-+\w.]+|\[[-+\deE.,]*\]"


@dataclass(frozen=True)
class Setting:
    """One run: solver fields and their values as written, and the seed."""

    fields: dict[str, str]
    seed: int

    @property
    def folder(self) -> str:
        """A name for the run's folder, another one for every setting."""
        parts = [f"{name}={_in_names(value)}" for name, value in self.fields.items()]
        name = ",".join([*parts, f"seed={self.seed}"])
        # what a name can't hold may be all that two settings differ in: then a digest tells them apart
        if len(name) <= 150 and all(re.fullmatch(_PLAIN, value) for value in self.fields.values()):
            return name
        return f"{name[:150]}-{hashlib.sha256(repr(self).encode()).hexdigest()[:8]}"


def _in_names(value: str) -> str:
    return re.sub(r"[^\w.=+-]+", "_", value).strip("_")


def alternatives(text: str) -> tuple[str, list[str]]:
    """`field=a,b` -> the field and its values; commas inside brackets, braces or quotes separate nothing.

    Raises UsageError for anything else.
    """
    name, equals, rest = text.partition("=")
    values = split_values(rest)
    if not equals or not name.strip() or not all(values):
        raise UsageError(f"--set {text}: expected FIELD=VALUE,VALUE,..., as in --set force_decay=0,1e-4,1e-3")
    if name.strip() in OWN:
        raise UsageError(f"--set {text}: a sweep sets {name.strip()} itself; use {OWN[name.strip()]}")
    return name.strip(), values


def split_values(text: str) -> list[str]:
    """The values that commas separate, but for those inside brackets, braces or quotes."""
    values, depth, quote, start = [], 0, "", 0
    for place, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and not depth:
            values.append(text[start:place])
            start = place + 1
    return [value.strip() for value in [*values, text[start:]]]


def grid(sets: Sequence[str], seeds: int) -> list[Setting]:
    """Every combination of the alternatives, `seeds` times; without force (force_decay 0) its other fields say nothing.

    Raises UsageError for a field given twice.
    """
    fields = [alternatives(text) for text in sets]
    names = [name for name, _ in fields]
    if len(set(names)) < len(names):
        raise UsageError(f"--set names a field twice ({', '.join(names)}); give all of its values in one")
    settings: dict[str, Setting] = {}
    for values in itertools.product(*(values for _, values in fields)):
        chosen = saying(dict(zip(names, values, strict=True)))
        for seed in range(1, seeds + 1):
            setting = Setting(chosen, seed)
            settings.setdefault(setting.folder, setting)  # without force several combinations are one
    return list(settings.values())


def saying(fields: dict[str, str]) -> dict[str, str]:
    """The fields that say something: without force (force_decay 0) its others don't."""
    if not _is_zero(fields.get("force_decay", "")):
        return fields
    return {name: value for name, value in fields.items() if name == "force_decay" or "force" not in name}


def labels(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """A name for each setting: the fields that have several values among them, all fields where that isn't enough."""
    values: dict[str, set[str]] = {}
    for fields in settings:
        for name, value in fields.items():
            values.setdefault(name, set()).add(value)
    # in one order, whatever each setting's is
    settings = [{name: fields[name] for name in values if name in fields} for fields in settings]
    short = [_label({name: fields[name] for name in fields if len(values[name]) > 1}) for fields in settings]
    told = {name: fields for name, fields in zip(short, settings, strict=True)}
    if all(short) and all(told[name] == fields for name, fields in zip(short, settings, strict=True)):
        return short
    return [_label(fields) or "as it is" for fields in settings]


def _label(fields: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in fields.items())


def _is_zero(text: str) -> bool:
    try:
        return float(text) == 0
    except ValueError:
        return False
