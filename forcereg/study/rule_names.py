"""Rules for ranks in words, as the command line has them: in tables, and in records of what was done by which rule."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from forcereg.lowrank.factor import rank_text
from forcereg.lowrank.rule import Rule
from forcereg.lowrank.rules import Spread
from forcereg.registry import rank_rule


def named(rule: Rule) -> str:
    """The rule's option and value: "max-macs 0.5", "ranks 4,6"; a budget's spread, too: "max-macs 0.5 minmax"."""
    return f"{field_of(rule).replace('_', '-')} {spread_text(rule)}"


def spread_text(rule: Rule) -> str:
    """The rule's value, and how a budget is spread if not as usual."""
    spread = rule.spread if isinstance(rule, Spread) else ""
    return f"{value_text(rule)} {spread}".rstrip()


def field_of(rule: Rule) -> str:
    """The rule's option as a name, max_macs; the name of its class if it has none."""
    name = type(rule).__name__
    option = rank_rule.options.get(name)
    return name if option is None else option.field


def value_text(rule: Rule) -> str:
    """The rule's value: a number in short, ranks with commas, a path as it is given."""
    # a rule's first field is what its option takes
    value: Any = getattr(rule, fields(rule)[0].name)  # type: ignore[arg-type]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ",".join(map(rank_text, value))
    return json.dumps(value) if isinstance(value, Mapping) else str(value)


def record(rule: Rule) -> str:
    """What tells the rule from others of its kind: value and spread, of a file a digest of what it holds."""
    value: Any = getattr(rule, fields(rule)[0].name)  # type: ignore[arg-type]
    if isinstance(value, Path) or (field_of(rule) == "rank_config" and isinstance(value, str | os.PathLike)):
        return hashlib.sha256(Path(value).read_bytes()).hexdigest()
    return spread_text(rule)
