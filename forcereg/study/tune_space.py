"""Which solver fields a search varies, and over what: `force_decay=1e-5:1e-2`, `force_type=Constant,Degradation`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from forcereg.errors import UsageError, slip
from forcereg.schema import SolverParameter
from forcereg.schema.numbers import FLOATS, INTEGERS
from forcereg.study.grid import saying, split_values

DEFAULT = ("force_decay=1e-5:1e-2", "force_type=Constant,Degradation")
"""What is searched where nothing is said of these fields."""
OWN = {"random_seed": "--seed N", "snapshot_prefix": "--out DIR", "max_iter": "--max-iter N", "weights": "--weights"}
"""Solver fields that no search varies -> the option that sets them."""
EXPECTED = "FIELD=LOW:HIGH or FIELD=VALUE,VALUE,..., as in force_decay=1e-5:1e-2"


class Suggests(Protocol):
    """What an Optuna trial offers: a value for a name."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """From `low` to `high`."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """From `low` to `high`, both among them."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        """One of them."""


@dataclass(frozen=True)
class Choices:
    """One of several values as written; a single one is fixed."""

    field: str
    values: tuple[str, ...]

    def suggest(self, trial: Suggests) -> str:
        """The field's value in a trial."""
        return trial.suggest_categorical(self.field, self.values) if len(self.values) > 1 else self.values[0]

    @property
    def ends(self) -> tuple[str, ...]:
        """Values that show whether the field may have them all."""
        return self.values


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`: as likely in each decade if `low` is above 0, else everywhere.

    `whole`: whole numbers; `of`: the iterations that they are shares of, evenly spread; 0 for plain numbers.
    """

    field: str
    low: float
    high: float
    whole: bool = False
    of: int = 0

    def suggest(self, trial: Suggests) -> str:
        """The field's value in a trial, to three digits."""
        log = self.low > 0
        if self.of:
            return self._written(trial.suggest_float(self.field, self.low, self.high))
        if self.whole:
            return str(trial.suggest_int(self.field, int(self.low), int(self.high), log=log))
        return self._written(trial.suggest_float(self.field, self.low, self.high, log=log))

    def _written(self, value: float) -> str:
        return str(round(value * self.of)) if self.of else f"{value:.3g}"

    @property
    def ends(self) -> tuple[str, ...]:
        """See Choices."""
        return self._written(self.low), self._written(self.high)


@dataclass(frozen=True)
class Space:
    """What is searched; `texts` as asked for, with what wasn't said."""

    dimensions: tuple[Choices | Range, ...]
    texts: tuple[str, ...]

    def suggest(self, trial: Suggests) -> dict[str, str]:
        """The fields of a trial."""
        return saying({one.field: one.suggest(trial) for one in self.dimensions})

    @property
    def without_force(self) -> dict[str, str]:
        """The fields of the run without force: those that are fixed, the others as in the solver."""
        fixed = {one.field: one.values[0] for one in self.dimensions if isinstance(one, Choices) and not one.values[1:]}
        return saying({"force_decay": "0"} | fixed | {"force_decay": "0"})

    @property
    def probes(self) -> list[dict[str, str]]:
        """Settings in which every end and value comes up, so that what no run can have is told before any runs."""
        most = max(len(one.ends) for one in self.dimensions)
        return [
            {one.field: one.ends[min(place, len(one.ends) - 1)] for one in self.dimensions} for place in range(most)
        ]


def space_of(texts: Sequence[str], max_iter: int) -> Space:
    """What the texts say, and `DEFAULT` of fields that they don't name. Raises UsageError."""
    asked = {_field(text): text for text in texts}
    if len(asked) < len(texts):
        raise UsageError(f"--search names a field twice ({', '.join(map(_field, texts))}); give each once")
    asked = {**{_field(text): text for text in DEFAULT}, **asked}
    return Space(tuple(_dimension(text, max_iter) for text in asked.values()), tuple(asked.values()))


def _field(text: str) -> str:
    return text.partition("=")[0].strip()


def _dimension(text: str, max_iter: int) -> Choices | Range:
    name, _, rest = text.partition("=")
    name, values = name.strip(), split_values(rest)
    if not name or not all(values):
        raise UsageError(f"--search {text}: expected {EXPECTED}")
    fields = SolverParameter.DESCRIPTOR.fields_by_name
    if name not in fields:
        raise UsageError(f"--search {text}: '{name}' is no field of SolverParameter{slip(name, fields)}")
    if name in OWN:
        raise UsageError(f"--search {text}: every trial has the same {name}; use {OWN[name]}")
    bounds = re.fullmatch(r"([^:\s\[{\"']+):([^:\s\]}\"']+)", values[0]) if len(values) == 1 else None
    if bounds is None:
        return Choices(name, tuple(values))
    return _range(name, bounds[1], bounds[2], fields[name].type, max_iter, f"--search {text}")


def _range(field: str, low: str, high: str, kind: int, max_iter: int, where: str) -> Range:
    whole = kind in INTEGERS
    if not whole and kind not in FLOATS:
        raise UsageError(f"{where}: {field} is no number; expected values with commas")
    if shares := low.endswith("%") and high.endswith("%"):
        if not whole:
            raise UsageError(f"{where}: percentages are of max_iter, and {field} counts no iterations")
        low, high = low[:-1], high[:-1]
    try:
        found = [int(one) if whole and not shares else float(one) for one in (low, high)]
    except ValueError:
        raise UsageError(f"{where}: expected {'whole ' if whole else ''}numbers, as in {EXPECTED}") from None
    if not all(map(math.isfinite, found)) or found[0] >= found[1]:
        raise UsageError(f"{where}: expected a lower and a higher number, as in force_decay=1e-5:1e-2")
    scale = 100 if shares else 1
    return Range(field, found[0] / scale, found[1] / scale, whole, max_iter if shares else 0)
