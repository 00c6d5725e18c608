"""What is drawn of a run: its curves, and what becomes a curve of a blob's elements."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from forcereg.errors import ForceregError

LAST = 2**31 - 1
"""Iterations are Caffe's int."""
LARGEST = 3.5e38
"""Values are float32's; what is beyond is infinite."""
MANY = 40
"""Elements of one blob that have a curve each; of more their mean, least and most have one."""
MOST = 2000
"""Curves of a run."""
KEPT = 4096
"""Values of a blob that are added up at once."""

Point = tuple[str, int, float]
"""A curve's name, an iteration and a value."""


@dataclass
class Curve:
    """Values by iteration, in ascending order."""

    iterations: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def cut(self, iteration: int) -> None:
        """Drops the points from `iteration` on."""
        while self.iterations and self.iterations[-1] >= iteration:
            self.iterations.pop()
            self.values.pop()

    def add(self, iteration: int, value: float) -> None:
        """Appends a point in place of those from `iteration` on."""
        self.cut(iteration)
        self.iterations.append(iteration)
        self.values.append(value)


@dataclass
class Run:
    """One log. Curves are called "train loss", "test accuracy", "test #1 accuracy", "lr", "conv1 rank", ..."""

    name: str
    curves: dict[str, Curve] = field(default_factory=dict)
    iteration: int = 0
    remarks: list[str] = field(default_factory=list)
    """What of the log isn't drawn, a line each."""
    best: str = ""
    """The best test, where the log tells of it."""
    ended: str = ""
    """Why it stopped early, where the log tells so."""

    def judged(self, output: str, value: float, iteration: int, kept: str | None) -> None:
        """A test was better than all before; `kept`: where its net is."""
        self.best = f"best {output} {value:g} at iteration {iteration:,}" + (f", kept as {kept}" if kept else "")

    def stopped(self, iteration: int, why: str) -> None:
        """A test has ended it before its last iteration."""
        self.ended = f"stopped early at iteration {iteration:,}: {why}"

    def add(self, name: str, iteration: int, value: float) -> None:
        """Appends a point to the curve called `name`; one of an iteration before the last is of a run started again."""
        self.ended = ""  # it has gone on
        if iteration < self.iteration:
            for curve in self.curves.values():
                curve.cut(iteration)
            # curves that began behind this point went with the run before
            self.curves = {known: curve for known, curve in self.curves.items() if curve.values}
        self.iteration = iteration
        self.curves.setdefault(name, Curve()).add(iteration, value)

    def go_on(self, other: Run) -> None:
        """Appends the curves of a run that went on from this one's end, or from before it."""
        if not other.curves:
            return
        start = min(curve.iterations[0] for curve in other.curves.values())
        for curve in self.curves.values():
            curve.cut(start)
        self.curves = {known: curve for known, curve in self.curves.items() if curve.values}
        for name, curve in other.curves.items():
            mine = self.curves.setdefault(name, Curve())
            mine.iterations += curve.iterations
            mine.values += curve.values
        self.iteration = other.iteration
        self.best, self.ended = other.best or self.best, other.ended

    def take(self, point: Point, path: Path) -> None:
        """Adds what a log has, if its numbers can be. Raises ForceregError if there are more than `MOST` curves."""
        name, iteration, value = point
        if 0 <= iteration <= LAST:
            self.add(name, iteration, math.copysign(math.inf, value) if abs(value) > LARGEST else value)
        if len(self.curves) > MOST:
            raise ForceregError(f"{path}: has more than {MOST:,} curves, which no picture can show")


class Outputs:
    """The outputs of one test or iteration: elements of one blob all have its name."""

    def __init__(self, blobs: dict[str, int]) -> None:
        self._blobs = blobs
        self._seen: dict[str, _Spread] = {}

    def add(self, name: str, value: float) -> None:
        """One element more."""
        spread = self._seen.get(name)
        if spread is None:
            if len(self._seen) > MOST:
                return  # that many curves are refused
            spread = self._seen[name] = _Spread()
        spread.values.append(value)
        if len(spread.values) >= KEPT:
            spread.fold()

    def end(self, iteration: int) -> Iterator[Point]:
        """The points of all: each element with its index, or the mean, least and most where they are too many."""
        for name, spread in self._seen.items():
            count = spread.count + len(spread.values)
            if count <= MANY:
                yield name, iteration, spread.values[0]
                for index, value in enumerate(spread.values[1:], 1):
                    yield f"{name}[{index}]", iteration, value
                continue
            spread.fold()
            self._blobs[name] = max(count, self._blobs.get(name, 0))
            yield f"{name} mean", iteration, spread.total / count
            yield f"{name} least", iteration, spread.least
            yield f"{name} most", iteration, spread.most
        self._seen.clear()


@dataclass
class _Spread:
    """Values, and what is known of `count` more of them."""

    values: list[float] = field(default_factory=list)
    count: int = 0
    total: float = 0.0
    least: float = math.inf
    most: float = -math.inf

    def fold(self) -> None:
        """Adds the values to the sums; a nan has no place among least and most."""
        self.count += len(self.values)
        self.total += sum(self.values)
        numbers = [value for value in self.values if not math.isnan(value)]
        self.least, self.most = min([self.least, *numbers]), max([self.most, *numbers])
        self.values = []
