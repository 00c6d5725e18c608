"""What a check is asked and what it found."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from forcereg.errors import ForceregError

Shapes = Mapping[str, Sequence[int]]


@dataclass
class Report:
    """What a check found: `errors` that a run would stop at, `warnings`, and `facts` worth knowing, in order."""

    name: str
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)

    def error(self, error: Exception | str) -> None:
        """Adds a problem, once."""
        if str(error) not in self.errors:
            self.errors.append(str(error))

    def warn(self, text: str) -> None:
        """Adds a warning, once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def attempt(self, action: Callable[[], Any]) -> Any:
        """The action's result; None, and a problem more, if it fails."""
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                result = action()
        except ForceregError as error:
            self.error(error)
            result = None
        for warning in caught:
            self.warn(str(warning.message))
        return result


@dataclass(frozen=True)
class Options:
    """How a check looks: `records` of each data source to read, shapes given instead of sources, and permissions."""

    records: int = 1000
    input_shapes: Shapes = field(default_factory=dict)
    level: int | None = None
    stages: tuple[str, ...] = ()
    allow_python_layers: bool = False
