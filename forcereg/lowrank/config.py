"""Rank configs: a JSON file that says, layer by layer, by which method and to which rank a net is decomposed."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import fspath
from typing import Any

from forcereg.errors import ForceregError, did_you_mean, printable
from forcereg.lowrank.factor import Rank
from forcereg.lowrank.kinds import factorizer
from forcereg.lowrank.ranks import Candidate, Choice, Whole
from forcereg.system.files import read_file
from forcereg.system.sidefiles import parse_json

MOST = 1 << 20
"""Bytes of a file."""
COMMENT = "//"
"""A name under which a file says what it is for."""
RULES = ("rank", "error", "energy")
FORM = '{"conv1": 8} or {"conv1": {"method": "vh", "rank": 8}} or {"conv1": {"error": 0.05}}'


@dataclass(frozen=True)
class LayerRule:
    """How one layer is decomposed: by `method` (None: the command's), to a rank or within an error bound."""

    where: str
    method: str | None = None
    rank: Rank | None = None
    error: float = 0.0

    def choose(self, one: Candidate) -> Rank:
        """The rank for a layer. Raises ForceregError for one that the method doesn't have."""
        if self.rank is None:
            return one.smallest_rank(self.error)
        try:
            # only whether it is in range: which rank is taken for it is told when it is applied
            one.ladder.rounded(self.rank)
            return self.rank
        except ValueError as error:
            raise ForceregError(f"{self.where}: {error}") from error


@dataclass(frozen=True)
class LayerRules:
    """The rules of a file, by layer name; a criterion itself: layers that it doesn't name stay whole."""

    name: str
    layers: Mapping[str, LayerRule]

    @property
    def methods(self) -> dict[str, str]:
        """Layer name -> method, where the file says one."""
        return {name: rule.method for name, rule in self.layers.items() if rule.method is not None}

    def __call__(self, candidates: Sequence[Candidate]) -> dict[str, Choice]:
        left = Whole(f"{self.name} doesn't name it")
        return {one.name: self.layers[one.name].choose(one) if one.name in self.layers else left for one in candidates}


def read_config(path: Any) -> LayerRules:
    """The config in a file. Raises ForceregError for one that can't be read or isn't of the form."""
    name = fspath(path)
    try:
        text = read_file(name, MOST).decode("utf-8")
    except (OSError, ValueError) as error:
        raise ForceregError(f"{name}: {getattr(error, 'strerror', None) or 'is no UTF-8 text'}") from error
    return parse_config(text, name)


def parse_config(text: str, name: str = "<config>") -> LayerRules:
    """The config in JSON text. Raises ForceregError with the line for text that is none."""
    try:
        found = parse_json(text)
    except json.JSONDecodeError as error:
        raise ForceregError(f"{name}:{error.lineno}:{error.colno}: {error.msg}; expected JSON as in {FORM}") from error
    except ValueError as error:
        raise ForceregError(f"{name}: {error}; expected {FORM}") from None
    return config_of(found, name)


def config_of(found: Any, name: str = "<config>") -> LayerRules:
    """The config of plain data, layer name -> rank or {"method", "rank" | "error" | "energy"}. Raises ForceregError."""
    rules = {} if not isinstance(found, Mapping) else {key: value for key, value in found.items() if key != COMMENT}
    if not rules:
        raise ForceregError(f"{name}: names no layer; expected {FORM}")
    return LayerRules(name, {layer: rule_of(value, f"{name}: layer '{layer}'") for layer, value in rules.items()})


def rule_of(value: Any, where: str) -> LayerRule:
    """A layer's rule from its JSON value. Raises ForceregError."""
    fields = value if isinstance(value, Mapping) else {"rank": value}
    for key in fields:
        if key not in ("method", *RULES):
            hint = did_you_mean(key, ("method", *RULES)) or "; expected method, and rank, error or energy"
            raise ForceregError(f"{where}: has '{key}'{hint}")
    given = [key for key in RULES if key in fields]
    if len(given) != 1:
        raise ForceregError(f"{where}: has {' and '.join(given) or 'no rank'}; expected one of rank, error and energy")
    method = fields.get("method")
    if method is not None and not isinstance(method, str):
        raise ForceregError(f'{where}: method is {shown(method)}; expected a name as in "pca"')
    if method is not None:
        # an unknown method is the file's error, told before any layer is looked at
        factorizer.get(method, where)
    if given == ["rank"]:
        return LayerRule(where, method, rank_of(fields["rank"], where))
    share = fields[given[0]]
    # to Python True is a number, to whoever wrote it it isn't
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ForceregError(f"{where}: {given[0]} is {shown(share)}; expected a number from 0 to 1")
    return LayerRule(where, method, error=share if given == ["error"] else 1 - share)


def rank_of(value: Any, where: str) -> Rank:
    """A whole number from 1, or several in a list (tucker2's output and input rank). Raises ForceregError."""
    value = plain(value)
    many = value if isinstance(value, list | tuple) and value else [value]
    if any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in many):
        raise ForceregError(
            f"{where}: rank is {shown(value)}; expected a whole number from 1, or [out, in] for tucker2"
        )
    return tuple(many) if isinstance(value, list | tuple) else value


def plain(value: Any) -> Any:
    """A rank with another library's whole numbers as Python's own."""
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return operator.index(value) if hasattr(value, "__index__") and not isinstance(value, bool) else value


def shown(value: Any) -> str:
    """A JSON value for a message."""
    # out of a file: it may be long and hold what a terminal obeys
    return printable(json.dumps(value, default=repr))[:60]
