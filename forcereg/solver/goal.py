"""What a run is judged by at its tests, as users write it: an output, which way is better, when it is enough.

Loads no torch: a slip is told before anything is opened.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from forcereg.errors import UsageError

DEFAULT = "accuracy"
MAX, MIN = "max", "min"
SIGNS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_LIMIT = re.compile(r"\s*(.+?)\s*(>=|<=|>|<)\s*([-+.\w]+)\s*", re.DOTALL)


@dataclass(frozen=True)
class Watched:
    """An output of test net `net`, None for the first one that has it."""

    output: str
    net: int | None = None

    @classmethod
    def of(cls, text: str) -> Watched:
        """OUTPUT or OUTPUT#NET, as the log numbers test nets."""
        name, sign, net = text.rpartition("#")
        # a blob's name may have a # in it
        return cls(name, int(net)) if sign and name and net.isascii() and net.isdigit() else cls(text)


@dataclass(frozen=True)
class Goal:
    """The output that says how good a net is, and whether its `max` or `min` is best; '' where that has to be known."""

    watched: Watched
    way: str = ""

    @classmethod
    def of(cls, text: str, name: str = "keep_best") -> Goal:
        """OUTPUT, OUTPUT:max or OUTPUT:min. Raises UsageError, about `name`, for no output."""
        output, _, way = text.rpartition(":")
        if way not in (MAX, MIN):
            output, way = text, ""
        if not output.strip():
            raise UsageError(f"{name} is '{text}'; expected an output of the test net, as in accuracy or loss:min")
        return cls(Watched.of(output.strip()), way)


@dataclass(frozen=True)
class Limit:
    """What an output is to reach, by one of `SIGNS`."""

    watched: Watched
    sign: str
    value: float

    @classmethod
    def of(cls, text: str, name: str = "stop_when") -> Limit:
        """As in "accuracy>=0.99". Raises UsageError, about `name`, for anything else."""
        found = _LIMIT.fullmatch(text)
        try:
            value = float(found[3]) if found else math.nan
        except ValueError:
            value = math.nan
        if found is None or not math.isfinite(value):
            raise UsageError(f"{name} is '{text}'; expected an output, a sign and a number, as in accuracy>=0.99")
        return cls(Watched.of(found[1]), found[2], value)

    def reached(self, value: float) -> bool:
        """Whether a value is there; NaN is nowhere."""
        return SIGNS[self.sign](value, self.value)


@dataclass(frozen=True)
class Aims:
    """What tests decide: which net is kept (`best`, None for none), after how many tests without a better one, or from
    which value on, the run ends."""

    best: Goal | None = None
    patience: int | None = None
    stop: Limit | None = None

    @classmethod
    def of(
        cls, keep_best: str | None, patience: int | None, stop_when: str | None, said: Callable[[str], str] = str
    ) -> Aims:
        """The three keywords, which `said` has other names for. Raises UsageError."""
        if patience is not None and patience < 1:
            raise UsageError(f"{said('patience')} is {patience}; expected 1 or more")
        return cls(
            None if keep_best is None else Goal.of(keep_best, said("keep_best")),
            patience,
            None if stop_when is None else Limit.of(stop_when, said("stop_when")),
        )

    def __bool__(self) -> bool:
        return any(one is not None for one in (self.best, self.patience, self.stop))
