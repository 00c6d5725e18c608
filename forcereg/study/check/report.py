"""What a check is asked and what it found."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from forcereg.errors import ForceregError, printable
from forcereg.schema.rules import in_net

Shapes = Mapping[str, Sequence[int]]


@dataclass
class Report:
    """What a check found: `errors` that a run would stop at, `warnings`, and `facts` worth knowing, in order.

    `troubles` counts errors that were told already, too.
    """

    name: str
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    troubles: int = 0
    _told: dict[str, int] = field(default_factory=dict)
    _nets: list[set[str]] = field(default_factory=list)
    _net: str = ""
    _all_nets: set[str] = field(default_factory=set)

    def error(self, error: Exception | str, where: str = "") -> None:
        """Adds a problem, once: at the place `where`, which it opens with, also if it comes again with other sizes."""
        self.troubles += 1
        known = where + re.sub(r"\d+", "0", str(error).removeprefix(printable(where))) if where else str(error)
        if known not in self._told:
            self._told[known] = len(self.errors)
            self.errors.append(str(error))
            self._nets.append(set())
        self._nets[self._told[known]].add(self._net)

    @contextmanager
    def about(self, net: str) -> Iterator[None]:
        """Errors inside are about this net ('' for the only one), for `name_nets`."""
        self._net, before = net, self._net
        self._all_nets.add(net)
        yield
        self._net = before

    def name_nets(self) -> None:
        """Says of every error that not all of several nets have, whose it is; to be called once, at the end."""
        for index, nets in enumerate(self._nets):
            for net in nets - {""} if nets != self._all_nets else ():
                self.errors[index] = str(in_net(ForceregError(self.errors[index]), net))

    def warn(self, text: str) -> None:
        """Adds a warning, once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def attempt(self, action: Callable[[], Any], where: str = "") -> Any:
        """The action's result; None, and a problem more (see `error`), if it fails."""
        try:
            with warnings.catch_warnings(record=True) as caught:
                # Python tells a warning once by its place, whatever net it is about
                warnings.simplefilter("always")
                result = action()
        except ForceregError as error:
            self.error(error, where)
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
