"""What the parts of a training share, and all that they know of it: its settings, its nets, whom to tell."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from forcereg.errors import ForceregError
from forcereg.net.module import Net
from forcereg.solver.distributed import Group
from forcereg.solver.hooks import Hooks
from forcereg.system.events import Event, Observer
from forcereg.system.paths import resolve


class Teller:
    """Tells `observers`; but for the first `rank`, to whose records the others have nothing to add."""

    def __init__(self, observers: Sequence[Observer] = (), rank: int = 0) -> None:
        self.observers, self.hooks = list(observers), Hooks()
        self._rank = rank

    def emit(self, kind: str, **fields: Any) -> None:
        """Tells the observers."""
        if self._rank:
            return
        # made once: all observers see the same record
        event = Event(kind, fields)
        for observer in self.observers:
            observer(event)
        self.hooks(event)

    def warn(self, text: str, depth: int = 3) -> None:
        """Tells the observers, or if there are none the user: of the line that is `depth` calls above."""
        self.emit("warning", text=text)
        if not self.observers and not self._rank:
            warnings.warn(text, stacklevel=depth)


@dataclass(frozen=True)
class Run:
    """What stays as it is through a training.

    `param`: SolverParameter, of the file `name`, which opens errors; relative paths start from `root`. `seed` is that
    of all nets, on every rank.
    """

    param: Any
    name: str = "solver"
    root: Path = field(default_factory=Path.cwd)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    group: Group = field(default_factory=Group)
    tell: Teller = field(default_factory=Teller)

    def prefix(self) -> Path:
        """The snapshot prefix as a path. Raises ForceregError if there is none."""
        if not self.param.snapshot_prefix:
            raise ForceregError(f'{self.name}: snapshot_prefix is missing; set for example snapshot_prefix: "net"')
        return resolve(self.root, self.param.snapshot_prefix)


@dataclass(frozen=True)
class Nets:
    """The net that is trained, and those that it is tested by, which share its weights."""

    train: Net
    tests: list[Net] = field(default_factory=list)

    def __iter__(self) -> Iterator[Net]:
        return iter((self.train, *self.tests))

    @property
    def named(self) -> dict[str, Net]:
        """All by the names that a solver state has for them."""
        return {"train": self.train, **{f"test_{i}": net for i, net in enumerate(self.tests)}}

    def share(self) -> None:
        """The test nets take the training net's blobs for their own."""
        for net in self.tests:
            net.share_params(self.train)
